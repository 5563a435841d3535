"""Periodic boxes in OpenMM: images, barostats, molecules, checkpoints, and CUDA graphs' module."""

import numpy as np
import pytest
import torch
from ase import Atoms

from forcefield import build_graph, load_exported
from forcefield.errors import ConfigError

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.evaluator import DEFAULT_MAX_FORCE  # noqa: E402
from calculators.openmm import (  # noqa: E402
    ENERGY,
    FORCE,
    LENGTH,
    StabilityReporter,
    create_system,
    torch_force,
)
from calculators.torchforce import GRAPH_ATOMS, AllPairs, wrap_potential  # noqa: E402
from calculators.torchregion import Wrapping  # noqa: E402
from forcefield.errors import NonFiniteForceError  # noqa: E402
from forcefield.export import ExportedPotential  # noqa: E402
from forcefield.neighbors import DEFAULT_SKIN  # noqa: E402
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


def test_the_image_that_an_atom_is_in_does_not_matter(float64_potential, water_box):
    """In a sheared box, for whole molecules, for single atoms, and far away from the origin."""
    cell = water_box.cell.array
    generator = np.random.default_rng(8)
    contexts = [
        context_of(create_system(topology_of(water_box), float64_potential.path, e), water_box)
        for e in ENGINES
    ]
    energy, forces = eager(float64_potential.eager, water_box)
    molecule = np.repeat(generator.integers(-2, 3, (27, 3)), 3, axis=0)
    atom = generator.integers(-2, 3, (81, 3))
    for shift in (molecule @ cell, atom @ cell, np.array([400.0, -90.0, 7.0])):
        for context in contexts:
            context.setPositions((water_box.positions + shift) * unit.angstrom)
            found, found_forces = evaluate(context)
            assert found == pytest.approx(energy, abs=1e-7)
            np.testing.assert_allclose(found_forces, forces, atol=1e-8)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_barostat(way, water_box):
    """The box changes, molecules move as a whole, and the energy stays that of the structure."""
    topology = topology_of(water_box, bonds=True)
    system = create_system(topology, way.potential.path, way.engine, **way.options)
    barostat = openmm.MonteCarloBarostat(3000 * unit.bar, 300 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(4)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0002)
    integrator.setRandomNumberSeed(5)
    context = context_of(system, water_box, integrator=integrator)
    assert {len(molecule) for molecule in context.getMolecules()} == {3}
    context.setVelocitiesToTemperature(300.0, 6)
    volumes = []
    for _ in range(3):
        integrator.step(6)
        state = context.getState(positions=True, energy=True, forces=True)
        cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        now = Atoms(water_box.numbers, positions, cell=cell, pbc=True)
        expected_energy, expected = eager(way.potential.eager, now)
        energy, forces = evaluate(context)
        assert energy == pytest.approx(expected_energy, abs=1e-6)
        np.testing.assert_allclose(forces, expected, atol=1e-8)
        volumes.append(now.get_volume())
    assert len(set(volumes)) == 3
    bonds = [now.get_distance(b.atom1.index, b.atom2.index, mic=True) for b in topology.bonds()]
    assert max(bonds) < 1.6


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoint_of_a_box(engine, float64_potential, water_box):
    """Another Context goes on from it as the first does: positions, velocities, box, noise.

    A barostat's own random numbers are not part of OpenMM's checkpoints.
    """
    system = create_system(topology_of(water_box), float64_potential.path, engine)

    def new_context(seed: int):
        integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0002)
        integrator.setRandomNumberSeed(seed)
        return context_of(system, water_box, integrator=integrator)

    first, second = new_context(5), new_context(8)
    first.setVelocitiesToTemperature(300.0, 6)
    first.getIntegrator().step(5)
    water_box.set_cell(1.01 * water_box.cell.array)
    first.setPeriodicBoxVectors(*box_of(water_box))
    first.getIntegrator().step(5)
    checkpoint = first.createCheckpoint()
    ends = []
    for context in (first, second):
        # The Reference platform draws random numbers for all its Contexts from one sequence.
        context.loadCheckpoint(checkpoint)
        context.getIntegrator().step(10)
        state = context.getState(positions=True)
        ends.append(state.getPositions(asNumpy=True)._value)
        volume = state.getPeriodicBoxVolume().value_in_unit(unit.angstrom**3)
        assert volume == pytest.approx(water_box.get_volume())
    # Their neighbour lists were made at other steps, so that sums are in another order.
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-10)


def test_bonds_matter_in_boxes_only(float32_potential, ethanol, water_box):
    for atoms, forces in ((ethanol, 1), (water_box, 2)):
        topology = topology_of(atoms, bonds=True)
        system = create_system(topology, float32_potential.path, "python", remove_cm_motion=False)
        assert system.getNumForces() == forces
    energies = [
        evaluate(context_of(create_system(topology, float32_potential.path, "python"), water_box))
        for topology in (topology_of(water_box), topology_of(water_box, bonds=True))
    ]
    assert energies[0][0] == energies[1][0]


def wrapping(**options) -> Wrapping:
    defaults = {
        "length": LENGTH,
        "energy": ENERGY,
        "periodic": False,
        "scaled": False,
        "skin": DEFAULT_SKIN,
        "max_force": DEFAULT_MAX_FORCE,
        "turned_down": 1e10,
        "cuda_graphs": False,
    }
    return Wrapping(**(defaults | options))


@pytest.mark.parametrize("sheared", [False, True])
def test_static_shapes_in_a_box(sheared, float64_potential, ethanol):
    """The nearest image of each pair is all there is in a box of two cutoffs."""
    cell = np.diag([8.1, 9.0, 8.5])
    if sheared:
        cell = np.array([[10.5, 0.0, 0.0], [3.9, 9.4, 0.0], [-4.0, 4.2, 9.6]])
    ethanol.set_cell(cell)
    ethanol.pbc = True
    exported = load_exported(float64_potential.path)
    module = wrap_potential(
        exported, ethanol.numbers, None, wrapping(periodic=True, cuda_graphs=True)
    )
    generator = np.random.default_rng(1)
    box = torch.as_tensor(cell / LENGTH)
    for _ in range(4):
        ethanol.positions += generator.integers(-1, 2, (9, 3)) @ cell
        ethanol.positions += generator.uniform(0, 5, 3)
        expected_energy, expected = eager(float64_potential.eager, ethanol)
        energy, forces = module(torch.as_tensor(ethanol.positions / LENGTH), box)
        assert energy.item() / ENERGY == pytest.approx(expected_energy, abs=1e-7)
        np.testing.assert_allclose(forces.numpy() / FORCE, expected, atol=1e-8)
    energy, forces = module(torch.as_tensor(ethanol.positions / LENGTH), 0.8 * box)
    assert not torch.isfinite(energy)
    assert not torch.isfinite(forces).any()


def test_cuda_graphs_need_nothing_from_the_data(float64_potential, ethanol):
    """Every operation runs on tensors without data: no shape and no branch depends on them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    potential = ExportedPotential(
        float64_potential.eager, load_exported(float64_potential.path).metadata
    )
    for periodic in (False, True):
        module = AllPairs(
            potential, ethanol.numbers, None, wrapping(periodic=periodic, cuda_graphs=True)
        )
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            arguments = [mode.from_tensor(torch.zeros(9, 3))]
            if periodic:
                arguments.append(mode.from_tensor(torch.eye(3)))
            energy, forces = module(*arguments)
            module.graphs = False  # the guard that looks at numbers is found out
            with pytest.raises(RuntimeError, match="_local_scalar_dense"):
                module(*arguments)
        assert energy.shape == ()
        assert forces.shape == (9, 3)


@pytest.mark.parametrize("limit", [DEFAULT_MAX_FORCE, 1e-6])
def test_without_errors_bad_forces_become_nan(limit, float64_potential, broken_potential, ethanol):
    exported = load_exported(broken_potential if limit > 1 else float64_potential.path)
    module = wrap_potential(
        exported, ethanol.numbers, None, wrapping(cuda_graphs=True, max_force=limit)
    )
    energy, forces = module(torch.as_tensor(ethanol.positions / LENGTH))
    assert torch.isnan(energy)
    assert torch.isnan(forces).any()
    topology = topology_of(ethanol)
    system = create_system(topology, exported, cuda_graphs=True, max_force=limit)
    simulation = app.Simulation(
        topology,
        system,
        openmm.VerletIntegrator(0.0001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(ethanol.positions * unit.angstrom)
    simulation.reporters.append(StabilityReporter(2))
    with pytest.raises(NonFiniteForceError, match=r"step 2: the position of atom \d"):
        simulation.step(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("particles", [None, np.arange(1, 10)])
def test_with_cuda_graphs_results_stay_in_their_place(dtype, particles, float64_potential, ethanol):
    """A recording writes where it wrote when it was made; the plugin keeps what the last one returned."""
    exported = load_exported(float64_potential.path)
    scripted = wrap_potential(exported, ethanol.numbers, particles, wrapping(cuda_graphs=True))
    module = torch.jit.freeze(scripted)  # as the plugin does
    positions = ethanol.positions / LENGTH
    if particles is not None:
        positions = np.vstack([np.zeros((1, 3)), positions])
    first = module(torch.as_tensor(positions, dtype=dtype))
    before = [tensor.clone() for tensor in first]
    moved = positions.copy()
    moved[-1] += 0.01
    second = module(torch.as_tensor(moved, dtype=dtype))
    for old, kept, new in zip(before, first, second, strict=True):
        assert kept.data_ptr() == new.data_ptr()
        assert not torch.equal(old, new)
        assert torch.equal(kept, new)
    assert second[1].dtype == dtype


def test_cuda_graphs_are_for_few_atoms(float32_potential):
    numbers = [1] * (GRAPH_ATOMS + 1)
    with pytest.raises(ConfigError, match=f"up to {GRAPH_ATOMS} atoms, found {GRAPH_ATOMS + 1}"):
        torch_force(float32_potential.path, numbers, cuda_graphs=True)
    force = torch_force(float32_potential.path, [8, 1, 1], cuda_graphs=True)
    assert dict(force.getProperties())["useCUDAGraphs"] == "true"
    force = torch_force(float32_potential.path, [8, 1, 1])
    assert dict(force.getProperties())["useCUDAGraphs"] == "false"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch", "single"), ("torch", "mixed"), ("torch", "double"), ("compiled", "mixed")],
)
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu(graphs, periodic, name, precision, ethanol, request):
    """Graphs on and off, compiled or not, the Platform's precision, forces on some particles."""
    way = way_of(request, name, "float32")
    try:
        platform = openmm.Platform.getPlatformByName("CUDA")
    except openmm.OpenMMException:
        pytest.skip("this OpenMM has no platform CUDA")
    positions = np.vstack([[[9.0, 9.0, 9.0]], ethanol.positions])
    system = openmm.System()
    cell = np.diag([20.0, 21.0, 22.0])
    system.setDefaultPeriodicBoxVectors(*(cell / LENGTH))
    for _ in positions:
        system.addParticle(12.0)
    force = torch_force(
        way.potential.path,
        [0, *ethanol.numbers],
        particles=range(1, 10),
        periodic=periodic,
        device="cuda",
        cuda_graphs=graphs,
        **way.options,
    )
    system.addForce(force)
    properties = {"Precision": precision, "DeviceIndex": "0"}
    context = openmm.Context(system, openmm.VerletIntegrator(0.0001), platform, properties)
    for seed in range(4):
        ethanol.rattle(0.03, seed=seed)
        positions[1:] = ethanol.positions
        context.setPositions(positions * unit.angstrom)
        expected_energy, expected = eager(way.potential.eager, ethanol)
        energy, forces = evaluate(context)
        assert energy == pytest.approx(expected_energy, abs=2e-3)
        np.testing.assert_allclose(forces[1:], expected, atol=2e-4)
        assert np.abs(forces[0]).max() == 0.0
        context.getState(energy=True)  # A recording of its own, which must not end the other one's.
    context.getIntegrator().step(20)


def test_nothing_is_prepared_to_be_differentiated(float64_potential, ethanol):
    """The plugin's positions require a gradient; TorchScript must not act on that."""
    exported = load_exported(float64_potential.path)
    module = wrap_potential(exported, ethanol.numbers, None, wrapping())
    for _ in range(4):
        positions = torch.as_tensor(ethanol.positions / LENGTH).requires_grad_(True)
        energy, forces = module(positions)
    assert not energy.requires_grad
    assert not forces.requires_grad
    assert "DifferentiableGraph" not in str(torch.jit.last_executed_optimized_graph())
    graph = build_graph(ethanol.positions, ethanol.numbers, exported.cutoff)
    expected = exported.module(*graph.tensors())["forces"].numpy()
    np.testing.assert_allclose(forces.numpy() / FORCE, expected, atol=1e-8)
