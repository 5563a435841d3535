"""OpenMM forces and systems from an exported potential.

    from calculators.openmm import create_system
    system = create_system(pdb.topology, "runs/ethanol/potential.pt")
    simulation = openmm.app.Simulation(pdb.topology, system, integrator)

:func:`torch_force` runs the potential in C++ through the TorchForce plugin, :func:`python_force`
calls it from OpenMM through Python, for where the plugin is missing. Both take the same arguments
and give the same forces. This is the only file that knows nm and kJ/mol.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calculators.evaluator import DEFAULT_SKIN, Evaluator, open_potential
from forcefield import units
from forcefield.errors import (
    ConfigError,
    EngineError,
    ForceFieldError,
    NonFiniteForceError,
    UnknownElementError,
)
from forcefield.export import ExportedPotential

if TYPE_CHECKING:
    import openmm
    import openmmtorch
    from openmm.app import Simulation, Topology

LENGTH = units.NANOMETER
"""Å in one nm."""

ENERGY = units.EV / units.KJ_PER_MOL
"""kJ/mol in one eV."""

FORCE = ENERGY * LENGTH
"""kJ/mol/nm in one eV/Å."""

PotentialSource = str | Path | ExportedPotential


def torch_force(
    potential: PotentialSource,
    atoms: "Topology | Sequence[int] | np.ndarray",
    *,
    periodic: bool | None = None,
    skin: float = DEFAULT_SKIN,
    device: str = "cpu",
    force_group: int = 0,
    name: str = "HEGNN",
) -> "openmmtorch.TorchForce":
    """The potential as an ``openmmtorch.TorchForce``, run by OpenMM at every step.

    Forces that are not finite stop the simulation with an ``openmm.OpenMMException`` that names the
    atom. A Context compiles the model during its first three steps.

    The plugin cannot read a force back from XML under OpenMM 8.6 (the process crashes, also in
    ``copy.deepcopy(system)``): keep checkpoints or states, and make the System anew. A PythonForce
    survives XML.

    Args:
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        atoms: An OpenMM Topology or the atomic numbers, in the order of the System's particles.
        periodic: Whether the System's box counts; by default if the topology has box vectors.
        skin: Å by which neighbour lists outlive the cutoff.
        device: Where the model runs: ``"cuda"`` on OpenMM's CUDA platform, else ``"cpu"``.
        force_group: OpenMM's force group.
        name: OpenMM's name of the force.

    Raises:
        CheckpointError: There is no such file, or it is not an exported potential.
        UnknownElementError: The potential does not know an element, or a particle has none.
        EngineError: The plugin is missing or does not work with the installed torch.
    """
    from calculators.torchforce import import_plugin, wrap_potential

    plugin = import_plugin()
    exported = open_potential(potential, device)
    numbers = _atomic_numbers(atoms)
    exported.check_elements(numbers)
    box = _is_periodic(atoms, periodic)
    module = wrap_potential(
        exported, numbers, length=LENGTH, energy=ENERGY, periodic=box, skin=skin
    )
    force = plugin.TorchForce(module)
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(box)
    force.setForceGroup(force_group)
    force.setName(name)
    return force


def python_force(
    potential: PotentialSource,
    atoms: "Topology | Sequence[int] | np.ndarray",
    *,
    periodic: bool | None = None,
    skin: float = DEFAULT_SKIN,
    device: str = "cpu",
    force_group: int = 0,
    name: str = "HEGNN",
) -> "openmm.PythonForce":
    """The potential as an ``openmm.PythonForce``: no plugin, some 0.05 ms per step more.

    Positions or forces that are not finite stop the simulation with an ``openmm.OpenMMException``
    that names the step and the atom. Arguments and errors are those of :func:`torch_force`.
    """
    openmm = _import_openmm()
    exported = open_potential(potential, device)
    numbers = _atomic_numbers(atoms)
    box = _is_periodic(atoms, periodic)
    force = openmm.PythonForce(_Callback(exported, numbers, box, skin))
    force.setUsesPeriodicBoundaryConditions(box)
    force.setForceGroup(force_group)
    force.setName(name)
    return force


def create_system(
    topology: "Topology",
    potential: PotentialSource,
    engine: Literal["torch", "python"] = "torch",
    *,
    remove_cm_motion: bool = True,
    **options: Any,
) -> "openmm.System":
    """A complete System in which the potential gives all forces.

    Particles have the masses of their elements and there are no constraints, so the time step has
    to resolve the vibrations of hydrogen (0.5 fs). Box vectors are those of the topology.

    Args:
        topology: The molecules; bonds are not used.
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        engine: ``"torch"`` for :func:`torch_force`, ``"python"`` for :func:`python_force`.
        remove_cm_motion: Add a CMMotionRemover, as OpenMM's own force fields do: thermostats act on
            atoms and would let a molecule drift away. It costs an isolated system no energy
            conservation.
        **options: Of the force: ``periodic``, ``skin``, ``device``, ``force_group``, ``name``.

    Raises:
        ConfigError: Unknown engine.
        CheckpointError, UnknownElementError, EngineError: As for :func:`torch_force`.
    """
    openmm = _import_openmm()
    forces = {"torch": torch_force, "python": python_force}
    if engine not in forces:
        raise ConfigError(f"unknown engine {engine!r}; choose 'torch' or 'python'")
    force = forces[engine](potential, topology, **options)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(force)
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


class StabilityReporter:
    """Stops a simulation whose positions, forces or energy are no longer finite.

    The forces of this module stop by themselves; this watches the whole System, at the cost of one
    evaluation per report. ``simulation.reporters.append(StabilityReporter(1000))``.

    Args:
        interval: Steps between two looks.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = int(interval)

    def describeNextReport(self, simulation: "Simulation") -> dict[str, Any]:  # noqa: N802
        """OpenMM's reporter protocol: when the next report is due and what it needs."""
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": False, "include": ["positions", "forces", "energy"]}

    def report(self, simulation: "Simulation", state: "openmm.State") -> None:
        """Look at the state.

        Raises:
            NonFiniteForceError: Names the step, and the atom and its element.
        """
        step = simulation.currentStep
        elements = [atom.element for atom in simulation.topology.atoms()]
        for what, values in (
            ("position", state.getPositions(asNumpy=True)._value),
            ("force", state.getForces(asNumpy=True)._value),
        ):
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                element = elements[bad[0]]
                symbol = "no element" if element is None else element.symbol
                raise NonFiniteForceError(
                    f"step {step}: the {what} of atom {bad[0]} ({symbol}) is not finite; "
                    f"{len(bad)} of {len(elements)} atoms are affected"
                )
        energy = state.getPotentialEnergy()._value
        if not np.isfinite(energy):
            raise NonFiniteForceError(f"step {step}: the potential energy is not finite: {energy}")


class _Callback:
    """What PythonForce calls: a State in, energy in kJ/mol and forces in kJ/mol/nm out."""

    def __init__(
        self, potential: ExportedPotential, numbers: np.ndarray, periodic: bool, skin: float
    ) -> None:
        self.evaluator = Evaluator(potential, numbers, skin)
        self.periodic = periodic
        self.pbc = np.array([periodic] * 3)

    def __call__(self, state: "openmm.State") -> tuple[float, np.ndarray]:
        # Quantities of numpy arrays hold them as they are; value_in_unit would copy and multiply.
        positions = LENGTH * state.getPositions(asNumpy=True)._value
        cell = None
        if self.periodic:
            cell = LENGTH * state.getPeriodicBoxVectors(asNumpy=True)._value
        if len(positions) != len(self.evaluator.numbers):
            raise EngineError(
                f"this force was made for {len(self.evaluator.numbers)} atoms, the System has "
                f"{len(positions)} particles"
            )
        try:
            value = self.evaluator(positions, cell, self.pbc)
        except ForceFieldError as error:
            # OpenMM keeps only the text of an exception.
            message = f"{type(error).__name__} at step {state.getStepCount()}: {error}"
            raise type(error)(message) from error
        return ENERGY * value.energy, FORCE * value.forces


def _import_openmm() -> Any:
    try:
        import openmm
    except ImportError as error:
        raise EngineError(
            f'OpenMM cannot be imported ({error}); pip install "hegnn-forcefield[openmm]"'
        ) from error
    if not hasattr(openmm, "PythonForce"):
        raise EngineError(f"OpenMM {openmm.__version__} is too old; pip install 'openmm>=8.6.1'")
    return openmm


def _atomic_numbers(atoms: "Topology | Sequence[int] | np.ndarray") -> np.ndarray:
    """Atomic numbers (n,) of a Topology or a list.

    Raises:
        UnknownElementError: A particle of the topology has no element.
    """
    if not hasattr(atoms, "atoms"):
        return np.asarray(atoms, dtype=np.int64)
    for atom in atoms.atoms():
        if atom.element is None:
            raise UnknownElementError(
                f"particle {atom.index} ({atom.name} of residue {atom.residue.name} "
                f"{atom.residue.id}) has no element: virtual sites and extra particles carry no "
                "forces of a machine-learned potential, remove them from the topology"
            )
    return np.array([atom.element.atomic_number for atom in atoms.atoms()], dtype=np.int64)


def _is_periodic(atoms: "Topology | Sequence[int] | np.ndarray", periodic: bool | None) -> bool:
    if periodic is not None:
        return periodic
    if not hasattr(atoms, "getPeriodicBoxVectors"):
        return False
    return atoms.getPeriodicBoxVectors() is not None
