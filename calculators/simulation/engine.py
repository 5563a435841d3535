"""What the engines have in common: steps forward, a look at the state, a state to come back to.

Positions are in Å and unwrapped, velocities in ASE's unit (Å / (Å sqrt(amu/eV))), energies in eV.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms, units

from calculators.simulation.settings import SimulationSettings
from forcefield.errors import ConfigError

WARM_UP = 4
"""Evaluations before the first step: TorchScript compiles in the first three, and rounds differently
afterwards. With them, a run and its continuation do the same arithmetic at every step."""


@dataclass(frozen=True)
class Sample:
    """What is recorded of one step.

    Attributes:
        step: Steps since the start of the run.
        positions: (n, 3), Å.
        velocities: (n, 3), ASE's unit.
        forces: (n, 3), eV/Å.
        potential: Potential energy, eV.
        kinetic: Kinetic energy, eV.
        conserved: Energy of the extended system, eV; None where the integrator has none.
        cell: (3, 3), Å, of a periodic system.
    """

    step: int
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray
    potential: float
    kinetic: float
    conserved: float | None = None
    cell: np.ndarray | None = None

    @property
    def total(self) -> float:
        """Potential and kinetic energy, eV."""
        return self.potential + self.kinetic

    def is_finite(self) -> bool:
        """Whether positions and energies are numbers."""
        numbers = self.potential + self.kinetic + self.positions.sum() + self.forces.sum()
        return bool(np.isfinite(numbers))


@dataclass(frozen=True)
class State:
    """From where a run can go on.

    Attributes:
        step: Steps since the start of the run.
        positions: (n, 3), Å.
        velocities: (n, 3), ASE's unit.
        cell: (3, 3), Å, of a periodic system.
        extra: What only the engine understands: random numbers, thermostat, its own checkpoint.
    """

    step: int
    positions: np.ndarray
    velocities: np.ndarray
    cell: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)


class Engine(Protocol):
    """A molecule in motion."""

    step: int
    """Steps since the start of the run."""

    def advance(self, steps: int) -> None:
        """Integrate.

        Raises:
            ForceFieldError: The potential gave forces that no simulation can go on with.
        """

    def sample(self) -> Sample:
        """Energies and coordinates of this step."""

    def state(self) -> State:
        """Everything that a continuation needs."""

    def restore(self, state: State) -> None:
        """Go on from a state, of this engine or (without ``extra``) of any."""

    def describe(self) -> dict[str, Any]:
        """Integrator, platform and versions, for the record."""


def degrees_of_freedom(atoms: Atoms, settings: SimulationSettings) -> int:
    """Degrees of freedom that share the kinetic energy: those that the run does not hold at zero.

    Args:
        atoms: The starting structure.
        settings: Engine, ensemble and starting velocities.
    """
    freedom = 3 * len(atoms)
    if not thermalises_centre(settings):
        freedom -= 3
    if removes_rotation(atoms, settings):
        freedom -= rotational_freedom(atoms)
    return max(1, freedom)


def thermalises_centre(settings: SimulationSettings) -> bool:
    """Whether the centre of mass takes part: for ASE's Langevin barostat, which counts on it."""
    return settings.engine == "ase" and settings.ensemble == "npt"


def removes_rotation(atoms: Atoms, settings: SimulationSettings) -> bool:
    """Whether the run is without angular momentum: at constant energy, outside a cell.

    With a thermostat rotation belongs to the ensemble. Velocities from a file may have one, or none, as
    those of another such run.
    """
    if settings.ensemble != "nve" or atoms.pbc.any():
        return False
    # Checkpoints of older versions have no velocities of the start.
    return settings.velocities != "file" or (atoms.has("momenta") and not _rotates(atoms))


def _rotates(atoms: Atoms) -> bool:
    """Whether the atoms have an angular momentum, beyond what a file's digits leave of none."""
    masses, positions, velocities = atoms.get_masses(), atoms.positions, atoms.get_velocities()
    drift = masses @ velocities / masses.sum()
    lengths = np.linalg.norm(positions - masses @ positions / masses.sum(), axis=1)
    largest = float(masses @ (lengths * np.linalg.norm(velocities - drift, axis=1)))
    momentum = angular_momentum(masses, positions, velocities - drift)
    return bool(np.linalg.norm(momentum) > 1e-4 * max(largest, 1e-12))


def rotational_freedom(atoms: Atoms) -> int:
    """3, for a linear molecule 2, for an atom 0."""
    moments = np.linalg.eigvalsh(inertia(atoms.get_masses(), atoms.positions))
    return int((moments > 1e-4 * max(moments[-1], 1e-12)).sum())


def inertia(masses: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Inertia tensor about the centre of mass, (3, 3), amu Å²."""
    r = positions - masses @ positions / masses.sum()
    second = (masses[:, None] * r).T @ r
    return np.trace(second) * np.eye(3) - second


def angular_momentum(
    masses: np.ndarray, positions: np.ndarray, velocities: np.ndarray
) -> np.ndarray:
    """About the centre of mass, (3,), amu Å times the unit of the velocities."""
    r = positions - masses @ positions / masses.sum()
    return np.cross(r, masses[:, None] * velocities).sum(axis=0)


def starting_velocities(atoms: Atoms, settings: SimulationSettings) -> np.ndarray:
    """Velocities at the start, (n, 3), ASE's unit.

    Maxwell-Boltzmann velocities lose what the run holds at zero: the momentum, and at constant energy
    outside a cell the angular momentum. Both are projections orthogonal in the kinetic energy, so
    the rest is distributed as it should be at the temperature.

    Raises:
        ConfigError: Velocities of the file are asked for, and it has none.
    """
    masses = atoms.get_masses()
    if settings.velocities == "file":
        if "momenta" not in atoms.arrays:
            raise ConfigError(
                "--velocities file, but the structure's file holds none: give the final.extxyz of "
                "another run, or leave the option out"
            )
        velocities = atoms.get_velocities()
        return velocities - masses @ velocities / masses.sum()
    if settings.velocities == "zero":
        return np.zeros((len(atoms), 3))
    random = np.random.default_rng([settings.seed, 0])
    width = np.sqrt(units.kB * settings.temperature / masses)
    velocities = width[:, None] * random.standard_normal((len(atoms), 3))
    velocities -= masses @ velocities / masses.sum()
    if removes_rotation(atoms, settings):
        r = atoms.positions - masses @ atoms.positions / masses.sum()
        momentum = angular_momentum(masses, atoms.positions, velocities)
        # A linear molecule does not turn about its axis.
        spin = np.linalg.pinv(inertia(masses, atoms.positions), rcond=1e-6) @ momentum
        velocities -= np.cross(spin, r)
    return velocities


def torch_dtype(settings: SimulationSettings) -> torch.dtype | None:
    """The precision asked for, as torch has it."""
    return None if settings.dtype is None else getattr(torch, settings.dtype)
