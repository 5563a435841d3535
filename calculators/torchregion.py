"""What every module that OpenMM's TorchForce runs has in common: atoms, units, and the guard.

See :mod:`calculators.torchforce` for the modules themselves. Everything here is TorchScript.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from calculators.torchcompiled import register_compiled
from forcefield.compiled import is_compiled
from forcefield.export import ExportedPotential

REMEMBERED = 8
"""Structures that the guard remembers, and bad ones in a row that it lets a minimiser try out."""

JUMP, STEP = 0.5, 0.1
"""Å from one evaluation to the next: more than in any step of a simulation; as in a step."""


@dataclass(frozen=True)
class Wrapping:
    """What a module has to know besides the potential and the atoms.

    Attributes:
        length: Å in the engine's unit of length.
        energy: The engine's units of energy in one eV.
        periodic: Whether the box vectors are a second argument.
        scaled: Whether a factor of energy and forces is the last argument.
        skin: Å, for the neighbour list of large or periodic systems.
        max_force: eV/Å; a larger force on an atom is an error.
        turned_down: Energy in the engine's units of a structure that shall not be accepted.
        cuda_graphs: Nothing depends on data and nothing waits for the device, see :class:`AllPairs`.
    """

    length: float
    energy: float
    periodic: bool
    scaled: bool
    skin: float
    max_force: float
    turned_down: float
    cuda_graphs: bool


class Region(torch.nn.Module):
    """The atoms of the force among the System's particles, and the guard.

    Errors are raised in ``forward`` and nowhere else. The plugin freezes a copy of the module and drops
    the copy; an error raised in an inlined method would have TorchScript look up the method's name
    there, in memory that is gone, and the process would crash.

    Args:
        potential: The exported potential; a compiled one runs compiled.
        numbers: Atomic numbers, (n,).
        particles: Indices of the atoms among the System's particles, (n,); None for all, in order.
        wrapping: Units and options.
    """

    where: Tensor
    numbers: Tensor
    batch: Tensor
    no_cell: Tensor
    history: Tensor
    trials: Tensor
    subset: Final[bool]
    periodic: Final[bool]
    scaled: Final[bool]
    # Of Final TorchScript sees nothing in subclasses, and the branch not taken has to be left out.
    __constants__ = ("compiled",)

    def __init__(
        self,
        potential: ExportedPotential,
        numbers: np.ndarray,
        particles: np.ndarray | None,
        wrapping: Wrapping,
    ) -> None:
        super().__init__()
        self.compiled = is_compiled(potential)
        if self.compiled:
            self.key = register_compiled(potential)
        else:
            self.potential = potential.module
        self.cutoff = potential.cutoff
        self.length = wrapping.length
        self.energy = wrapping.energy
        self.max_force = wrapping.max_force
        self.too_high = wrapping.turned_down
        self.periodic = wrapping.periodic
        self.scaled = wrapping.scaled
        self.subset = particles is not None
        self.symbols = [chemical_symbols[z] for z in numbers]
        where = np.arange(len(numbers)) if particles is None else particles
        self.names: list[int] = [int(index) for index in where]
        self.last = max(self.names)
        self.most_trials = REMEMBERED
        self.jump = JUMP**2
        self.step = STEP**2
        self.register_buffer("where", torch.as_tensor(where, dtype=torch.int64))
        self.register_buffer("numbers", torch.as_tensor(numbers))
        self.register_buffer("batch", torch.zeros(len(numbers), dtype=torch.int64))
        # Changed in place, so that the plugin's freezing leaves them; each Context has its own.
        nowhere = torch.full((REMEMBERED, len(numbers), 3), torch.nan, dtype=torch.float64)
        self.register_buffer("history", nowhere)
        self.register_buffer("trials", torch.tensor(0))
        self.register_buffer("no_cell", torch.zeros(3, 3, dtype=torch.float64))

    def misfit(self, positions: Tensor) -> str:
        """What is wrong with the number of particles; empty if nothing is."""
        found = positions.size(0)
        if self.subset:
            if found <= self.last:
                return f"this force acts on particle {self.last}, the System has {found} particles"
        elif found != len(self.symbols):
            return f"this force was made for {len(self.symbols)} atoms, the System has {found} particles"
        return ""

    def points(self, positions: Tensor) -> Tensor:
        """Positions of the atoms, (n, 3), Å, float64, where the model runs."""
        points = self.length * positions.to(self.no_cell.device, torch.float64)
        return points.index_select(0, self.where) if self.subset else points

    def box(self, box: Tensor | None) -> Tensor:
        """Box vectors in rows, (3, 3), Å; zeros without a box."""
        if box is None:
            return self.no_cell
        return self.length * box.to(self.no_cell.device, torch.float64)

    def switched_off(self, scale: Tensor | None) -> bool:
        """Whether the factor is zero: the model has nothing to say then, and is not asked."""
        return scale is not None and bool(scale == 0.0)

    def nothing(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """No energy and no forces."""
        forces = torch.zeros_like(positions.detach())
        return forces.sum().to(torch.float64), forces

    def evaluate(
        self, points: Tensor, edge_index: Tensor, shifts: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, str]:
        """Energy () in eV, forces (n, 3) in eV/Å, and what is wrong; empty if nothing is."""
        cells = cell.unsqueeze(0)
        if self.compiled:
            energy, forces, problem = torch.ops.hegnn_forcefield.evaluate(
                self.key, points, self.numbers, edge_index, shifts, cells, self.batch
            )
            return energy.sum(), forces, problem
        output = self.potential(points, self.numbers, edge_index, shifts, cells, self.batch)
        return output["energy"].sum(), output["forces"], ""

    def damage(self, points: Tensor) -> str:
        """Which position is not finite; empty if all are."""
        if not bool(torch.isfinite(points.sum())):
            bad = torch.nonzero(torch.logical_not(torch.isfinite(points)))
            if bad.size(0) > 0:
                atom = int(bad[0, 0])
                return (
                    f"InvalidStructureError: the position of atom {self.names[atom]} "
                    f"({self.symbols[atom]}) is not finite; the structure was damaged before the "
                    "potential saw it"
                )
        return ""

    def verdict(self, energy: Tensor, forces: Tensor, points: Tensor) -> str:
        """What is wrong with results in eV and eV/Å; empty if nothing is, "trial" for a trial.

        A simulation stops at a force that is not finite or too large. A minimiser, however, jumps
        into such structures to find out how far it can go, and these are turned down.
        """
        squares = (forces * forces).sum(1)
        limit = self.max_force * self.max_force
        # One number to wait for. NaN is not smaller than anything.
        if bool(torch.logical_and(squares.max() < limit, torch.isfinite(energy))):
            self.remember(points)
            self.trials.zero_()
            return ""
        damage = self.damage(points)
        if len(damage) > 0:
            return damage
        trial = self.is_trial(points)
        self.remember(points)
        self.trials.add_(1)
        if trial:
            return "trial"
        # A NaN spreads by the sums over neighbours; the first atom is as good as any.
        bad = torch.nonzero(torch.logical_not(torch.isfinite(squares)))
        atom = int(bad[0, 0]) if bad.size(0) > 0 else int(squares.argmax())
        force = f"the force on atom {self.names[atom]} ({self.symbols[atom]}) is"
        size = float(torch.round(10.0 * squares[atom].sqrt())) / 10.0
        what = f"AbsurdForceError: {force} {size} eV/Å, more than max_force = {self.max_force} eV/Å"
        if bad.size(0) > 0:
            what = f"NonFiniteForceError: {force} not finite"
        elif bool(squares[atom] < limit):
            what = "NonFiniteForceError: the potential energy is not finite"
        return f"{what}; the structure has left the domain of the potential"

    def remember(self, points: Tensor) -> None:
        """Keep a structure, and forget the oldest."""
        self.history.copy_(torch.cat([points.unsqueeze(0), self.history[:-1]]))

    def is_trial(self, points: Tensor) -> bool:
        """Whether a bad structure is one that a minimiser tries out, and not the next step.

        A line search begins with a jump, of some Å for a small molecule, and comes back by halves. A
        simulation moves by steps, however long, into a bad structure and further on.
        """
        trials = int(self.trials)
        if trials >= self.most_trials:
            return False
        later = torch.cat([points.unsqueeze(0), self.history[:-1]])
        moved = (later - self.history).square().sum(2).amax(1)  # NaN from nowhere
        if trials > 0:
            good = self.history[trials]  # A line search comes back to it, a simulation goes on.
            before = (self.history[0] - good).square().sum(1).amax()
            now = (points - good).square().sum(1).amax()
            if bool(torch.logical_or(moved[0] < self.step, now > before)):
                return False
        return bool((moved > self.jump).any())

    def turned_down(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """An energy that no minimiser and no Monte Carlo move accepts."""
        energy, forces = self.nothing(positions)
        return energy + self.too_high, forces

    def results(
        self, energy: Tensor, forces: Tensor, positions: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Energy () and forces (particles, 3) in the engine's units, from eV and eV/Å.

        Forces have the precision of the positions: the plugin's own conversion would leave it with
        memory that is free to be used again.
        """
        energy = self.energy * energy
        forces = (self.energy * self.length) * forces
        if scale is not None:
            factor = scale.detach().to(forces.device, torch.float64)
            energy, forces = factor * energy, factor * forces
        if self.subset:
            none = torch.zeros(positions.size(0), 3, dtype=forces.dtype, device=forces.device)
            forces = none.index_copy(0, self.where, forces)
        return energy.to(positions.device), forces.to(positions.device, positions.dtype)
