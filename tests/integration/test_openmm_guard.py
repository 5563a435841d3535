"""A run stops at the first force that is not finite or absurd: which step, which atom, how large."""

import math
import re

import numpy as np
import pytest
from ase import Atoms

from forcefield.errors import (
    AbsurdForceError,
    ConfigError,
    NonFiniteForceError,
    OutOfDomainError,
)

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.openmm import (  # noqa: E402
    ENERGY,
    StabilityReporter,
    create_system,
    python_force,
    torch_force,
)
from tests.integration.openmm_systems import (  # noqa: E402
    ENGINES,
    ROOT,
    context_of,
    eager,
    evaluate,
    general_file,
    topology_of,
)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_force_beyond_the_limit(engine, periodic, float64_potential, ethanol, water_box):
    atoms = water_box if periodic else ethanol
    forces = eager(float64_potential.eager, atoms)[1]
    sizes = np.linalg.norm(forces, axis=1)
    worst = int(sizes.argmax())
    symbol = atoms.get_chemical_symbols()[worst]

    def evaluated(limit: float) -> np.ndarray:
        system = create_system(topology_of(atoms), float64_potential.path, engine, max_force=limit)
        return evaluate(context_of(system, atoms))[1]

    np.testing.assert_allclose(evaluated(1.01 * sizes[worst]), forces, atol=1e-8)
    with pytest.raises(openmm.OpenMMException) as caught:
        evaluated(0.99 * sizes[worst])
    message = str(caught.value)
    assert f"AbsurdForceError{' at step 0' * (engine == 'python')}: " in message
    found = re.search(r"the force on atom (\d+) \((\w+)\) is (\S+) eV/Å, more than max_f", message)
    assert found is not None
    assert found.group(1, 2) == (str(worst), symbol)
    assert float(found[3]) == pytest.approx(sizes[worst], abs=0.051)
    np.testing.assert_allclose(evaluated(math.inf), forces, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_limit_that_makes_no_sense(engine, float32_potential, ethanol):
    for limit in (0.0, -3.0, math.nan):
        with pytest.raises(ConfigError, match="max_force"):
            create_system(topology_of(ethanol), float32_potential.path, engine, max_force=limit)


@pytest.mark.parametrize("engine", ENGINES)
def test_infinite_forces_stop_without_a_limit(engine, broken_potential, ethanol):
    system = create_system(topology_of(ethanol), broken_potential, engine, max_force=math.inf)
    context = context_of(system, ethanol)
    with pytest.raises(openmm.OpenMMException, match="NonFiniteForceError"):
        context.getIntegrator().step(1)


def test_a_nan_does_not_reach_the_neighbour_search(float32_potential, water_box):
    for engine in ENGINES:
        context = context_of(
            create_system(topology_of(water_box), float32_potential.path, engine), water_box
        )
        evaluate(context)
        broken = water_box.positions.copy()
        broken[17, 1] = np.nan
        context.setPositions(broken * unit.angstrom)
        with pytest.raises(
            openmm.OpenMMException, match=r"InvalidStructureError.*position of atom 17 \(H\)"
        ):
            evaluate(context)


def collision() -> tuple[Atoms, np.ndarray]:
    """Two waters shot at each other: structure, and velocities in nm/ps."""
    water = np.array([[0.0, 0.0, 0.0], [-0.6, 0.76, 0.0], [-0.6, -0.76, 0.0]])
    atoms = Atoms([8, 1, 1] * 2, np.vstack([water, [3.0, 0.0, 0.0] - water]))
    velocities = np.zeros((6, 3))
    velocities[:3, 0], velocities[3:, 0] = 25.0, -25.0
    return atoms, velocities


def test_a_run_stops_at_the_same_step_in_both_engines():
    """With the shipped potential, whose forces know no limit there."""
    atoms, velocities = collision()
    topology = topology_of(atoms)
    steps = []
    for engine in ENGINES:
        simulation = app.Simulation(
            topology,
            create_system(topology, general_file(), engine, remove_cm_motion=False),
            openmm.VerletIntegrator(0.5 * unit.femtoseconds),
            openmm.Platform.getPlatformByName("Reference"),
        )
        simulation.context.setPositions(atoms.positions * unit.angstrom)
        simulation.context.setVelocities(velocities)
        with pytest.raises(openmm.OpenMMException, match=r"AbsurdForceError.*atom \d") as caught:
            simulation.step(100)
        steps.append(simulation.currentStep)
        if engine == "python":
            assert f"at step {steps[-1]}: " in str(caught.value)
    assert steps[0] == steps[1]
    assert 0 < steps[0] < 30


def test_a_run_stops_inside_a_collective_variable():
    """Where OpenMM counts no steps, as in the interpolated systems of openmm-ml."""
    atoms, velocities = collision()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    outer = openmm.CustomCVForce("ml")
    outer.addCollectiveVariable("ml", python_force(general_file(), topology_of(atoms)))
    system.addForce(outer)
    context = context_of(system, atoms, integrator=openmm.VerletIntegrator(0.5 * unit.femtoseconds))
    context.setVelocities(velocities)
    with pytest.raises(openmm.OpenMMException, match=r"AbsurdForceError.*atom \d"):
        context.getIntegrator().step(100)
    assert 0 < context.getStepCount() < 30


@pytest.mark.parametrize("engine", ENGINES)
def test_replicas_do_not_hide_each_other(engine):
    """Two Contexts of one System in turn: good structures of the one excuse none of the other."""
    atoms, velocities = collision()
    system = create_system(topology_of(atoms), general_file(), engine)
    contexts = [
        context_of(system, atoms, integrator=openmm.VerletIntegrator(0.5 * unit.femtoseconds))
        for _ in range(2)
    ]
    calm, violent = contexts
    violent.setVelocities(velocities)

    def in_turn() -> None:
        for _ in range(30):
            for context in contexts:
                context.getIntegrator().step(1)

    with pytest.raises(openmm.OpenMMException, match="AbsurdForceError"):
        in_turn()
    assert violent.getStepCount() == calm.getStepCount() - 1


def far_off(potential, ethanol: Atoms) -> tuple[Atoms, float]:
    """Ethanol with an atom elsewhere, and a limit that ethanol's forces keep and its forces do not."""
    before = np.linalg.norm(eager(potential, ethanol)[1], axis=1).max()
    for seed in range(100):
        moved = ethanol.copy()
        moved.positions[8] += np.random.default_rng(seed).uniform(-1.5, 1.5, 3)
        after = np.linalg.norm(eager(potential, moved)[1], axis=1).max()
        if after > 1.4 * before and np.linalg.norm(moved.positions - ethanol.positions) > 1.0:
            return moved, 1.2 * before
    raise AssertionError("no such structure")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_only_tried_out_is_turned_down(engine, float64_potential, ethanol):
    """A minimiser's jump into a bad structure is answered by an energy that it will not accept."""
    moved, limit = far_off(float64_potential.eager, ethanol)
    system = create_system(topology_of(ethanol), float64_potential.path, engine, max_force=limit)
    context = context_of(system, moved)
    with pytest.raises(openmm.OpenMMException, match="AbsurdForceError"):
        evaluate(context)  # not as the first structure
    for _ in range(3):
        context.setPositions(ethanol.positions * unit.angstrom)
        energy, forces = evaluate(context)
        expected = eager(float64_potential.eager, ethanol)
        assert energy == pytest.approx(expected[0], abs=1e-7)
        np.testing.assert_allclose(forces, expected[1], atol=1e-8)
        context.setPositions(moved.positions * unit.angstrom)
        energy, forces = evaluate(context)
        assert energy * ENERGY == pytest.approx(1e10)
        assert not forces.any()
    with pytest.raises(openmm.OpenMMException, match="AbsurdForceError"):
        context.getIntegrator().step(3)  # and not to go on from
    assert context.getStepCount() <= 1


def test_a_torch_force_knows_long_steps_into_bad_structures(float64_potential, ethanol):
    """A line search comes back from a bad structure; a simulation with too long a step goes on."""
    moved, limit = far_off(float64_potential.eager, ethanol)
    way = moved.positions - ethanol.positions

    def on_the_way(factor):
        atoms = ethanol.copy()
        atoms.positions += factor * way
        bad = np.linalg.norm(eager(float64_potential.eager, atoms)[1], axis=1).max() > limit
        return atoms, bad

    # By more than what is taken for standing still.
    further = next(f for f in np.linspace(1.2, 2.0, 20) if on_the_way(f)[1])
    nearer = next(f for f in np.linspace(0.8, 0.3, 20) if on_the_way(f)[1])
    system = create_system(topology_of(ethanol), float64_potential.path, "torch", max_force=limit)
    context = context_of(system, ethanol)
    evaluate(context)
    for factor in (1.0, nearer):
        context.setPositions(on_the_way(factor)[0].positions * unit.angstrom)
        assert evaluate(context)[0] * ENERGY == pytest.approx(1e10)
    context.setPositions(ethanol.positions * unit.angstrom)
    evaluate(context)
    context.setPositions(moved.positions * unit.angstrom)
    assert evaluate(context)[0] * ENERGY == pytest.approx(1e10)
    context.setPositions(on_the_way(further)[0].positions * unit.angstrom)
    with pytest.raises(openmm.OpenMMException, match="AbsurdForceError"):
        evaluate(context)


@pytest.mark.parametrize("engine", ENGINES)
def test_minimisation_of_a_strained_molecule(engine):
    """The first jump of OpenMM's minimiser is of the order of Å, whatever the molecule."""
    pdb = app.PDBFile(str(ROOT / "examples/alanine_dipeptide.pdb"))
    positions = np.array(pdb.positions._value)
    positions += 0.005 * np.random.default_rng(1).normal(size=positions.shape)
    context = context_of(create_system(pdb.topology, general_file(), engine), positions)
    before = evaluate(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=15)
    energy, forces = evaluate(context)
    assert energy < before - 0.5
    assert np.linalg.norm(forces, axis=1).max() < 1.5
    moved = context.getState(positions=True).getPositions(asNumpy=True)._value - positions
    assert np.abs(moved).max() < 0.05  # nm: it has not gone anywhere else


def test_errors_are_raised_at_the_top(float32_potential, ethanol, water_box):
    """In methods they crash the process, where the plugin has dropped the module's original."""
    for atoms in (ethanol, water_box):
        module = torch_force(float32_potential.path, topology_of(atoms)).getModule()
        methods = {name: module._c._get_method(name).graph for name in module._c._method_names()}
        assert len(methods) > 5
        assert [name for name, graph in methods.items() if "Raise" in str(graph)] == ["forward"]


def watched(ethanol: Atoms, reporter: StabilityReporter, depth: float = 0.0) -> "app.Simulation":
    """Ethanol without any force but a pull on its oxygen, in kJ/mol/nm."""
    topology = topology_of(ethanol)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    pull = openmm.CustomExternalForce("depth*x")
    pull.addGlobalParameter("depth", depth)
    pull.addParticle(2)
    system.addForce(pull)
    simulation = app.Simulation(
        topology,
        system,
        openmm.VerletIntegrator(1e-6),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(ethanol.positions * unit.angstrom)
    simulation.reporters.append(reporter)
    return simulation


def test_reporter_force_limit(ethanol):
    """500 eV/Å is 482 426.7 kJ/mol/nm."""
    simulation = watched(ethanol, StabilityReporter(5), depth=482_426.7)
    with pytest.raises(
        AbsurdForceError, match=r"step 5: the force on atom 2 \(O\) is 500 eV/Å, more than .* 200"
    ):
        simulation.step(10)
    watched(ethanol, StabilityReporter(5, max_force=501.0), depth=482_426.7).step(10)
    watched(ethanol, StabilityReporter(5, math.inf, math.inf), depth=1e9).step(10)
    with pytest.raises(ConfigError, match="max_force"):
        StabilityReporter(5, max_force=-1.0)


def test_reporter_temperature_limit(ethanol):
    """The temperature is that which OpenMM's StateDataReporter writes."""
    simulation = watched(ethanol, StabilityReporter(5, max_temperature=20_000.0))
    simulation.context.setVelocitiesToTemperature(3000.0, 1)
    velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
    kinetic = simulation.context.getState(energy=True).getKineticEnergy()
    temperature = 2 * kinetic / (27 * unit.MOLAR_GAS_CONSTANT_R) / unit.kelvin
    simulation.step(5)
    fast = velocities * math.sqrt(30_000.0 / temperature)
    simulation.context.setVelocities(fast)
    masses = ethanol.get_masses()
    energies = masses * (fast._value**2).sum(axis=1)
    with pytest.raises(
        OutOfDomainError,
        match=rf"step 10: the kinetic temperature is 3e\+04 K, .* = 20000 K; atom {energies.argmax()} ",
    ):
        simulation.step(5)


def test_reporter_does_not_count_what_cannot_move(ethanol):
    """Constraints, massless particles and the motion of the whole take degrees of freedom."""
    from calculators.openmm_reporter import _masses, _temperature

    system = openmm.System()
    for mass in (12.0, 1.0, 1.0, 0.0):
        system.addParticle(mass)
    kinetic = 10.0 * unit.kilojoule_per_mole
    free = _temperature(system, _masses(system), kinetic)
    assert free == pytest.approx(2 * 10.0 / (9 * 8.31446e-3), rel=1e-4)
    system.addConstraint(0, 1, 0.1)
    system.addForce(openmm.CMMotionRemover())
    assert _temperature(system, _masses(system), kinetic) == pytest.approx(free * 9 / 5)
    for index in range(3):
        system.setParticleMass(index, 0.0)
    assert _temperature(system, _masses(system), kinetic) == 0.0


def test_reporter_sees_velocities(ethanol):
    simulation = watched(ethanol, StabilityReporter(1))
    velocities = np.zeros((9, 3))
    velocities[4] = math.inf
    simulation.context.setVelocities(velocities)
    with pytest.raises(NonFiniteForceError, match=r"of atom 4 \(H\) is not finite; 1 of 9"):
        simulation.step(1)
