"""TorchSim model: many structures, or many replicas of one, in one call of the potential.

    import torch_sim as ts
    from calculators.torchsim import TorchSimModel
    model = TorchSimModel("runs/ethanol/potential.pt", device="cuda")
    ts.integrate(system=[atoms] * 100, model=model, integrator=..., n_steps=10_000, ...)

Needs torch-sim-atomistic, whose newer versions need Python 3.12. Units are TorchSim's "metal" ones:
Å, eV, eV/Å, eV/Å³.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from calculators.evaluator import STATIC_ATOMS, open_potential
from forcefield.errors import EngineError, InvalidStructureError, NonFiniteForceError
from forcefield.export import ExportedPotential
from forcefield.neighbors import DEFAULT_SKIN, VerletList, all_pairs, check_skin

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise EngineError(
        f"TorchSim cannot be imported ({error}); pip install torch-sim-atomistic (Python 3.12 or newer)"
    ) from error

if TYPE_CHECKING:
    from torch_sim import SimState


@dataclass(frozen=True)
class _Layout:
    """What stays the same while the structures of a state move.

    Attributes:
        numbers: Atomic numbers, (n,).
        system: Structure of each atom, (n,).
        counts: Atoms of each structure.
        pairs: All pairs within each structure, (2, e); None if there is a structure too large for that.
        shifts: Their cell shifts, zeros (e, 3).
    """

    numbers: Tensor
    system: Tensor
    counts: list[int]
    pairs: Tensor | None
    shifts: Tensor


class TorchSimModel(ModelInterface):
    """A potential behind TorchSim's ``ModelInterface``.

    All structures of a state go through the network together. Molecules of up to 64 atoms outside a
    cell are evaluated on the graphs of all their pairs, which are kept while the same structures come
    back; any other structure has a neighbour list of its own, reused while its atoms move little.

    Args:
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        device: Where the model runs; a loaded potential stays where it is.
        dtype: Of the states that it takes and of its results. float64 keeps total energies exact; the
            network runs in the precision of its training either way.
        compute_stress: Give the stress of structures that are periodic in three directions (NaN for
            others, which have no volume).
        skin: Å by which neighbour lists outlive the cutoff.

    Raises:
        CheckpointError: There is no such file, or it is not an exported potential.
        ConfigError: ``skin`` is negative or not finite.
    """

    def __init__(
        self,
        potential: str | Path | ExportedPotential,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_stress: bool = True,
        skin: float = DEFAULT_SKIN,
    ) -> None:
        super().__init__()
        self.potential = open_potential(potential, str(device))
        self.module = self.potential.module
        self.skin = check_skin(skin)
        self._device = self.potential.device
        self._dtype = dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self._lists: list[VerletList] = []
        self._layout: _Layout | None = None

    def forward(self, state: "SimState", **kwargs: Any) -> dict[str, Tensor]:
        """Evaluate the structures of a state.

        Args:
            state: n atoms of b structures.
            kwargs: None are known; part of TorchSim's interface.

        Returns:
            ``energy`` (b,), eV; ``forces`` (n, 3), eV/Å; and ``stress`` (b, 3, 3), eV/Å³, if it is
            computed.

        Raises:
            UnknownElementError: The potential does not know one of the elements.
            InvalidStructureError: A position is not finite, or a cell is singular.
            NonFiniteForceError: A force is NaN or infinite.
        """
        layout = self._layout = self._layout_of(state)
        pbc = np.broadcast_to(torch.as_tensor(state.pbc).cpu().numpy(), (3,))
        positions, cell = state.positions.detach(), state.row_vector_cell.detach()
        edge_index, shifts = self._edges(positions, cell, pbc, layout)
        with_stress = self._compute_stress and bool(pbc.all())
        with torch.enable_grad():
            output = self.module(
                positions,
                layout.numbers,
                edge_index,
                shifts.to(positions.dtype),
                cell,
                layout.system,
                with_stress,
            )
        forces = output["forces"]
        if not bool(torch.isfinite(forces.sum())):
            self._check(positions, "position", layout, InvalidStructureError)
            self._check(forces, "force", layout, NonFiniteForceError)
        result = {"energy": output["energy"].to(self._dtype), "forces": forces.to(self._dtype)}
        if self._compute_stress:
            nowhere = torch.full_like(cell, torch.nan)
            result["stress"] = (output["stress"] if with_stress else nowhere).to(self._dtype)
        return result

    def _layout_of(self, state: "SimState") -> _Layout:
        known = self._layout
        numbers, system = state.atomic_numbers, state.system_idx
        if (
            known is not None
            and torch.equal(known.system, system)
            and torch.equal(known.numbers, numbers)
        ):
            return known
        self.potential.check_elements(numbers.tolist())
        counts = torch.bincount(system).tolist()
        pairs, start = [], 0
        for count in counts if max(counts) <= STATIC_ATOMS else []:
            pairs.append(all_pairs(count) + start)
            start += count
        joined = torch.cat(pairs, dim=1).to(self._device) if pairs else None
        return _Layout(
            numbers=numbers.to(self._device, torch.int64, copy=True),
            system=system.to(self._device, torch.int64, copy=True),
            counts=counts,
            pairs=joined,
            shifts=torch.zeros(0 if joined is None else joined.shape[1], 3, device=self._device),
        )

    def _edges(
        self, positions: Tensor, cell: Tensor, pbc: np.ndarray, layout: _Layout
    ) -> tuple[Tensor, Tensor]:
        """Pairs (2, e) and cell shifts (e, 3) of all structures."""
        if layout.pairs is not None and not pbc.any():
            return layout.pairs, layout.shifts
        self._check(positions, "position", layout, InvalidStructureError)
        while len(self._lists) < len(layout.counts):
            self._lists.append(VerletList(self.potential.cutoff, self.skin))
        points, cells = positions.double().cpu().numpy(), cell.double().cpu().numpy()
        edges, shifts, start = [], [], 0
        for index, count in enumerate(layout.counts):
            # A list looks at the geometry alone: it serves whatever structure comes in this place.
            found = self._lists[index].within_cutoff(
                points[start : start + count], cells[index], pbc
            )
            edges.append(found[0] + start)
            shifts.append(found[1])
            start += count
        return torch.cat(edges, dim=1).to(self._device), torch.cat(shifts).to(self._device)

    @staticmethod
    def _check(values: Tensor, what: str, layout: _Layout, error: type[Exception]) -> None:
        bad = torch.nonzero(~torch.isfinite(values).all(dim=1))
        if len(bad):
            atom = int(bad[0, 0])
            structure = int(layout.system[atom])
            raise error(
                f"the {what} of atom {atom - sum(layout.counts[:structure])} "
                f"({chemical_symbols[int(layout.numbers[atom])]}) of structure {structure} is not "
                f"finite; {len(torch.unique(layout.system[bad[:, 0]]))} of {len(layout.counts)} "
                "structures have left the domain of the potential"
            )
