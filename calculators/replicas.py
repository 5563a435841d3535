"""Many copies of one molecule at once: their energies and forces, and their motion.

A molecule alone leaves a GPU idle, and much of a CPU core, too. Copies that are evaluated together fill
it: independent trajectories, replica exchange, sampling for active learning. Positions, velocities and
forces are torch tensors that stay on the device; on a GPU a whole step is recorded as a CUDA graph. Of the
pairs of atoms only those within the cutoff are evaluated, see :mod:`calculators.replica_pairs`.

    replicas = Replicas("potential.pt", atoms.numbers, 1000, device="cuda", compile=True)
    dynamics = LangevinReplicas(replicas, atoms.positions, temperature=300.0, timestep=0.5)
    dynamics.run(2000)
    dynamics.positions            # (1000, n, 3), Å

Shapes: replicas ``k``, atoms ``n`` of each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.data import atomic_masses
from torch import Tensor

from calculators.evaluator import (
    DEFAULT_MAX_FORCE,
    STATIC_ATOMS,
    check_max_force,
    open_potential,
)
from calculators.guard import atom_name
from calculators.replica_pairs import ClosePairs, PairList
from forcefield.errors import AbsurdForceError, ConfigError, NonFiniteForceError
from forcefield.export import ExportedPotential
from forcefield.recording import record

STEPS_BETWEEN_CHECKS = 100
"""A check of the forces waits for the device, and a bad force stays bad."""


class Replicas:
    """Energies and forces of copies of a molecule outside a cell.

    Args:
        potential: Path of the exported file, or a loaded one.
        atomic_numbers: Of one copy, (n,); at most 64 atoms, for every pair of a copy is looked at.
        number: Copies k.
        device: Where to load a file to.
        compile: Compile the potential, see :mod:`forcefield.compiled`.

    Attributes:
        pairs: Finds the pairs within the cutoff.

    Raises:
        CheckpointError: There is no such file, or it is not an exported potential.
        UnknownElementError: The potential does not know one of the elements.
        ConfigError: Too many atoms, or no copies.
        CompilationError: ``compile`` is set and the potential cannot be compiled here.
    """

    def __init__(
        self,
        potential: str | Path | ExportedPotential,
        atomic_numbers: Sequence[int] | np.ndarray,
        number: int,
        *,
        device: str = "cpu",
        compile: bool = False,
    ) -> None:
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        if not 2 <= len(numbers) <= STATIC_ATOMS:
            raise ConfigError(
                f"replicas are molecules of 2 to {STATIC_ATOMS} atoms, found {len(numbers)}"
            )
        if number < 1:
            raise ConfigError(f"the number of replicas must be at least 1, found {number}")
        self.potential = open_potential(potential, device, compile=compile)
        self.potential.check_elements(numbers)
        self.numbers = numbers
        self.number = number
        self.device = self.potential.device
        self.pairs = ClosePairs(len(numbers), number, self.potential.cutoff, self.device)
        double: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        self._atoms = torch.as_tensor(numbers).repeat(number).to(self.device)
        self._no_shifts = torch.zeros(self.pairs.every.shape[1], 3, **double)
        self._no_cells = torch.zeros(number, 3, 3, **double)
        self._batch = torch.arange(number).repeat_interleave(len(numbers)).to(self.device)

    def __call__(
        self, positions: Tensor, edge_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate all copies; nothing is checked.

        Args:
            positions: (k, n, 3), Å, float64, on the device.
            edge_index: Pairs (2, e) among which are all within the cutoff; None to look for these,
                which waits for the device. With ``pairs.every``, all there are, nothing waits, and
                the call can be recorded.

        Returns:
            Energies (k,), eV, and forces (k, n, 3), eV/Å, float64, on the device.
        """
        if edge_index is None:
            edge_index = self.pairs.edges(positions)
        inputs = (
            positions.reshape(-1, 3),
            self._atoms,
            edge_index,
            self._no_shifts[: edge_index.shape[1]],
            self._no_cells,
            self._batch,
        )
        with torch.enable_grad():  # Files of earlier versions differentiate.
            output = self.potential.module(*inputs)
        return output["energy"].detach(), output["forces"].detach().view_as(positions)


class LangevinReplicas:
    """Langevin dynamics of replicas, each on its own.

    BAOAB splitting (B. Leimkuhler and C. Matthews, "Robust and efficient configurational molecular
    sampling via Langevin dynamics", J. Chem. Phys. 138, 174102, 2013). Without friction it is velocity
    Verlet.

    Positions and velocities may be changed in place between runs, ``dynamics.positions[k] = ...``; a run
    begins with the energies and forces of the positions that it finds, ``run(0)`` does no more than that.

    Args:
        replicas: What gives the forces.
        positions: Where they start, (n, 3) for all or (k, n, 3), Å.
        temperature: K; one number or one for each replica. Velocities are drawn from it.
        timestep: fs.
        friction: 1/ps.
        seed: Fixes velocities and noise.
        max_force: eV/Å; a larger force on an atom stops :meth:`run`. ``math.inf`` for no limit.

    Attributes:
        positions: (k, n, 3), Å.
        velocities: (k, n, 3), Å per ASE's unit of time.
        forces: (k, n, 3), eV/Å.
        energies: (k,), eV.
        steps: Steps so far.
    """

    def __init__(
        self,
        replicas: Replicas,
        positions: np.ndarray,
        *,
        temperature: float | Sequence[float] = 300.0,
        timestep: float = 0.5,
        friction: float = 1.0,
        seed: int = 0,
        max_force: float = DEFAULT_MAX_FORCE,
    ) -> None:
        shape = (replicas.number, len(replicas.numbers), 3)
        places = np.asarray(positions, dtype=np.float64)
        if places.shape not in (shape, shape[1:]):
            raise ConfigError(
                f"positions of shape {shape[1:]} or {shape} needed, found {places.shape}"
            )
        kelvin = np.asarray(temperature, dtype=np.float64)
        if kelvin.shape not in ((), shape[:1]) or not (kelvin >= 0).all():
            raise ConfigError(
                f"one temperature in K or {shape[0]} of them needed, found {temperature}"
            )
        if not (timestep > 0 and friction >= 0):
            raise ConfigError("timestep must be above zero, and friction not below it")
        device = replicas.device
        double: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.replicas = replicas
        self.max_force = check_max_force(max_force)
        self.steps = 0
        self._generator = torch.Generator(device).manual_seed(seed)
        self._time = timestep * units.fs
        masses = torch.tensor(atomic_masses[replicas.numbers], **double).view(1, -1, 1)
        self._inverse_masses = 1.0 / masses
        energy = torch.tensor(units.kB * kelvin, **double).expand(shape[0]).view(-1, 1, 1)
        self._speeds = torch.sqrt(energy * self._inverse_masses)
        self._memory = float(np.exp(-friction / (1e3 * units.fs) * self._time))
        self.positions = torch.tensor(np.broadcast_to(places, shape), **double)
        self.velocities = self._speeds * self._noise()
        # Each has a list of its own: a recording is for one length.
        self._pairs = self._choose_pairs()
        results = replicas(self.positions, self._pairs.edges(self.positions))
        self.energies, self.forces = (tensor.clone() for tensor in results)
        self._evaluated = self.positions.clone()
        self._worst = self._largest_forces()
        self._step: Callable[[], None] = self._take_step
        self._check()
        self._record()

    def run(self, steps: int) -> None:
        """Go on for so many steps.

        Raises:
            NonFiniteForceError: A force is NaN or infinite.
            AbsurdForceError: A force is larger than ``max_force``. Either error names replica and atom;
                it comes up to 100 steps late. Once the positions are repaired, runs go on.
        """
        self._begin()
        last = self.steps + steps
        while self.steps < last:
            to_check = STEPS_BETWEEN_CHECKS - self.steps % STEPS_BETWEEN_CHECKS
            self._advance(min(to_check, last - self.steps))
            self._check()

    def _begin(self) -> None:
        """Forces of positions that somebody changed, and no memory of those of an earlier run.

        Whoever writes through an array that shares the memory leaves no trace but the numbers.
        """
        changed = not torch.equal(self.positions, self._evaluated)
        if changed:
            self._evaluate()
            while self._pairs.overflowed():
                self._pairs.grow()
                self._record()
                self._evaluate()
            self._evaluated.copy_(self.positions)
        self._worst.copy_(self._largest_forces())
        if changed:
            self._check()

    def temperatures(self) -> Tensor:
        """Of the motion in this moment, (k,), K."""
        energies = 0.5 * (self.velocities.square() / self._inverse_masses).sum((1, 2))
        return energies / (1.5 * len(self.replicas.numbers) * units.kB)

    def _noise(self) -> Tensor:
        shape = (self.replicas.number, len(self.replicas.numbers), 3)
        return torch.randn(
            shape, dtype=torch.float64, device=self.replicas.device, generator=self._generator
        )

    def _take_step(self) -> None:
        kick = 0.5 * self._time * self._inverse_masses
        self.velocities.add_(kick * self.forces)
        self.positions.add_(self.velocities, alpha=0.5 * self._time)
        if self._memory < 1.0:
            noise = (1.0 - self._memory**2) ** 0.5 * self._speeds * self._noise()
            self.velocities.mul_(self._memory).add_(noise)
        self.positions.add_(self.velocities, alpha=0.5 * self._time)
        self._evaluate()
        self.velocities.add_(kick * self.forces)
        self._worst.copy_(torch.maximum(self._worst, self._largest_forces()))

    def _evaluate(self) -> None:
        """Energies and forces of the positions, into the tensors that a recording knows."""
        energies, forces = self.replicas(self.positions, self._pairs.edges(self.positions))
        self.energies.copy_(energies)
        self.forces.copy_(forces)

    def _choose_pairs(self) -> ClosePairs | PairList:
        if self.replicas.device.type == "cuda":
            return PairList(self.replicas.pairs, self.positions)
        return self.replicas.pairs

    def _advance(self, steps: int) -> None:
        """Take steps, and take them again if more pairs came close than the list holds."""
        before = self._state()
        try:
            for _ in range(steps):
                self._step()
            while self._pairs.overflowed():
                self._go_back(before)
                self._pairs.grow()
                self._record()
                for _ in range(steps):
                    self._step()
        except KeyboardInterrupt:
            # In the middle of a step, and nobody has looked whether pairs are missing.
            self._go_back(before)
            raise
        self.steps += steps
        self._evaluated.copy_(self.positions)

    def _record(self) -> None:
        """On a GPU, record a step; the steps that are taken meanwhile do not count."""
        if self.replicas.device.type != "cuda":
            return
        before = self._state()
        self._step = self._take_step  # A recording that there was gives its memory back.
        try:
            with torch.cuda.device(self.replicas.device):
                self._step = record(self._take_step, (self._generator,))
        finally:
            self._go_back(before)

    def _state(self) -> tuple[list[Tensor], Tensor]:
        return [tensor.clone() for tensor in self._changing()], self._generator.get_state()

    def _go_back(self, state: tuple[list[Tensor], Tensor]) -> None:
        for tensor, value in zip(self._changing(), state[0], strict=True):
            tensor.copy_(value)
        self._generator.set_state(state[1])

    def _changing(self) -> tuple[Tensor, ...]:
        return self.positions, self.velocities, self.energies, self.forces, self._worst

    def _largest_forces(self) -> Tensor:
        """Squares of the forces on each atom so far, (k, n)."""
        return self.forces.square().sum(2)

    def _check(self) -> None:
        # NaN is not smaller than anything.
        good = self._worst < self.max_force**2
        if bool(good.all()):
            return
        replica, atom = (int(index) for index in torch.nonzero(torch.logical_not(good))[0])
        size = float(self._worst[replica, atom]) ** 0.5
        where = f"the force on {atom_name(self.replicas.numbers, atom)} of replica {replica}"
        when = f"within the {STEPS_BETWEEN_CHECKS} steps before step {self.steps}"
        if not np.isfinite(size):
            raise NonFiniteForceError(f"{where} is not finite {when}")
        raise AbsurdForceError(
            f"{where} is {size:.4g} eV/Å {when}, more than max_force = {self.max_force:g} eV/Å"
        )
