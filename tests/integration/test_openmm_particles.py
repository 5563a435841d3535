"""Forces on some particles of a System, several forces in one, and Systems through XML."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms

from forcefield import load_exported
from forcefield.errors import ConfigError, EngineError, UnknownElementError

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.openmm import (  # noqa: E402
    create_system,
    python_force,
    system_from_xml,
    torch_force,
)
from tests.integration.openmm_systems import (  # noqa: E402
    ENGINES,
    WAYS,
    context_of,
    eager,
    evaluate,
    topology_of,
)

MAKE = {"torch": torch_force, "python": python_force}


def scattered(ethanol: Atoms, seed: int = 1) -> tuple[list[int], np.ndarray, list[int]]:
    """Ethanol's atoms in any order among 14 particles: indices, positions (Å), atomic numbers."""
    generator = np.random.default_rng(seed)
    places = generator.permutation(14)[:9].tolist()
    positions = generator.uniform(-5.0, 5.0, (14, 3))
    positions[places] = ethanol.positions
    numbers = np.zeros(14, dtype=int)
    numbers[places] = ethanol.numbers
    return places, positions, numbers.tolist()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_some_particles_in_any_order(way, platform, ethanol):
    places, positions, numbers = scattered(ethanol)
    system = openmm.System()
    for _ in numbers:
        system.addParticle(1.0)
    pull = openmm.CustomExternalForce("3*x")
    for index in range(14):
        pull.addParticle(index)
    system.addForce(pull)
    options = {"particles": places, "force_group": 2} | way.options
    system.addForce(MAKE[way.engine](way.potential.path, numbers, **options))
    context = context_of(system, positions * unit.angstrom, platform)
    for seed in range(3):  # past the steps in which TorchScript compiles
        ethanol.rattle(0.05, seed=seed)
        positions[places] = ethanol.positions
        context.setPositions(positions * unit.angstrom)
        energy, forces = evaluate(context, groups={2})
        expected_energy, own = eager(way.potential.eager, ethanol)
        expected = np.zeros((14, 3))
        expected[places] = own
        assert energy == pytest.approx(expected_energy, abs=1e-7)
        np.testing.assert_allclose(forces, expected, atol=1e-8)
        everything = evaluate(context)[1]
        pulled = evaluate(context, groups={0})[1]
        np.testing.assert_allclose(everything, pulled + expected, atol=1e-7)
        assert np.abs(pulled).max() > 0.001


@pytest.mark.parametrize("engine", ENGINES)
def test_a_virtual_site_can_be_one_of_them(engine, float64_potential, ethanol):
    """Forces on it go to the particles that it is built on: a hydrogen that caps a bond, say."""
    system = openmm.System()
    for atom in ethanol:
        system.addParticle(0.0 if atom.index == 8 else atom.mass)
    system.setVirtualSite(8, openmm.TwoParticleAverageSite(2, 1, 1.6, -0.6))
    system.addForce(MAKE[engine](float64_potential.path, ethanol.numbers, particles=range(9)))
    context = context_of(system, ethanol)
    context.computeVirtualSites()
    state = context.getState(positions=True)
    ethanol.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    oxygen, carbon = ethanol.positions[[2, 1]]
    np.testing.assert_allclose(ethanol.positions[8], 1.6 * oxygen - 0.6 * carbon, atol=1e-9)
    expected = eager(float64_potential.eager, ethanol)[1]
    expected[2] += 1.6 * expected[8]
    expected[1] -= 0.6 * expected[8]
    np.testing.assert_allclose(evaluate(context)[1][:8], expected[:8], atol=1e-8)
    context.getIntegrator().step(5)


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_particles_are_named(engine, float32_potential, ethanol):
    def make(particles, atoms=None):
        atoms = topology_of(ethanol) if atoms is None else atoms
        return MAKE[engine](float32_potential.path, atoms, particles=particles)

    with pytest.raises(ConfigError, match="particle 4 is named more than once"):
        make([1, 4, 4])
    with pytest.raises(ConfigError, match="no particle 9: there are 9, from 0 to 8"):
        make([1, 9])
    with pytest.raises(ConfigError, match="no particle -1"):
        make([-1])
    with pytest.raises(ConfigError, match="is empty"):
        make([])
    with pytest.raises(ConfigError, match=r"take atom\.index"):
        make(list(topology_of(ethanol).atoms()))
    with pytest.raises(ConfigError, match=r"found 1\.0"):
        make([1.0])
    with pytest.raises(UnknownElementError, match="atom 7 is S"):
        make([8, 7], [6, 6, 8, 1, 1, 1, 1, 16, 1])
    topology = topology_of(ethanol)
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(UnknownElementError, match=r"particle 9 \(M of residue MOL"):
        make([0, 9], topology)
    make(range(9), topology)
    make(np.arange(3))


def test_a_system_without_the_particle_is_refused(float32_potential, ethanol):
    """By TorchForce; OpenMM itself looks no further than the list that it is given."""
    system = openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    system.addForce(torch_force(float32_potential.path, ethanol.numbers, particles=[0, 1, 7]))
    context = context_of(system, np.zeros((5, 3)))
    with pytest.raises(openmm.OpenMMException, match="acts on particle 7, the System has 5"):
        context.getState(energy=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_potentials_and_force_groups(engine, float32_potential, float64_potential, ethanol):
    """Two potentials on the same atoms and one on some of them."""
    system = create_system(topology_of(ethanol), float64_potential.path, engine, force_group=1)
    second = MAKE[engine](float32_potential.path, ethanol.numbers, force_group=2)
    hydrogens = np.flatnonzero(ethanol.numbers == 1)
    third = MAKE[engine](
        float64_potential.path, ethanol.numbers, particles=hydrogens, force_group=3
    )
    system.addForce(second)
    system.addForce(third)
    context = context_of(system, ethanol)
    parts = [evaluate(context, groups={group}) for group in (1, 2, 3)]
    for part, potential, atoms in (
        (parts[0], float64_potential, ethanol),
        (parts[1], float32_potential, ethanol),
        (parts[2], float64_potential, ethanol[hydrogens]),
    ):
        energy, forces = eager(potential.eager, atoms)
        assert part[0] == pytest.approx(energy, abs=1e-4)
        own = part[1][hydrogens] if len(atoms) < 9 else part[1]
        np.testing.assert_allclose(own, forces, atol=2e-5)
    total_energy, total = evaluate(context)
    assert total_energy == pytest.approx(sum(energy for energy, _ in parts), abs=1e-7)
    np.testing.assert_allclose(total, sum(forces for _, forces in parts), atol=1e-9)
    context.getIntegrator().step(3)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_parameter_scales_energy_and_forces(way, broken_potential, ethanol):
    system = openmm.System()
    for _ in ethanol:
        system.addParticle(1.0)
    options = {"scale_parameter": "strength"} | way.options
    system.addForce(MAKE[way.engine](way.potential.path, ethanol.numbers, **options))
    context = context_of(system, ethanol)
    expected_energy, expected = eager(way.potential.eager, ethanol)
    for value in (1.0, 0.4, 0.0):
        assert value == 1.0 or context.setParameter("strength", value) is None
        energy, forces = evaluate(context)
        assert energy == pytest.approx(value * expected_energy, abs=1e-7)
        np.testing.assert_allclose(forces, value * expected, atol=1e-8)
    # At zero the model is not asked: not even one that would stop the simulation.
    system = openmm.System()
    for _ in ethanol:
        system.addParticle(1.0)
    force = MAKE[way.engine](broken_potential, ethanol.numbers, scale_parameter="strength")
    system.addForce(force)
    context = context_of(system, ethanol)
    context.setParameter("strength", 0.0)
    assert evaluate(context)[0] == 0.0
    context.setParameter("strength", 0.5)
    with pytest.raises(openmm.OpenMMException, match="NonFiniteForceError"):
        evaluate(context)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_through_xml(way, periodic, float64_potential, ethanol, water_box):
    """Everything that a force was made with comes back, and gives the same numbers."""
    atoms = water_box if periodic else ethanol
    system = create_system(topology_of(atoms), float64_potential.path, "python")
    force = MAKE[way.engine](
        way.potential.path,
        topology_of(atoms),
        particles=range(9),
        scale_parameter="strength",
        force_group=4,
        **way.options,
    )
    system.addForce(force)
    restored = system_from_xml(openmm.XmlSerializer.serialize(system))
    assert restored.getNumForces() == system.getNumForces()
    contexts = [context_of(each, atoms) for each in (system, restored)]
    for value in (1.0, 0.3):
        results = []
        for context in contexts:
            context.setParameter("strength", value)
            results.append(evaluate(context, groups={4}))
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-9)
        np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-10)
        assert np.abs(results[0][1]).max() > 0.001


def test_a_python_force_names_particles_after_xml(float64_potential, ethanol):
    places, positions, numbers = scattered(ethanol)
    system = openmm.System()
    for _ in numbers:
        system.addParticle(1.0)
    system.addForce(python_force(float64_potential.path, numbers, particles=places, max_force=1e-6))
    largest = places[
        int(np.linalg.norm(eager(float64_potential.eager, ethanol)[1], axis=1).argmax())
    ]
    for each in (system, copy.deepcopy(system)):
        context = context_of(each, positions * unit.angstrom)
        with pytest.raises(openmm.OpenMMException, match=rf"force on atom {largest} \("):
            evaluate(context)


def test_xml_switches_the_fuser_off(float32_potential, ethanol):
    text = openmm.XmlSerializer.serialize(
        create_system(topology_of(ethanol), float32_potential.path)
    )
    torch._C._jit_set_texpr_fuser_enabled(True)
    system_from_xml(text)
    assert not torch._C._jit_texpr_fuser_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be read")
def test_xml_for_a_gpu_is_told_how_to_be_read_without(float32_potential, ethanol):
    text = openmm.XmlSerializer.serialize(
        create_system(topology_of(ethanol), float32_potential.path)
    )
    with pytest.raises(EngineError, match='device="cpu"'):
        system_from_xml(text, device="cuda")


def test_a_cell_that_stands_for_none_is_told_apart(float32_potential, ethanol):
    topology = topology_of(ethanol)
    topology.setPeriodicBoxVectors(0.1 * np.eye(3) * unit.nanometer)
    with pytest.raises(ConfigError, match=r"volume of 1 Å³ for 9 atoms.*periodic=False"):
        create_system(topology, float32_potential.path)
    create_system(topology, float32_potential.path, periodic=False)
    # As a System gives its box: a list of three quantities.
    system = openmm.System()
    topology.setPeriodicBoxVectors(system.getDefaultPeriodicBoxVectors())
    assert create_system(topology, float32_potential.path).usesPeriodicBoundaryConditions()


def test_xml_of_another_plugin_is_refused(float32_potential, ethanol):
    system = create_system(topology_of(ethanol), float32_potential.path)
    xml = openmm.XmlSerializer.serialize(system)
    assert 'type="TorchForce"' in xml
    xml = xml.replace('usesPeriodic="0" version="4"', 'usesPeriodic="0" version="7"')
    with pytest.raises(EngineError, match=r"version 7 of its XML.*make the force anew"):
        system_from_xml(xml)


def test_loaded_potentials_are_shared(float32_potential, ethanol):
    """Two forces of one loaded potential do not load it twice."""
    exported = load_exported(float32_potential.path)
    for engine in ENGINES:
        energies = []
        for _ in range(2):
            system = create_system(topology_of(ethanol), exported, engine)
            energies.append(evaluate(context_of(system, ethanol))[0])
        assert energies[0] == energies[1]
