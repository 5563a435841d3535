"""One structure in, energy and forces out: the part that the Python-driven engines share.

An :class:`Evaluator` holds what does not change from step to step (atomic numbers, the pairs of a
small molecule) and rebuilds what does (the neighbour list, the cell). Around the model it adds some
0.01 ms to a step of a small molecule.
"""

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from forcefield.errors import ConfigError, InvalidStructureError, NonFiniteForceError
from forcefield.export import ExportedPotential, load_exported, quiet_torchscript
from forcefield.neighbors import VerletList, all_pairs
from forcefield.uncertainty import check_uncertainty, predict_uncertainty

STATIC_ATOMS = 64
"""Up to this many atoms outside a cell every pair is an edge and no neighbour list is built."""

DEFAULT_SKIN = 0.5
"""Å by which a neighbour list outlives the cutoff; an atom that moves half of it ends its life."""


@dataclass(frozen=True)
class Evaluation:
    """What a potential says about one structure.

    Attributes:
        energy: eV.
        energies: Per atom, (n,), eV; they add up to ``energy``.
        forces: (n, 3), eV/Å, float64.
        stress: (3, 3), eV/Å³, or None if it was not asked for.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None


def open_potential(
    potential: str | Path | ExportedPotential,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> ExportedPotential:
    """Load an exported potential, or take one that is loaded already.

    Args:
        potential: Path of the exported file, or a loaded one, which stays where it is.
        device: Where to load a file to.
        dtype: Precision to run in; None for that of the training. float64 makes a float32 potential
            smooth enough for small finite differences, at up to twice the time.

    Raises:
        CheckpointError: There is no such file, or it is not an exported potential.
        ConfigError: Single precision is asked of a double-precision potential.
    """
    if isinstance(potential, ExportedPotential):
        exported = potential
    else:
        exported = load_exported(potential, device=device)
    if dtype is None or dtype == exported.dtype:
        return exported
    if dtype != torch.float64:
        raise ConfigError(
            f"this potential runs in {exported.dtype} and cannot be run in {dtype}; "
            "only torch.float64 can be asked for"
        )
    return ExportedPotential(
        module=copy.deepcopy(exported.module).double(),
        metadata=exported.metadata | {"dtype": "float64"},
    )


def module_device(potential: ExportedPotential) -> torch.device:
    """Where the potential's weights lie."""
    return next(potential.module.parameters()).device


def first_bad_atom(values: np.ndarray) -> int | None:
    """Index of the first row that holds NaN or infinity, None if every number is finite."""
    if np.isfinite(values.sum()):
        # A finite sum of finite numbers: any NaN or infinity would have carried through.
        return None
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    return int(bad[0]) if len(bad) else None


class Evaluator:
    """Energies, forces and stress of one set of atoms, wherever they move.

    Args:
        potential: The exported potential.
        atomic_numbers: (n,); fixed for the life of the evaluator.
        skin: Å, see :data:`DEFAULT_SKIN`. Edges between cutoff and cutoff + skin are dropped before
            the model runs, so a larger skin saves searches and costs the model nothing.

    Raises:
        UnknownElementError: The potential does not know one of the elements.
    """

    def __init__(
        self,
        potential: ExportedPotential,
        atomic_numbers: Sequence[int] | np.ndarray,
        skin: float = DEFAULT_SKIN,
    ) -> None:
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        potential.check_elements(numbers)
        self.numbers = numbers
        self.potential = potential
        self.skin = skin
        self.neighbors = VerletList(potential.cutoff, skin)
        self._cutoff = float(potential.cutoff)
        self._device = module_device(potential)
        self._number_tensor = torch.as_tensor(numbers, device=self._device)
        self._batch = torch.zeros_like(self._number_tensor)
        self._no_cell = torch.zeros(1, 3, 3, dtype=torch.float64, device=self._device)
        self._static_edges: tuple[Tensor, Tensor] | None = None
        if len(numbers) <= STATIC_ATOMS:
            pairs = all_pairs(len(numbers))
            shifts = torch.zeros(pairs.shape[1], 3, dtype=torch.float64)
            self._static_edges = (pairs.to(self._device), shifts.to(self._device))

    def __call__(
        self,
        positions: np.ndarray,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
        compute_stress: bool = False,
    ) -> Evaluation:
        """Evaluate the potential.

        Args:
            positions: (n, 3), Å.
            cell: Cell vectors in rows, (3, 3), Å; needed if any direction is periodic.
            pbc: (3,), bool; None for no periodicity.
            compute_stress: Differentiate with respect to the cell as well; needs three periodic
                directions.

        Raises:
            InvalidStructureError: A position is not finite, or the cell is singular.
            NonFiniteForceError: The model's energy or a force is NaN or infinite.
        """
        inputs = (*self._inputs(positions, cell, pbc), compute_stress)
        if torch.is_grad_enabled():
            output = self.potential.module(*inputs)
        else:
            with torch.enable_grad():
                output = self.potential.module(*inputs)
        energy = output["energy"].item()
        forces = output["forces"].detach().cpu().numpy()
        # One number tells whether all is well; what is wrong is found out only when something is.
        if not math.isfinite(energy + np.vdot(forces, forces)):
            self._check_positions(positions)
            self._check_results(energy, forces)
        return Evaluation(
            energy=energy,
            energies=output["energies"].detach().cpu().numpy(),
            forces=forces,
            stress=output["stress"][0].detach().cpu().numpy() if compute_stress else None,
        )

    def uncertainty(
        self,
        positions: np.ndarray,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """Estimated errors of energy and forces; the cost of some 10 to 25 evaluations.

        Args:
            positions: and the rest as for an evaluation, which the structure has passed.
            cell: (3, 3), Å.
            pbc: (3,), bool.

        Returns:
            Standard deviations of the energy, eV, and of a force component of each atom, (n,), eV/Å.

        Raises:
            CheckpointError: The potential holds no error estimate.
        """
        check_uncertainty(self.potential.module)
        inputs = self._inputs(positions, cell, pbc)
        energy, forces = predict_uncertainty(self.potential.module, *inputs)
        return energy.item(), forces.cpu().numpy()

    def _inputs(
        self, positions: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The model's arguments, with a neighbour list where one is needed."""
        points = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float64))
        if pbc is None or cell is None or not pbc.any():
            cell_tensor = self._no_cell
            edge_index, shifts = self._static_edges or self._listed_edges(
                points, np.zeros((3, 3)), np.zeros(3, dtype=bool)
            )
        else:
            cell_tensor = torch.tensor(cell, dtype=torch.float64, device=self._device)[None]
            edge_index, shifts = self._listed_edges(points, cell, pbc)
        return (
            points.to(self._device),
            self._number_tensor,
            edge_index,
            shifts,
            cell_tensor,
            self._batch,
        )

    def _listed_edges(
        self, points: Tensor, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        self._check_positions(points.numpy())  # A search among NaN may not come back.
        edge_index, shifts = self.neighbors.update(points.numpy(), cell, pbc)
        vectors = points.index_select(0, edge_index[0]) - points.index_select(0, edge_index[1])
        if pbc.any():
            vectors += shifts @ torch.as_tensor(cell, dtype=torch.float64)
        near = ((vectors * vectors).sum(dim=1) < self._cutoff**2).nonzero().squeeze(1)
        return (
            edge_index.index_select(1, near).to(self._device),
            shifts.index_select(0, near).to(self._device),
        )

    def _check_positions(self, positions: np.ndarray) -> None:
        bad = first_bad_atom(positions)
        if bad is not None:
            raise InvalidStructureError(
                f"the position of {self._atom(bad)} is not finite: {positions[bad]} Å; "
                "the structure was damaged before the potential saw it"
            )

    def _check_results(self, energy: float, forces: np.ndarray) -> None:
        bad = first_bad_atom(forces)
        if bad is not None:
            raise NonFiniteForceError(
                f"the force on {self._atom(bad)} is not finite: {forces[bad]} eV/Å; the structure "
                "has left the domain of the potential (look for atoms too close to one another, "
                "a time step too long, or a bad starting structure)"
            )
        if not np.isfinite(energy):
            raise NonFiniteForceError(f"the potential energy is not finite: {energy} eV")

    def _atom(self, index: int) -> str:
        return f"atom {index} ({chemical_symbols[self.numbers[index]]})"

    def __reduce__(self) -> tuple[Any, ...]:
        # For OpenMM, which stores a PythonForce in XML by pickling what it calls.
        file = io.BytesIO()
        with quiet_torchscript():
            torch.jit.save(self.potential.module, file)
        return _restore, (file.getvalue(), self.potential.metadata, self.numbers, self.skin)


def _restore(
    module: bytes, metadata: dict[str, Any], numbers: np.ndarray, skin: float
) -> Evaluator:
    with quiet_torchscript():
        loaded = torch.jit.load(io.BytesIO(module))
    return Evaluator(ExportedPotential(loaded.eval(), metadata), numbers, skin)
