"""Simulations moved by OpenMM.

This file and :mod:`calculators.openmm` know nm and kJ/mol.
"""

import logging
import re
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from ase import Atoms

from calculators.evaluator import STATIC_ATOMS
from calculators.openmm import ENERGY, FORCE, LENGTH, create_system
from calculators.openmm_forces import import_openmm
from calculators.simulation.engine import WARM_UP, Sample, State, degrees_of_freedom
from calculators.simulation.quantities import PICOSECOND
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.topology import Residue, openmm_topology
from forcefield import errors
from forcefield.errors import ConfigError, EngineError, ForceFieldError
from forcefield.export import ExportedPotential
from forcefield.graph import build_graph
from forcefield.pieces import in_pieces

log = logging.getLogger(__name__)

VELOCITY = LENGTH / PICOSECOND
"""ASE's unit of velocity in one nm/ps."""

BAROSTAT_INTERVAL = 25
"""Steps between two attempts to change the volume."""


def openmm_platform(platform: str) -> tuple[str, str]:
    """OpenMM's platform and torch's device for what the user named.

    Without a GPU ``auto`` is OpenMM's Reference platform: the potential is all the work, and it
    integrates in double precision.

    Raises:
        ConfigError: There is no such platform here.
        EngineError: OpenMM is missing or too old.
    """
    openmm = import_openmm(", or choose --engine ase")
    count = openmm.Platform.getNumPlatforms()
    known = [openmm.Platform.getPlatform(i).getName() for i in range(count)]
    name = platform.lower()
    if name == "auto":
        gpu = "CUDA" in known and torch.cuda.is_available()
        return ("CUDA", "cuda") if gpu else ("Reference", "cpu")
    names = {item.lower(): item for item in known}
    if name not in names:
        raise ConfigError(
            f"--platform {platform}: this OpenMM has {', '.join(known)}; choose one of them or auto"
        )
    chosen = names[name]
    if chosen == "CUDA" and not torch.cuda.is_available():
        raise ConfigError("--platform cuda: torch finds no CUDA GPU here; choose --platform cpu")
    return chosen, "cuda" if chosen == "CUDA" else "cpu"


class OpenMMEngine:
    """Velocity Verlet, LangevinMiddle or Nosé-Hoover, with a Monte Carlo barostat for npt.

    Args:
        settings: The simulation.
        atoms: Starting structure, prepared.
        velocities: (n, 3), ASE's unit.
        potential: Loaded, on the device of the platform.
        residues: Names.
        pairs: Bonds within molecules, (b, 2): what the barostat moves as a whole. Scaled one by one,
            stiff atoms would allow only tiny changes of the volume.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        atoms: Atoms,
        velocities: np.ndarray,
        potential: ExportedPotential,
        residues: list[Residue],
        pairs: np.ndarray,
    ) -> None:
        self._openmm = openmm = import_openmm()
        self.settings = settings
        self.step = 0
        self.periodic = bool(atoms.pbc.all())
        self.force = _force_kind(settings, atoms, potential)
        system = create_system(
            openmm_topology(atoms, residues, pairs),
            potential,
            self.force,
            remove_cm_motion=settings.ensemble != "nve",
        )
        for index, mass in enumerate(atoms.get_masses().tolist()):
            system.setParticleMass(index, mass)
        self.barostat = self._add_barostat(system) if settings.ensemble == "npt" else None
        self.integrator = self._make_integrator(degrees_of_freedom(atoms, settings))
        self._seed(0)
        self.platform = openmm_platform(settings.platform)[0]
        properties = {
            "CPU": {"Threads": str(settings.threads or 1)},
            **{name: {"Precision": "mixed"} for name in ("CUDA", "HIP")},
        }
        self.context = openmm.Context(
            system,
            self.integrator,
            openmm.Platform.getPlatformByName(self.platform),
            properties.get(self.platform, {}),
        )
        self.restore(State(0, atoms.positions, velocities, atoms.cell.array))

    def _make_integrator(self, freedom: int) -> Any:
        openmm, settings = self._openmm, self.settings
        if settings.ensemble == "nve":
            return velocity_verlet(settings.timestep)
        if settings.thermostat == "langevin":
            return openmm.LangevinMiddleIntegrator(
                settings.temperature, settings.friction, settings.timestep
            )
        return openmm.NoseHooverIntegrator(
            settings.temperature, settings.friction, settings.timestep
        )

    def _add_barostat(self, system: Any) -> Any:
        openmm, settings = self._openmm, self.settings
        barostat = openmm.MonteCarloBarostat(
            settings.pressure, settings.temperature, BAROSTAT_INTERVAL
        )
        return system.getForce(system.addForce(barostat))

    def _seed(self, step: int) -> bool:
        """Seed what draws random numbers, which a new Context takes up; False if nothing does.

        By the step, too: a continued run does not draw those of its beginning again.
        """
        entropy = [self.settings.seed, 1, step] if step else [self.settings.seed, 1]
        seeds = np.random.SeedSequence(entropy).generate_state(2) % (2**31 - 1) + 1
        if self.barostat is not None:
            self.barostat.setRandomNumberSeed(int(seeds[0]))
        if hasattr(self.integrator, "setRandomNumberSeed"):
            self.integrator.setRandomNumberSeed(int(seeds[1]))
            return True
        return self.barostat is not None

    def advance(self, steps: int) -> None:
        """Integrate; see :class:`~calculators.simulation.engine.Engine`."""
        before = self.context.getStepCount()
        try:
            self.integrator.step(steps)
            self._moved = True
        except self._openmm.OpenMMException as error:
            raise _translate(error) from error
        finally:
            self.step += self.context.getStepCount() - before

    def sample(self) -> Sample:
        """Energies and coordinates of this step."""
        try:
            state = self.context.getState(positions=True, velocities=True, forces=True, energy=True)
        except self._openmm.OpenMMException as error:
            raise _translate(error) from error
        potential = state.getPotentialEnergy()._value
        kinetic = state.getKineticEnergy()._value
        conserved = None
        if self.settings.ensemble == "nvt" and self.settings.thermostat == "nose-hoover":
            # Before its first step the thermostat is at rest, and OpenMM 8.6 crashes when asked.
            bath = self.integrator.computeHeatBathEnergy()._value if self._moved else 0.0
            conserved = (potential + kinetic + bath) / ENERGY
        return Sample(
            self.step,
            LENGTH * state.getPositions(asNumpy=True)._value,
            VELOCITY * state.getVelocities(asNumpy=True)._value,
            state.getForces(asNumpy=True)._value / FORCE,
            potential / ENERGY,
            kinetic / ENERGY,
            conserved,
            self._cell(state),
        )

    def _cell(self, state: Any) -> np.ndarray | None:
        if not self.periodic:
            return None
        return LENGTH * state.getPeriodicBoxVectors(asNumpy=True)._value

    def state(self) -> State:
        """Positions and velocities, and OpenMM's checkpoint with random numbers and thermostat."""
        state = self.context.getState(positions=True, velocities=True)
        extra = {
            "checkpoint": np.frombuffer(self.context.createCheckpoint(), dtype=np.uint8),
            "platform": np.array(self._kind()),
        }
        return State(
            self.step,
            LENGTH * state.getPositions(asNumpy=True)._value,
            VELOCITY * state.getVelocities(asNumpy=True)._value,
            self._cell(state),
            extra,
        )

    def restore(self, state: State) -> None:
        """Go on from a state; exactly, if it is one of this platform and version."""
        try:
            if state.step and self._seed(state.step):
                self.context.reinitialize()
            if self.periodic and state.cell is not None:
                self.context.setPeriodicBoxVectors(*(state.cell / LENGTH))
            for _ in range(WARM_UP):
                self.context.setPositions(state.positions / LENGTH)
                self.context.getState(forces=True)
        except self._openmm.OpenMMException as error:
            raise _translate(error) from error
        self.context.setVelocities(state.velocities / VELOCITY)
        self.context.setStepCount(state.step)
        self.context.setTime(state.step * self.settings.timestep)
        made_by = str(state.extra.get("platform", ""))
        if made_by == self._kind():
            self.context.loadCheckpoint(state.extra["checkpoint"].tobytes())
        elif made_by:
            log.warning(
                "the checkpoint is one of the platform %s, this is %s: positions and velocities go on, "
                "random numbers and the state of a thermostat begin anew",
                made_by,
                self._kind(),
            )
        self.step = state.step
        self._moved = False

    def _kind(self) -> str:
        """What can read this engine's checkpoints."""
        return f"{self.platform} of OpenMM {self._openmm.__version__}"

    def describe(self) -> dict[str, Any]:
        """Integrator, platform and versions."""
        name = type(self.integrator).__name__
        return {
            "engine": f"OpenMM {self._openmm.__version__}",
            "integrator": "velocity Verlet (CustomIntegrator)"
            if name == "CustomIntegrator"
            else name,
            "platform": self.platform,
            "force": {"torch": "TorchForce", "python": "PythonForce"}[self.force],
        }


def velocity_verlet(time_step: float) -> Any:
    """Velocity Verlet, whose velocities belong to the same moment as the positions.

    Those of OpenMM's own VerletIntegrator are half a step older, which is in the way of reversing
    them and of continuing in another engine.

    Args:
        time_step: ps.
    """
    integrator = import_openmm().CustomIntegrator(time_step)
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    integrator.addComputePerDof("x", "x + dt*v")
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    return integrator


def _force_kind(settings: SimulationSettings, atoms: Atoms, potential: ExportedPotential) -> Any:
    if settings.force != "auto":
        return settings.force
    # Compiled, both take the same time on a CPU; on a GPU a PythonForce records the step of a molecule
    # and is four times as fast. A TorchForce with cuda_graphs would be faster still, and could not say
    # which force went wrong.
    recorded = (
        potential.device.type == "cuda" and len(atoms) <= STATIC_ATOMS and not atoms.pbc.any()
    )
    if settings.compile or recorded:
        return "python"
    graph = build_graph(
        atoms.positions, atoms.numbers, potential.cutoff, atoms.cell.array, atoms.pbc
    )
    # A TorchForce evaluates all pairs at once, which takes twice the time and several times the memory.
    if in_pieces(potential, graph.edge_index):
        return "python"
    searched = bool(atoms.pbc.any()) or len(atoms) > STATIC_ATOMS
    return "torch" if _torch_force_works(searched) else "python"


def _torch_force_works(searched: bool) -> bool:
    """Whether TorchForce runs here, with a neighbour list if pairs are searched; says why not."""
    if find_spec("openmmtorch") is None:
        return False
    from calculators.torchplugin import import_plugin, import_vesin

    try:
        import_plugin()
        if searched:
            import_vesin()
    except EngineError as error:
        log.warning("a PythonForce is taken in its place: %s", error)
        return False
    return True


def _translate(error: Exception) -> ForceFieldError:
    """One of the project's errors from the text that OpenMM keeps of it, else an EngineError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        for match in re.finditer(r"(?=\b(\w+Error)(?: at step \d+)?: (.*))", line):
            kind = getattr(errors, match[1], None)
            if isinstance(kind, type) and issubclass(kind, ForceFieldError):
                return kind(match[2])
    last = lines[-1] if lines else type(error).__name__
    if "NaN" in last:
        return errors.NonFiniteForceError(last)
    return EngineError(f"OpenMM stopped: {last}")
