"""OpenMM's TorchForce and PythonForce against the eager model; systems, errors, integrators."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from forcefield import build_graph, load_exported
from forcefield.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    NonFiniteForceError,
    UnknownElementError,
)

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.openmm import (  # noqa: E402
    ENERGY,
    FORCE,
    LENGTH,
    StabilityReporter,
    create_system,
    python_force,
    torch_force,
)
from calculators.torchplugin import import_plugin, try_plugin  # noqa: E402
from tests.integration.conftest import way_of  # noqa: E402
from tests.integration.openmm_systems import (  # noqa: E402
    ENGINES,
    WAYS,
    box_of,
    context_of,
    eager,
    evaluate,
    topology_of,
)

PLATFORMS = ("Reference", "CPU")


def test_conversion_factors_are_those_of_openmm():
    assert (LENGTH * unit.angstrom).value_in_unit(unit.nanometer) == pytest.approx(1.0)
    joule = 1.602176634e-19 * unit.joule * unit.AVOGADRO_CONSTANT_NA
    # CODATA 2014 in ASE, 2018 in OpenMM: they differ in the eighth digit.
    assert joule.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(ENERGY, rel=3e-8)
    assert pytest.approx(ENERGY * LENGTH) == FORCE


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("float64", 1e-8)])
def test_agrees_with_the_eager_model(precision, tolerance, name, platform, ethanol, request):
    way = way_of(request, name, precision)
    exported = way.potential
    system = create_system(topology_of(ethanol), exported.path, way.engine, **way.options)
    context = context_of(system, ethanol, platform)
    for seed in range(5):
        ethanol.rattle(0.05, seed=seed)
        context.setPositions(ethanol.positions * unit.angstrom)
        energy, forces = evaluate(context)
        expected_energy, expected_forces = eager(exported.eager, ethanol)
        assert energy == pytest.approx(expected_energy, abs=9 * tolerance, rel=0)
        np.testing.assert_allclose(forces, expected_forces, atol=tolerance, rtol=0)
    assert np.abs(expected_forces).max() > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_molecule_larger_than_the_cutoff(engine, float64_potential):
    """Pairs come and go while it moves."""
    chain = molecule("C3H9C")  # 13 atoms, 78 pairs
    chain.positions *= 1.5
    system = create_system(topology_of(chain), float64_potential.path, engine)
    context = context_of(system, chain)
    exported = load_exported(float64_potential.path)
    counts = set()
    for seed in range(6):
        chain.positions *= 1.0 + 0.1 * (-1) ** seed
        chain.rattle(0.05, seed=seed)
        context.setPositions(chain.positions * unit.angstrom)
        energy, forces = evaluate(context)
        expected_energy, expected_forces = eager(float64_potential.eager, chain)
        assert energy == pytest.approx(expected_energy, abs=1e-8, rel=0)
        np.testing.assert_allclose(forces, expected_forces, atol=1e-8, rtol=0)
        graph = build_graph(chain.positions, chain.numbers, exported.cutoff)
        counts.add(graph.edge_index.shape[1])
    assert len(counts) > 2
    assert max(counts) < len(chain) * (len(chain) - 1) // 2


@pytest.mark.gpu
@pytest.mark.parametrize("platform", ["Reference", "CUDA"])
@pytest.mark.parametrize("engine", ENGINES)
def test_cuda_agrees_with_the_eager_model(engine, platform, float32_potential, ethanol, water_box):
    available = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if platform not in available:
        pytest.skip(f"this OpenMM has no platform {platform}")
    for atoms in (ethanol, water_box):
        topology = topology_of(atoms)
        system = create_system(topology, float32_potential.path, engine, device="cuda")
        context = context_of(system, atoms, platform)
        for _ in range(4):
            energy, forces = evaluate(context)
            expected_energy, expected_forces = eager(float32_potential.eager, atoms)
            assert energy == pytest.approx(expected_energy, abs=1e-4 * len(atoms))
            np.testing.assert_allclose(forces, expected_forces, atol=1e-4)
            atoms.rattle(0.02)
            context.setPositions(atoms.positions * unit.angstrom)


@pytest.mark.parametrize("step", [0.01, 0.1])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_neighbour_lists_follow_atoms_and_box(way, periodic, step, water_box):
    water_box.pbc = periodic
    potential = way.potential
    system = create_system(topology_of(water_box), potential.path, way.engine, **way.options)
    assert system.usesPeriodicBoundaryConditions() == periodic
    context = context_of(system, water_box)
    generator = np.random.default_rng(3)
    for call in range(8):
        water_box.positions += step * generator.normal(size=water_box.positions.shape)
        if periodic and call == 4:
            water_box.set_cell(water_box.cell.array * 0.97, scale_atoms=True)
            context.setPeriodicBoxVectors(*box_of(water_box))
        if periodic and call == 6:
            water_box.positions[5] += 2.0 * water_box.cell.array[1]
        context.setPositions(water_box.positions * unit.angstrom)
        forces = evaluate(context)[1]
        expected = eager(potential.eager, water_box)[1]
        np.testing.assert_allclose(forces, expected, atol=1e-8, rtol=0)


def test_atomic_numbers_do_as_well_as_a_topology(float32_potential, ethanol):
    import openmmtorch

    for make, kind in ((torch_force, openmmtorch.TorchForce), (python_force, openmm.PythonForce)):
        energies = []
        for atoms in (ethanol.numbers.tolist(), ethanol.numbers, topology_of(ethanol)):
            force = make(load_exported(float32_potential.path), atoms, force_group=3, name="water")
            assert isinstance(force, kind)
            assert (force.getForceGroup(), force.getName()) == (3, "water")
            system = openmm.System()
            for _ in ethanol:
                system.addParticle(1.0)
            system.addForce(force)
            energies.append(evaluate(context_of(system, ethanol))[0])
        assert energies[0] == energies[1] == energies[2]


@pytest.mark.parametrize("engine", ENGINES)
def test_system_is_complete(engine, float32_potential, water_box):
    topology = topology_of(water_box)
    system = create_system(topology, float32_potential.path, engine)
    assert system.getNumParticles() == len(water_box)
    assert system.getNumConstraints() == 0
    for index, atom in enumerate(topology.atoms()):
        assert system.getParticleMass(index) == atom.element.mass
    box = [v.value_in_unit(unit.angstrom) for v in system.getDefaultPeriodicBoxVectors()]
    np.testing.assert_allclose(box, water_box.cell.array, atol=1e-9)
    assert sum(isinstance(f, openmm.CMMotionRemover) for f in system.getForces()) == 1
    system = create_system(topology, float32_potential.path, engine, remove_cm_motion=False)
    assert system.getNumForces() == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_mistakes_are_named_when_the_force_is_made(engine, float32_potential, ethanol, tmp_path):
    ethanol.numbers[2] = 16
    with pytest.raises(UnknownElementError, match="atom 2 is S"):
        create_system(topology_of(ethanol), float32_potential.path, engine)
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain(), "17")
    topology.addAtom("O", app.element.oxygen, residue)
    topology.addAtom("M", None, residue)
    with pytest.raises(UnknownElementError, match=r"particle 1 \(M of residue HOH 17\)"):
        create_system(topology, float32_potential.path, engine)
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        create_system(topology_of(ethanol), tmp_path / "nothing.pt", engine)
    with pytest.raises(ConfigError, match="'torch' or 'python'"):
        create_system(topology_of(ethanol), float32_potential.path, "cuda")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_system_of_another_size_is_refused(engine, float32_potential, ethanol):
    system = create_system(topology_of(ethanol), float32_potential.path, engine)
    system.addParticle(1.0)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(np.zeros((10, 3)))
    with pytest.raises(openmm.OpenMMException, match=r"made for 9 atoms, the System has 10"):
        context.getState(energy=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_structure_stops_the_simulation(engine, float32_potential, ethanol):
    system = create_system(topology_of(ethanol), float32_potential.path, engine)
    context = context_of(system, ethanol)
    context.getIntegrator().step(2)
    ethanol.positions[4] = np.nan
    context.setPositions(ethanol.positions * unit.angstrom)
    with pytest.raises(
        openmm.OpenMMException, match=r"position of atom 4 \(H\) is not finite"
    ) as e:
        context.getIntegrator().step(1)
    if engine == "python":
        assert "at step 2" in str(e.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_forces_that_are_not_finite_stop_the_simulation(engine, broken_potential, ethanol):
    context = context_of(create_system(topology_of(ethanol), broken_potential, engine), ethanol)
    with pytest.raises(
        openmm.OpenMMException, match=r"NonFiniteForceError.*force on atom \d \([COH]\)"
    ):
        context.getIntegrator().step(1)


def test_both_engines_give_the_same_trajectory(float64_potential, ethanol):
    ends = []
    for engine in ENGINES:
        system = create_system(topology_of(ethanol), float64_potential.path, engine)
        integrator = openmm.VerletIntegrator(0.2 * unit.femtoseconds)
        context = context_of(system, ethanol, integrator=integrator)
        context.setVelocitiesToTemperature(300.0, 7)
        integrator.step(100)
        state = context.getState(positions=True)
        ends.append(state.getPositions(asNumpy=True).value_in_unit(unit.angstrom))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)
    assert np.abs(ends[0] - ethanol.positions).max() > 0.05


@pytest.mark.parametrize("name", WAYS)
def test_minimiser_thermostat_and_checkpoint(name, ethanol, request):
    way = way_of(request, name, "float32")
    system = create_system(topology_of(ethanol), way.potential.path, way.engine, **way.options)
    integrator = openmm.LangevinMiddleIntegrator(
        300.0 * unit.kelvin, 10.0 / unit.picosecond, 0.2 * unit.femtoseconds
    )
    integrator.setRandomNumberSeed(4)
    context = context_of(system, ethanol, integrator=integrator)
    before = evaluate(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=5)
    assert evaluate(context)[0] < before
    context.setVelocitiesToTemperature(300.0, 5)
    integrator.step(10)
    checkpoint = context.createCheckpoint()
    integrator.step(10)
    end = context.getState(positions=True).getPositions(asNumpy=True)._value
    context.loadCheckpoint(checkpoint)
    integrator.step(10)
    np.testing.assert_array_equal(
        context.getState(positions=True).getPositions(asNumpy=True)._value, end
    )


def test_forces_of_different_molecules_live_side_by_side(float32_potential, ethanol, water_box):
    water = water_box[:3]
    water.pbc = False
    contexts = {
        (engine, name): context_of(
            create_system(topology_of(atoms), float32_potential.path, engine), atoms
        )
        for engine in ENGINES
        for name, atoms in (("ethanol", ethanol), ("water", water), ("box", water_box))
    }
    for _ in range(4):  # past the steps in which TorchScript compiles
        for (_, name), context in contexts.items():
            atoms = {"ethanol": ethanol, "water": water, "box": water_box}[name]
            expected = eager(float32_potential.eager, atoms)[1]
            np.testing.assert_allclose(evaluate(context)[1], expected, atol=2e-5)


def test_a_python_force_survives_xml(float64_potential, ethanol):
    system = create_system(topology_of(ethanol), float64_potential.path, "python")
    restored = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    expected = evaluate(context_of(system, ethanol))
    energy, forces = evaluate(context_of(restored, ethanol))
    assert energy == expected[0]
    np.testing.assert_array_equal(forces, expected[1])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("position", r"step 10: the position of atom 6 \(H\) is not finite; 1 of 9 atoms"),
        ("force", r"step 10: the force of atom 2 \(O\) is not finite"),
    ],
)
def test_stability_reporter_names_step_and_atom(broken, message, ethanol):
    """It watches the whole System, whatever the forces in it are."""
    topology = topology_of(ethanol)
    system = openmm.System()
    for atom in topology.atoms():
        # Particles without mass stay where they are, whatever the force.
        system.addParticle(0.0 if atom.index == 2 else atom.element.mass)
    trap = openmm.CustomExternalForce("sqrt(depth)*x")
    trap.addGlobalParameter("depth", 1.0)
    trap.addParticle(2)
    system.addForce(trap)
    simulation = app.Simulation(
        topology,
        system,
        openmm.VerletIntegrator(1e-6),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(ethanol.positions * unit.angstrom)
    simulation.reporters.append(StabilityReporter(5))
    simulation.step(7)
    if broken == "position":
        ethanol.positions[6] = np.nan
        simulation.context.setPositions(ethanol.positions * unit.angstrom)
    else:
        simulation.context.setParameter("depth", -1.0)
    with pytest.raises(NonFiniteForceError, match=message):
        simulation.step(7)


class Failing(torch.nn.Module):
    """Stands for a plugin that loads but cannot run a module of this torch."""

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if positions.size(0) == 2:
            raise RuntimeError("interpreter INTERNAL ASSERT FAILED: no interpreter set")
        return positions.sum(), positions


class Wrong(torch.nn.Module):
    """Stands for a plugin that misreads memory."""

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return positions.sum(), 3.0 * positions


@pytest.mark.parametrize(
    ("probe", "found"), [(Failing, "no interpreter set"), (Wrong, "a spring gave the forces")]
)
def test_a_plugin_that_does_not_work_is_named_with_both_versions(probe, found):
    import openmmtorch

    with pytest.raises(EngineError, match=found) as caught:
        try_plugin(openmmtorch, torch.jit.script(probe()))
    message = str(caught.value)
    assert f"torch {torch.__version__}" in message
    assert "openmmtorch" in message
    assert "pip install" in message
    assert "python_force" in message


@pytest.mark.parametrize("extra", ["openmm", "cuda12", "cuda13"])
def test_the_advice_for_such_a_plugin_is_that_of_the_extra(extra, monkeypatch):
    """Not the extra itself: pip would look for this package where it is not."""
    import openmmtorch

    path = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (plugin,) = (item for item in extras[extra] if "openmmtorch" in item)
    (bounded,) = (item for item in extras[extra] if item.startswith("torch>"))
    name = plugin.partition(">")[0]
    monkeypatch.setattr("calculators.torchplugin._installed_plugin", lambda: (name, " 1.10"))
    with pytest.raises(EngineError) as caught:
        try_plugin(openmmtorch, torch.jit.script(Failing()))
    message = str(caught.value)
    assert f'pip install -U "{bounded}" "{plugin}"; or' in message
    assert "hegnn" not in message


@pytest.mark.parametrize("engine", ENGINES)
def test_a_periodic_system_needs_a_box(engine, float32_potential, ethanol):
    with pytest.raises(ConfigError, match="periodic=True needs a box, and the topology has none"):
        create_system(topology_of(ethanol), float32_potential.path, engine, periodic=True)


def test_the_plugin_is_tried_once_per_process():
    assert import_plugin() is import_plugin()


def test_without_the_plugin_there_is_an_error_and_another_way(float32_potential):
    code = f"""
import sys
sys.modules["openmmtorch"] = None
from calculators.openmm import python_force, torch_force
from forcefield.errors import EngineError
path, water = {str(float32_potential.path)!r}, [8, 1, 1]
try:
    torch_force(path, water)
except EngineError as error:
    print(error)
print(type(python_force(path, water)).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    lines = done.stdout.splitlines()
    assert "hegnn-forcefield[openmm]" in lines[0], done.stderr
    assert "python_force" in lines[0]
    assert lines[1] == "PythonForce"
