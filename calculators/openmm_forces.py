"""The potential as a force of OpenMM: for all particles of a System, or for some of them.

:func:`torch_force` runs the potential in C++ through the TorchForce plugin, :func:`python_force`
calls it from OpenMM through Python, for where the plugin is missing. Both give the same forces.
nm and kJ/mol live here and in the other files of this name, nowhere else.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calculators.evaluator import (
    DEFAULT_MAX_FORCE,
    Evaluator,
    check_max_force,
    open_potential,
)
from calculators.openmm_particles import (
    atomic_numbers,
    check_elements,
    check_particles,
    count_particles,
    is_periodic,
)
from forcefield import units
from forcefield.errors import ConfigError, EngineError, ForceFieldError
from forcefield.export import ExportedPotential
from forcefield.neighbors import DEFAULT_SKIN, check_skin

if TYPE_CHECKING:
    import openmm
    import openmmtorch
    from openmm.app import Topology

LENGTH = units.NANOMETER
"""Å in one nm."""

ENERGY = units.EV / units.KJ_PER_MOL
"""kJ/mol in one eV."""

FORCE = ENERGY * LENGTH
"""kJ/mol/nm in one eV/Å."""

TURNED_DOWN = 1e10
"""kJ/mol; energy of a structure that a minimiser or a Monte Carlo move tried out and that the potential
knows nothing about. It is larger than any other, so that the structure is not taken."""

PotentialSource = str | Path | ExportedPotential


def torch_force(
    potential: PotentialSource,
    atoms: "Topology | Sequence[int] | np.ndarray",
    *,
    particles: Iterable[int] | None = None,
    periodic: bool | None = None,
    skin: float = DEFAULT_SKIN,
    max_force: float = DEFAULT_MAX_FORCE,
    scale_parameter: str | None = None,
    cuda_graphs: bool = False,
    device: str = "cpu",
    compile: bool = False,
    force_group: int = 0,
    name: str = "HEGNN",
) -> "openmmtorch.TorchForce":
    """The potential as an ``openmmtorch.TorchForce``, run by OpenMM at every step.

    Forces that are not finite or absurdly large stop the simulation with an
    ``openmm.OpenMMException`` that names the atom; ``simulation.currentStep`` is the step. Structures
    that OpenMM's minimiser tries out and that are bad get an energy of 1e10 kJ/mol instead, see
    docs/openmm.md. TorchScript prepares the model during the first three steps of a Context.

    To read it back from XML, use :func:`calculators.openmm_xml.system_from_xml`: OpenMM's own
    reader (also ``copy.deepcopy(system)``) crashes the process with today's plugins.

    Args:
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        atoms: An OpenMM Topology or the atomic numbers, of all particles of the System and in their
            order (0 for a particle without an element that the force does not act on).
        particles: Indices of the System's particles that the force acts on, in any order, if not on
            all. They see each other only; all others (classical atoms, virtual sites) see nothing.
        periodic: Whether the System's box counts; by default if the topology has box vectors.
        skin: Å by which neighbour lists outlive the cutoff.
        max_force: eV/Å; a larger force on an atom stops the simulation. ``math.inf`` for no limit.
        scale_parameter: Name of a global parameter, 1 by default, that multiplies energy and forces.
            At 0 the model is not evaluated.
        cuda_graphs: On OpenMM's CUDA platform, record a step of the model once and replay it, which
            saves most of a small molecule's time. Up to 200 atoms, in a box of at least two cutoffs.
            Bad forces then become NaN instead of an error: minimise without, and add a
            :class:`~calculators.openmm_reporter.StabilityReporter`.
        device: Where the model runs: ``"cuda"`` on OpenMM's CUDA platform, else ``"cpu"``.
        compile: Compile the potential for this processor or GPU (:mod:`forcefield.compiled`): one to two
            minutes once for an architecture, and two to three times as fast from then on. Such a force
            belongs to this process: XML of it is of no use in another. A loaded potential that is
            compiled already runs compiled, too.
        force_group: OpenMM's force group.
        name: OpenMM's name of the force.

    Raises:
        CheckpointError: There is no such file, or it is not an exported potential.
        UnknownElementError: The potential does not know an element, or a particle has none.
        ConfigError: ``particles`` names a particle twice or one that is not there; a bad option.
        EngineError: The plugin is missing or does not work with the installed torch.
        CompilationError: ``compile`` is set and the potential cannot be compiled here.
    """
    from calculators.torchforce import wrap_potential
    from calculators.torchplugin import import_plugin
    from calculators.torchregion import Wrapping

    plugin = import_plugin()
    exported = open_potential(potential, device, compile=compile)
    where = check_particles(particles, count_particles(atoms))
    numbers = atomic_numbers(atoms, where)
    check_elements(exported, numbers, where)
    box = is_periodic(atoms, periodic)
    wrapping = Wrapping(
        length=LENGTH,
        energy=ENERGY,
        periodic=box,
        scaled=scale_parameter is not None,
        skin=check_skin(skin),
        max_force=check_max_force(max_force),
        turned_down=TURNED_DOWN,
        cuda_graphs=cuda_graphs,
    )
    module = wrap_potential(exported, numbers, where, wrapping)
    force = plugin.TorchForce(module, {"useCUDAGraphs": "true" if cuda_graphs else "false"})
    force.setOutputsForces(True)
    if scale_parameter is not None:
        force.addGlobalParameter(scale_parameter, 1.0)
    return _finish(force, box, force_group, name)


def python_force(
    potential: PotentialSource,
    atoms: "Topology | Sequence[int] | np.ndarray",
    *,
    particles: Iterable[int] | None = None,
    periodic: bool | None = None,
    skin: float = DEFAULT_SKIN,
    max_force: float = DEFAULT_MAX_FORCE,
    scale_parameter: str | None = None,
    device: str = "cpu",
    compile: bool = False,
    force_group: int = 0,
    name: str = "HEGNN",
) -> "openmm.PythonForce":
    """The potential as an ``openmm.PythonForce``: no plugin, some 0.1 ms per step more.

    Positions or forces that are not finite, or absurdly large forces, stop the simulation with an
    ``openmm.OpenMMException`` that names the step and the atom. Arguments and errors are those of
    :func:`torch_force`, without ``cuda_graphs``. XML of a compiled potential holds the potential, and
    compiles it where it is read.
    """
    openmm = import_openmm()
    exported = open_potential(potential, device, compile=compile)
    where = check_particles(particles, count_particles(atoms))
    numbers = atomic_numbers(atoms, where)
    check_elements(exported, numbers, where)
    box = is_periodic(atoms, periodic)
    evaluator = Evaluator(exported, numbers, skin, max_force)
    callback = _Callback(evaluator, box, scale_parameter, where)
    force = openmm.PythonForce(callback, {} if scale_parameter is None else {scale_parameter: 1.0})
    if where is not None:
        force.setParticles(where.tolist())
    return _finish(force, box, force_group, name)


def choose_engine(engine: str) -> Callable[..., Any]:
    """:func:`torch_force` for ``"torch"``, :func:`python_force` for ``"python"``.

    Raises:
        ConfigError: Any other name.
    """
    engines: dict[str, Callable[..., Any]] = {"torch": torch_force, "python": python_force}
    if engine not in engines:
        raise ConfigError(f"unknown engine {engine!r}; choose 'torch' or 'python'")
    return engines[engine]


class _Callback:
    """What PythonForce calls: a State in, energy in kJ/mol and forces in kJ/mol/nm out.

    Args:
        evaluator: For the atoms of the force.
        periodic: Whether the box counts.
        scale_parameter: Global parameter that multiplies energy and forces, None for none.
        particles: Indices of the atoms among the System's particles, (n,); None for all.
    """

    good_time = 0.0
    """Of the class: XML of older versions holds none."""

    def __init__(
        self,
        evaluator: Evaluator,
        periodic: bool,
        scale_parameter: str | None,
        particles: np.ndarray | None,
    ) -> None:
        self.evaluator = evaluator
        self.periodic = periodic
        self.pbc = np.array([periodic] * 3)
        self.scale_parameter = scale_parameter
        self.particles = particles
        self.good_step = -1
        self.bad_step = -2

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
        scale = 1.0
        if self.scale_parameter is not None:
            scale = state.getParameters()[self.scale_parameter]
            if scale == 0.0:
                return 0.0, np.zeros_like(positions)
        step, time = state.getStepCount(), state.getTime()._value
        try:
            value = self.evaluator(positions, cell, self.pbc)
        except ForceFieldError as error:
            if self._is_trial(step, time, positions):
                return TURNED_DOWN, np.zeros_like(positions)
            # OpenMM keeps only the text of an exception.
            message = f"{type(error).__name__} at step {step}: {self._named(str(error))}"
            raise type(error)(message) from error
        self.good_step, self.good_time = step, time
        return scale * ENERGY * value.energy, (scale * FORCE) * value.forces

    def _is_trial(self, step: int, time: float, positions: np.ndarray) -> bool:
        """Whether a bad structure is one that a minimiser or a Monte Carlo move tries out.

        That is one after a good structure of the same step; but not twice, in this step and the next.
        Inside a CustomCVForce steps are not counted, and only the time tells one from the next.
        """
        previous, self.bad_step = self.bad_step, step
        same = (step, time) == (self.good_step, self.good_time)
        return bool(same and previous != step - 1 and np.isfinite(positions).all())

    def _named(self, message: str) -> str:
        """A message of the evaluator with the indices of particles in it."""
        particles = self.particles
        if particles is None:
            return message
        return re.sub(r"atom (\d+) \(", lambda m: f"atom {particles[int(m[1])]} (", message)


def import_openmm(otherwise: str = "") -> Any:
    """OpenMM's module.

    Args:
        otherwise: What else a user can do where it is missing, for the message.

    Raises:
        EngineError: It is missing or too old.
    """
    try:
        import openmm
    except ImportError as error:
        raise EngineError(
            f'OpenMM cannot be imported ({error}); pip install "hegnn-forcefield[openmm]"{otherwise}'
        ) from error
    if not hasattr(openmm, "PythonForce") or not hasattr(openmm.PythonForce, "setParticles"):
        raise EngineError(
            f"OpenMM {openmm.__version__} is too old; pip install 'openmm>=8.6.1'{otherwise}"
        )
    return openmm


def _finish(force: Any, periodic: bool, force_group: int, name: str) -> Any:
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setForceGroup(force_group)
    force.setName(name)
    return force
