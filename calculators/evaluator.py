"""One structure in, energy and forces out: the part that the Python-driven engines share.

An :class:`Evaluator` holds what does not change from step to step (atomic numbers, the pairs of a
small molecule) and rebuilds what does (the neighbour list, the cell). Around the model it adds some
0.01 ms to a step of a small molecule.
"""

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calculators.guard import check_positions, check_results
from calculators.loading import load_on, pack_potential, unpack_potential
from forcefield.compiled import compile_exported, runner, scripted_module
from forcefield.errors import ConfigError, InvalidStructureError
from forcefield.export import ExportedPotential
from forcefield.graph import edge_vectors
from forcefield.neighbors import DEFAULT_SKIN, MoleculePairs, VerletList, all_pairs
from forcefield.recording import record
from forcefield.uncertainty import check_uncertainty, predict_uncertainty

STATIC_ATOMS = 64
"""Up to this many atoms outside a cell every pair is looked at (on a GPU: is an edge, so that shapes stay
the same) and no neighbour list is built."""

DEFAULT_MAX_FORCE = 200.0
"""eV/Å. 10,000 frames of rMD17 (500 K) hold no force above 11, ethanol at 1000 K stays below 20: beyond
this a structure is broken, or will be within a step."""


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
    compile: bool = False,
) -> ExportedPotential:
    """Load an exported potential, or take one that is loaded already.

    Args:
        potential: Path of the exported file, or a loaded one, which stays where it is.
        device: Where to load a file to.
        dtype: Precision to run in; None for that of the training. float64 makes a float32 potential
            smooth enough for small finite differences, at up to twice the time.
        compile: Compile it for the processor or GPU where it is, see :mod:`forcefield.compiled`: one to
            two minutes once for an architecture, and two to three times as fast from then on.

    Raises:
        CheckpointError: There is no such file, it is not an exported potential, or not one that this
            torch understands.
        ConfigError: Single precision is asked of a double-precision potential, or the device is not
            there.
        CompilationError: It cannot be compiled here.
    """
    exported = potential if isinstance(potential, ExportedPotential) else load_on(potential, device)
    if dtype is not None and dtype != exported.dtype:
        exported = _in_double_precision(exported, dtype)
    return compile_exported(exported) if compile else exported


def _in_double_precision(exported: ExportedPotential, dtype: torch.dtype) -> ExportedPotential:
    if dtype != torch.float64:
        raise ConfigError(
            f"this potential runs in {exported.dtype} and cannot be run in {dtype}; "
            "only torch.float64 can be asked for"
        )
    return ExportedPotential(
        module=copy.deepcopy(scripted_module(exported)).double(),
        metadata=exported.metadata | {"dtype": "float64"},
    )


def check_max_force(max_force: float) -> float:
    """The largest force to let pass, eV/Å, as a float.

    Raises:
        ConfigError: It is not a positive number.
    """
    if not max_force > 0:
        raise ConfigError(
            f"max_force is a force in eV/Å above zero (math.inf for no limit), found {max_force!r}"
        )
    return float(max_force)


class Evaluator:
    """Energies, forces and stress of one set of atoms, wherever they move.

    Args:
        potential: The exported potential.
        atomic_numbers: (n,); fixed for the life of the evaluator.
        skin: Å, see :data:`forcefield.neighbors.DEFAULT_SKIN`. Edges between cutoff and cutoff + skin
            are dropped before the model runs, so a larger skin saves searches and costs the model
            nothing.
        max_force: eV/Å; a larger force on an atom is an error. ``math.inf`` lets every finite force
            pass.

    Raises:
        UnknownElementError: The potential does not know one of the elements.
        ConfigError: ``max_force`` is not a positive number, or ``skin`` negative or not finite.
    """

    def __init__(
        self,
        potential: ExportedPotential,
        atomic_numbers: Sequence[int] | np.ndarray,
        skin: float = DEFAULT_SKIN,
        max_force: float = DEFAULT_MAX_FORCE,
    ) -> None:
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        potential.check_elements(numbers)
        self.numbers = numbers
        self.potential = potential
        self.skin = skin
        self.max_force = check_max_force(max_force)
        self.neighbors = VerletList(potential.cutoff, skin)
        self._device = potential.device
        self._model = runner(potential)
        self._number_tensor = torch.as_tensor(numbers, device=self._device)
        self._batch = torch.zeros_like(self._number_tensor)
        self._no_cell = torch.zeros(1, 3, 3, dtype=torch.float64, device=self._device)
        # Threads may share an evaluator without knowing: two Contexts of one System do.
        self._lock = threading.Lock()
        self._recorded: _RecordedStep | None = None
        self._molecule: MoleculePairs | None = None
        self._static_edges: tuple[Tensor, Tensor] | None = None
        if len(numbers) <= STATIC_ATOMS:
            if self._device.type == "cpu":
                self._molecule = MoleculePairs(len(numbers), potential.cutoff)
            else:
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
            InvalidStructureError: A position is not finite, two atoms lie on top of each other, or
                the cell is singular.
            NonFiniteForceError: The model's energy or a force is NaN or infinite.
            AbsurdForceError: The force on an atom is larger than ``max_force``.
        """
        with self._lock, torch.enable_grad():
            inputs = self.inputs(positions, cell, pbc)
            output = self._run(inputs, compute_stress)
        energy = output["energy"].item()
        forces = output["forces"].detach().cpu().numpy()
        # One number tells whether all is well: no force is larger than all of them together. What is
        # wrong is found out only when something may be. (NaN is not smaller than anything.)
        total = np.vdot(forces, forces)
        if not (total <= self.max_force**2 and math.isfinite(energy + total)):
            check_positions(self.numbers, positions)
            check_results(self.numbers, positions, cell, pbc, energy, forces, self.max_force)
        return Evaluation(
            energy=energy,
            energies=output["energies"].detach().cpu().numpy(),
            forces=forces,
            stress=output["stress"][0].detach().cpu().numpy() if compute_stress else None,
        )

    def _run(self, inputs: tuple[Tensor, ...], compute_stress: bool) -> dict[str, Tensor]:
        """Run the model. On a GPU a molecule whose pairs stay the same is recorded at the first call."""
        static = self._static_edges is not None and inputs[2] is self._static_edges[0]
        if not static or self._device.type != "cuda":
            return self._model(*inputs, compute_stress)
        if self._recorded is None:
            self._recorded = _RecordedStep(self.potential, inputs)
        return self._recorded(inputs[0])

    def uncertainty(
        self,
        positions: np.ndarray,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """Estimated errors of energy and forces; the cost of some 30 to 50 evaluations.

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
        inputs = self.inputs(positions, cell, pbc)
        energy, forces = predict_uncertainty(self.potential.module, *inputs)
        return energy.item(), forces.cpu().numpy()

    def descriptors(
        self,
        positions: np.ndarray,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
    ) -> np.ndarray:
        """Inputs of the readout's last layer, (n, k), eV, float64.

        Args:
            positions: and the rest as for an evaluation.
            cell: (3, 3), Å.
            pbc: (3,), bool.
        """
        check_positions(self.numbers, positions)
        points, numbers, edge_index, cell_shifts, box, batch = self.inputs(positions, cell, pbc)
        with torch.no_grad():
            vectors = edge_vectors(points, edge_index, cell_shifts, box, batch)
            vectors = vectors.to(self.potential.dtype)
            features = self.potential.module.last_layer(vectors, numbers, edge_index)
        return features.to(torch.float64).cpu().numpy()

    def inputs(
        self,
        positions: np.ndarray,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The model's arguments, with a neighbour list where one is needed.

        Args:
            positions: and the rest as for an evaluation.
            cell: (3, 3), Å.
            pbc: (3,), bool.

        Returns:
            Positions, numbers, edge index, cell shifts, cell and batch, as in
            :meth:`forcefield.potential.Potential.forward`.
        """
        if len(positions) != len(self.numbers):
            raise InvalidStructureError(
                f"this evaluator was made for {len(self.numbers)} atoms, found {len(positions)} "
                "positions"
            )
        points = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float64))
        if pbc is None or cell is None or not pbc.any():
            cell_tensor = self._no_cell
            if self._static_edges is not None:
                edge_index, shifts = self._static_edges
            elif self._molecule is not None:
                # A pair at infinity is not within a cutoff.
                check_positions(self.numbers, positions)
                edge_index, shifts = self._molecule.within_cutoff(points.numpy())
            else:
                edge_index, shifts = self._listed_edges(
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
        check_positions(self.numbers, points.numpy())  # A search among NaN may not come back.
        edge_index, shifts = self.neighbors.within_cutoff(points.numpy(), cell, pbc)
        return edge_index.to(self._device), shifts.to(self._device)

    def __reduce__(self) -> tuple[Any, ...]:
        # For OpenMM, which stores a PythonForce in XML by pickling what it calls.
        return _restore, (
            pack_potential(self.potential),
            self.numbers,
            self.skin,
            self.max_force,
        )


class _RecordedStep:
    """The model on a GPU as a CUDA graph of the positions.

    Args:
        potential: On a CUDA device.
        inputs: As :meth:`Evaluator.inputs` gives them; all but the positions stay what they are.
    """

    def __init__(self, potential: ExportedPotential, inputs: tuple[Tensor, ...]) -> None:
        points, *constant = inputs
        self.points = points.clone()

        def step() -> Tensor:
            output = potential.module(self.points, *constant)
            # In one piece: each copy to the host waits for the device.
            return torch.cat([output["energy"], output["energies"], output["forces"].flatten()])

        with torch.cuda.device(points.device):
            self.replay = record(step)

    def __call__(self, points: Tensor) -> dict[str, Tensor]:
        self.points.copy_(points)
        result = self.replay().cpu()
        n = len(points)
        energy, energies, forces = result.split([1, n, 3 * n])
        return {"energy": energy, "energies": energies, "forces": forces.view(n, 3)}


def _restore(
    packed: tuple[Any, ...], numbers: np.ndarray, skin: float, max_force: float
) -> Evaluator:
    return Evaluator(unpack_potential(packed), numbers, skin, max_force)
