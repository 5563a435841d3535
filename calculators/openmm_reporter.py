"""A guard for OpenMM simulations, whatever forces are in them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from calculators.evaluator import DEFAULT_MAX_FORCE, check_max_force
from calculators.openmm_forces import FORCE
from forcefield.errors import AbsurdForceError, NonFiniteForceError, OutOfDomainError

if TYPE_CHECKING:
    import openmm
    from openmm.app import Simulation

DEFAULT_MAX_TEMPERATURE = 10_000.0
"""K, of the whole System. Nine atoms at 1000 K fluctuate by some 300 K."""


class StabilityReporter:
    """Stops a simulation whose positions, forces, energy or temperature make no sense any more.

    The forces of this package stop by themselves; this watches the whole System, classical terms and
    other people's forces included, at the cost of one evaluation per report. It is what stops a
    TorchForce with ``cuda_graphs``, which cannot stop by itself.

        simulation.reporters.append(StabilityReporter(1000))

    Args:
        interval: Steps between two looks.
        max_force: eV/Å, largest force on a particle, from all terms together; ``math.inf`` for no
            limit.
        max_temperature: K, largest kinetic temperature of the whole System.
    """

    def __init__(
        self,
        interval: int = 100,
        max_force: float = DEFAULT_MAX_FORCE,
        max_temperature: float = DEFAULT_MAX_TEMPERATURE,
    ) -> None:
        self.interval = int(interval)
        self.max_force = check_max_force(max_force)
        self.max_temperature = float(max_temperature)

    def describeNextReport(self, simulation: "Simulation") -> dict[str, Any]:  # noqa: N802
        """OpenMM's reporter protocol: when the next report is due and what it needs."""
        steps = self.interval - simulation.currentStep % self.interval
        include = ["positions", "velocities", "forces", "energy"]
        return {"steps": steps, "periodic": False, "include": include}

    def report(self, simulation: "Simulation", state: "openmm.State") -> None:
        """Look at the state.

        Raises:
            NonFiniteForceError: A position, a force or an energy is NaN or infinite.
            AbsurdForceError: A force is larger than ``max_force``.
            OutOfDomainError: The kinetic temperature is higher than ``max_temperature``.

        Each names the step, and the atom and its element.
        """
        where = f"step {simulation.currentStep}"
        atoms = list(simulation.topology.atoms())
        forces = state.getForces(asNumpy=True)._value / FORCE
        velocities = state.getVelocities(asNumpy=True)._value
        for what, values in (
            ("position", state.getPositions(asNumpy=True)._value),
            ("force", forces),
            ("velocity", velocities),
        ):
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise NonFiniteForceError(
                    f"{where}: the {what} of {_name(atoms, bad[0])} is not finite; "
                    f"{len(bad)} of {len(values)} atoms are affected"
                )
        energy = state.getPotentialEnergy()._value
        if not np.isfinite(energy):
            raise NonFiniteForceError(f"{where}: the potential energy is not finite: {energy}")
        sizes = np.linalg.norm(forces, axis=1)
        worst = int(sizes.argmax())
        if sizes[worst] > self.max_force:
            raise AbsurdForceError(
                f"{where}: the force on {_name(atoms, worst)} is {sizes[worst]:.4g} eV/Å, more than "
                f"max_force = {self.max_force:g} eV/Å"
            )
        masses = _masses(simulation.system)
        temperature = _temperature(simulation.system, masses, state.getKineticEnergy())
        if not temperature <= self.max_temperature:
            fastest = int((masses * (velocities**2).sum(axis=1)).argmax())
            raise OutOfDomainError(
                f"{where}: the kinetic temperature is {temperature:.4g} K, more than "
                f"max_temperature = {self.max_temperature:g} K; {_name(atoms, fastest)} has the "
                "highest kinetic energy"
            )


def _name(atoms: list[Any], index: int) -> str:
    element = atoms[index].element if index < len(atoms) else None
    return f"atom {index} ({'no element' if element is None else element.symbol})"


def _masses(system: "openmm.System") -> np.ndarray:
    """Masses in amu, (n,)."""
    return np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])


def _temperature(system: "openmm.System", masses: np.ndarray, kinetic_energy: Any) -> float:
    """Kinetic temperature in K; 0 if nothing can move."""
    import openmm
    from openmm import unit

    freedom = 3 * np.count_nonzero(masses)
    for index in range(system.getNumConstraints()):
        first, second, _ = system.getConstraintParameters(index)
        freedom -= bool(masses[first] > 0 or masses[second] > 0)
    if any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces()):
        freedom -= 3
    if freedom <= 0:
        return 0.0
    return float((2 * kinetic_energy / (freedom * unit.MOLAR_GAS_CONSTANT_R)) / unit.kelvin)
