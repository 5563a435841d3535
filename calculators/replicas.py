"""Many copies of one molecule at once: their energies and forces, and their motion.

A molecule alone leaves a GPU idle, and much of a CPU core, too. Copies that are evaluated together fill
it: independent trajectories, replica exchange, sampling for active learning. Positions, velocities and
forces are torch tensors that stay on the device; on a GPU a whole step is recorded as a CUDA graph.

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
from forcefield.errors import AbsurdForceError, ConfigError, NonFiniteForceError
from forcefield.export import ExportedPotential
from forcefield.neighbors import all_pairs
from forcefield.recording import record

STEPS_BETWEEN_CHECKS = 100
"""A check of the forces waits for the device, and a bad force stays bad."""


class Replicas:
    """Energies and forces of copies of a molecule outside a cell.

    Args:
        potential: Path of the exported file, or a loaded one.
        atomic_numbers: Of one copy, (n,); at most 64 atoms, for every pair of a copy is evaluated.
        number: Copies k.
        device: Where to load a file to.
        compile: Compile the potential, see :mod:`forcefield.compiled`.

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
        pairs = all_pairs(len(numbers))
        first = len(numbers) * torch.arange(number).repeat_interleave(pairs.shape[1])
        edge_index = pairs.repeat(1, number) + first
        self._constant = (
            torch.as_tensor(numbers).repeat(number).to(self.device),
            edge_index.to(self.device),
            torch.zeros(edge_index.shape[1], 3, dtype=torch.float64, device=self.device),
            torch.zeros(number, 3, 3, dtype=torch.float64, device=self.device),
            torch.arange(number).repeat_interleave(len(numbers)).to(self.device),
        )

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate all copies; nothing is checked.

        Args:
            positions: (k, n, 3), Å, float64, on the device.

        Returns:
            Energies (k,), eV, and forces (k, n, 3), eV/Å, float64, on the device.
        """
        with torch.enable_grad():  # Files of earlier versions differentiate.
            output = self.potential.module(positions.reshape(-1, 3), *self._constant)
        return output["energy"].detach(), output["forces"].detach().view_as(positions)


class LangevinReplicas:
    """Langevin dynamics of replicas, each on its own.

    BAOAB splitting (B. Leimkuhler and C. Matthews, "Robust and efficient configurational molecular
    sampling via Langevin dynamics", J. Chem. Phys. 138, 174102, 2013). Without friction it is velocity
    Verlet.

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
        self.energies, self.forces = (tensor.clone() for tensor in replicas(self.positions))
        self._worst = self._largest_forces()
        self._step: Callable[[], None] = self._take_step
        self._check()
        if device.type == "cuda":
            self._record()

    def run(self, steps: int) -> None:
        """Go on for so many steps.

        Raises:
            NonFiniteForceError: A force is NaN or infinite.
            AbsurdForceError: A force is larger than ``max_force``. Either error names replica and atom;
                it comes up to 100 steps late.
        """
        for _ in range(steps):
            self._step()
            self.steps += 1
            if self.steps % STEPS_BETWEEN_CHECKS == 0:
                self._check()
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
        energies, forces = self.replicas(self.positions)
        self.energies.copy_(energies)
        self.forces.copy_(forces)
        self.velocities.add_(kick * self.forces)
        self._worst.copy_(torch.maximum(self._worst, self._largest_forces()))

    def _record(self) -> None:
        """Record a step; the steps that are taken meanwhile do not count."""
        state = (self.positions, self.velocities, self.energies, self.forces, self._worst)
        before = [tensor.clone() for tensor in state]
        randomness = self._generator.get_state()
        with torch.cuda.device(self.replicas.device):
            self._step = record(self._take_step, (self._generator,))
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        self._generator.set_state(randomness)

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
