"""Part potential, part force field: energies by the definition, interpolation, what is refused."""

import copy

import numpy as np
import pytest
import torch

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.openmm import create_mixed_system, python_force  # noqa: E402
from calculators.openmm_interpolate import LAMBDA  # noqa: E402
from forcefield.errors import ConfigError, UnknownElementError  # noqa: E402
from forcefield.export import ExportedPotential, load_exported  # noqa: E402
from tests.integration.openmm_systems import (  # noqa: E402
    ENGINES,
    Solution,
    context_of,
    evaluate,
    four_site_water,
    general_file,
    peptide_file,
    peptide_in_water,
)

METHODS = (app.PME, app.CutoffPeriodic)


@pytest.fixture(scope="module")
def potential() -> ExportedPotential:
    return load_exported(peptide_file())


@pytest.fixture(scope="module")
def solution() -> Solution:
    return peptide_in_water()


def by_potential(potential: ExportedPotential, numbers, positions) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of atoms alone; positions in nm."""
    inputs = torch.as_tensor(positions * 10.0, dtype=torch.float64), torch.as_tensor(numbers)
    i, j = np.triu_indices(len(numbers), k=1)
    edges = torch.as_tensor(np.stack([j, i]))
    zeros = torch.zeros(len(i), 3, dtype=torch.float64)
    cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    output = potential.module(*inputs, edges, zeros, cell, torch.zeros(len(numbers)).long())
    return output["energy"].item(), output["forces"].numpy()


def numbers_of(topology, atoms) -> list[int]:
    everything = list(topology.atoms())
    return [everything[index].element.atomic_number for index in atoms]


@pytest.mark.parametrize("engine", ENGINES)
def test_energy_and_forces_follow_the_definition(engine, potential, solution):
    """E(mixed) = E(classical) - E(classical, peptide in vacuum) + E(potential, peptide in vacuum)."""
    classical = solution.classical()
    before = openmm.XmlSerializer.serialize(classical)
    mixed = create_mixed_system(solution.topology, classical, solution.solute, potential, engine)
    assert openmm.XmlSerializer.serialize(classical) == before

    topology, positions = solution.alone(solution.solute)
    inside = solution.forcefield.createSystem(topology)
    inside_energy, inside_forces = evaluate(context_of(inside, positions))
    own = by_potential(potential, numbers_of(solution.topology, solution.solute), positions)
    expected_energy, expected = evaluate(context_of(classical, solution.positions))
    expected_energy += own[0] - inside_energy
    expected[solution.solute] += own[1] - inside_forces

    energy, forces = evaluate(context_of(mixed, solution.positions))
    assert energy == pytest.approx(expected_energy, abs=1e-7, rel=0)
    np.testing.assert_allclose(forces, expected, atol=1e-7, rtol=0)
    assert np.abs(own[1] - inside_forces).max() > 0.1


def test_forces_are_the_gradient_of_the_energy(potential, solution):
    mixed = create_mixed_system(
        solution.topology, solution.classical(), solution.solute, potential, interpolate=True
    )
    context = context_of(mixed, solution.positions)
    context.setParameter(LAMBDA, 0.3)
    forces = evaluate(context)[1]
    step = 1e-4  # Å
    direction = np.random.default_rng(2).normal(size=solution.positions.shape)
    water = np.setdiff1d(np.arange(len(direction)), solution.solute)
    for moved in (solution.solute, water):
        ends = []
        for sign in (1, -1):
            positions = solution.positions.copy()
            positions[moved] += sign * 0.1 * step * direction[moved]
            context.setPositions(positions)
            ends.append(evaluate(context)[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        assert -slope == pytest.approx((forces[moved] * direction[moved]).sum(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_lambda_leads_from_the_force_field_to_the_potential(engine, method, potential, solution):
    options = {"nonbondedMethod": method, "switchDistance": 0.8 * unit.nanometer}
    classical = solution.classical(**options)
    arguments = (solution.topology, classical, solution.solute, potential, engine)
    ends = [
        evaluate(context_of(system, solution.positions))
        for system in (classical, create_mixed_system(*arguments))
    ]
    context = context_of(create_mixed_system(*arguments, interpolate=True), solution.positions)
    assert context.getParameter(LAMBDA) == 1.0
    for value in (0.0, 0.25, 1.0):
        context.setParameter(LAMBDA, value)
        energy, forces = evaluate(context)
        for found, zero, one in zip((energy, forces), *ends, strict=True):
            np.testing.assert_allclose(found, zero + value * (one - zero), atol=1e-7, rtol=1e-11)


def test_lambda_on_the_cpu_platform(potential, solution):
    classical = solution.classical()
    mixed = create_mixed_system(
        solution.topology, classical, solution.solute, potential, interpolate=True
    )
    forces = []
    for system in (classical, mixed):
        context = context_of(system, solution.positions, "CPU")
        if system is mixed:
            context.setParameter(LAMBDA, 0.0)
        forces.append(evaluate(context)[1])
    np.testing.assert_allclose(forces[0], forces[1], atol=2e-4)  # single precision


def test_without_a_box(potential):
    """No cutoff and a plain cutoff; the region is a molecule among others."""
    solution = peptide_in_water()
    water = [residue for residue in solution.topology.residues() if residue.name == "HOH"]
    kept = solution.solute + [atom.index for residue in water[:4] for atom in residue.atoms()]
    topology, positions = solution.alone(kept)
    solute = list(range(len(solution.solute)))
    for method in (app.NoCutoff, app.CutoffNonPeriodic):
        classical = solution.forcefield.createSystem(
            topology, nonbondedMethod=method, nonbondedCutoff=0.5 * unit.nanometer
        )
        mixed = create_mixed_system(topology, classical, solute, potential, interpolate=True)
        assert not mixed.usesPeriodicBoundaryConditions()
        context = context_of(mixed, positions)
        context.setParameter(LAMBDA, 0.0)
        expected = evaluate(context_of(classical, positions))
        energy, forces = evaluate(context)
        assert energy == pytest.approx(expected[0], abs=1e-7)
        np.testing.assert_allclose(forces, expected[1], atol=1e-7)


def test_several_molecules_with_virtual_sites(potential):
    """The charge of TIP4P water sits on a site that the potential does not see."""
    water = four_site_water()
    classical = water.classical()
    mixed = create_mixed_system(water.topology, classical, water.solute, potential)
    sites = [index + 3 for index in water.solute[::3]]
    assert all(classical.isVirtualSite(site) for site in sites)
    topology, positions = water.alone(water.solute + sites)
    # Neighbours may lie on other sides of the box; alone they have to lie side by side.
    molecules = positions.reshape(3, 4, 3)
    molecules -= 1.9 * np.round((molecules[:, :1] - molecules[:1, :1]) / 1.9)
    inside = water.forcefield.createSystem(topology, flexibleConstraints=True)
    own = by_potential(potential, [8, 1, 1] * 3, molecules[:, :3].reshape(-1, 3))
    expected = (
        evaluate(context_of(classical, water.positions))[0]
        - evaluate(context_of(inside, positions))[0]
        + own[0]
    )
    assert evaluate(context_of(mixed, water.positions))[0] == pytest.approx(expected, abs=1e-7)


def add_custom_nonbonded(system: "openmm.System") -> None:
    """A soft repulsion of everything, with long-range correction, and one between two groups."""
    charges = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    size = system.getNumParticles()
    force = openmm.CustomNonbondedForce("2*exp(-3*r)*(1+a1*a2)")
    force.addPerParticleParameter("a")
    force.setNonbondedMethod(force.CutoffPeriodic)
    force.setCutoffDistance(0.9)
    for index in range(size):
        force.addParticle([0.1 * (index % 4)])
    for index in range(charges.getNumExceptions()):
        force.addExclusion(*charges.getExceptionParameters(index)[:2])
    grouped = copy.deepcopy(force)
    grouped.addInteractionGroup(range(0, size, 3), range(1, size, 3))
    grouped.addInteractionGroup([100, 101], [102, 103])
    force.setUseLongRangeCorrection(True)
    system.addForce(force)
    system.addForce(grouped)


def test_custom_nonbonded_forces(potential, solution):
    classical = solution.classical()
    add_custom_nonbonded(classical)
    arguments = (solution.topology, classical, solution.solute, potential)
    context = context_of(create_mixed_system(*arguments, interpolate=True), solution.positions)
    ends = [
        evaluate(context_of(system, solution.positions))
        for system in (classical, create_mixed_system(*arguments))
    ]
    for value in (0.0, 1.0):
        context.setParameter(LAMBDA, value)
        energy, forces = evaluate(context)
        assert energy == pytest.approx(ends[int(value)][0], abs=1e-7)
        np.testing.assert_allclose(forces, ends[int(value)][1], atol=1e-7)
    # What is gone is what the pairs of the peptide had.
    plain = create_mixed_system(*arguments)
    for kind in (classical, plain):
        for index in reversed(range(kind.getNumForces())):
            if not isinstance(kind.getForce(index), openmm.CustomNonbondedForce):
                kind.removeForce(index)
    values = [evaluate(context_of(kind, solution.positions))[0] for kind in (classical, plain)]
    assert values[0] - values[1] > 0.1


def test_molecules_stay_molecules(potential, solution):
    """For barostats and wrapped trajectories, without the bonds of the force field."""
    mixed = create_mixed_system(solution.topology, solution.classical(), solution.solute, potential)
    molecules = context_of(mixed, solution.positions).getMolecules()
    assert tuple(solution.solute) in {tuple(sorted(molecule)) for molecule in molecules}
    assert len(molecules) == sum(r.name == "HOH" for r in solution.topology.residues()) + 1


def test_constraints_inside_go_and_can_stay(potential, solution):
    classical = solution.classical()
    mixed = create_mixed_system(solution.topology, classical, solution.solute, potential)
    hydrogens = numbers_of(solution.topology, solution.solute).count(1)
    assert classical.getNumConstraints() - mixed.getNumConstraints() == hydrogens
    mixed = create_mixed_system(
        solution.topology, classical, solution.solute, potential, remove_constraints=False
    )
    assert classical.getNumConstraints() == mixed.getNumConstraints()
    rigid = solution.classical(flexibleConstraints=False)
    create_mixed_system(solution.topology, rigid, solution.solute, potential)
    with pytest.raises(ConfigError, match=r"0 and 1.* flexibleConstraints=True"):
        create_mixed_system(solution.topology, rigid, solution.solute, potential, interpolate=True)


def test_two_regions(potential, solution):
    """One after the other, each with its own force; also after a TorchForce."""
    water = next(r for r in solution.topology.residues() if r.name == "HOH")
    second = [atom.index for atom in water.atoms()]
    classical = solution.classical()
    expected = None
    for engines in (("python", "python"), ("torch", "python"), ("torch", "torch")):
        system = classical
        for region, engine in zip((solution.solute, second), engines, strict=True):
            system = create_mixed_system(solution.topology, system, region, potential, engine)
        energy, forces = evaluate(context_of(system, solution.positions))
        if expected is None:
            expected = energy, forces
        assert energy == pytest.approx(expected[0], abs=1e-7)
        np.testing.assert_allclose(forces, expected[1], atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_dynamics_under_a_barostat(engine, solution):
    """The shipped potential keeps its peptide together in classical water."""
    system = create_mixed_system(
        solution.topology,
        solution.classical(ewaldErrorTolerance=5e-4),
        solution.solute,
        general_file(),
        engine,
        interpolate=True,
    )
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 3))
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
    context = context_of(system, solution.positions, "CPU", integrator)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=3)
    context.setVelocitiesToTemperature(300.0, 3)
    start = context.getState().getPeriodicBoxVolume()
    for value in (1.0, 0.5, 0.0):
        context.setParameter(LAMBDA, value)
        integrator.step(10)
    state = context.getState(positions=True, energy=True)
    assert state.getPeriodicBoxVolume() != start
    positions = state.getPositions(asNumpy=True)._value
    assert np.isfinite(state.getPotentialEnergy()._value)
    inside = set(solution.solute)
    for bond in solution.topology.bonds():
        if bond.atom1.index in inside:
            vector = positions[bond.atom1.index] - positions[bond.atom2.index]
            assert 0.08 < np.linalg.norm(vector) < 0.18  # nm


def test_what_is_refused(potential, solution):
    topology, solute = solution.topology, solution.solute
    classical = solution.classical()

    def make(system=classical, atoms=solute, **options):
        return create_mixed_system(topology, system, atoms, potential, "python", **options)

    acetyl = [a.index for a in topology.atoms() if a.residue.name == "ACE"]
    with pytest.raises(ConfigError, match=r"cuts 1 covalent bond: C 4 \(ACE 1\) - N 6 \(ALA 2\)"):
        make(atoms=acetyl)
    make(atoms=acetyl, allow_cut_bonds=True)
    with pytest.raises(ConfigError, match="use create_system"):
        make(atoms=range(topology.getNumAtoms()))
    with pytest.raises(ConfigError, match="particle 3 is named more than once"):
        make(atoms=[*solute, 3])
    with pytest.raises(ConfigError, match=r"no particle 99999: there are \d+"):
        make(atoms=[*solute, 99999])
    with pytest.raises(ConfigError, match="22 atoms and the System"):
        create_mixed_system(solution.alone(solute)[0], classical, solute, potential)
    with pytest.raises(ConfigError, match="unknown engine"):
        create_mixed_system(topology, classical, solute, potential, "mixed")

    implicit = copy.deepcopy(classical)
    implicit.addForce(openmm.GBSAOBCForce())
    with pytest.raises(ConfigError, match="GBSAOBCForce, part of an implicit solvent"):
        make(implicit)
    biased = copy.deepcopy(classical)
    biased.addForce(openmm.RGForce())
    with pytest.raises(ConfigError, match=r"RGForce.*add it afterwards"):
        make(biased)
    dispersion = solution.classical(nonbondedMethod=app.LJPME)
    with pytest.raises(ConfigError, match="LJPME"):
        make(dispersion, interpolate=True)
    alchemical = copy.deepcopy(classical)
    charges = next(f for f in alchemical.getForces() if isinstance(f, openmm.NonbondedForce))
    charges.addGlobalParameter("charging", 1.0)
    charges.addParticleParameterOffset("charging", 5, 0.1, 0.0, 0.0)
    make(alchemical)
    with pytest.raises(ConfigError, match="'charging' changes particle 5"):
        make(alchemical, interpolate=True)
    charges.addExceptionParameterOffset("charging", 0, 0.1, 0.0, 0.0)
    with pytest.raises(ConfigError, match="'charging' scales the pair"):
        make(alchemical)
    with pytest.raises(ConfigError, match="cuda_graphs would keep the value"):
        create_mixed_system(
            topology, classical, solute, potential, interpolate=True, cuda_graphs=True
        )


def test_a_water_with_half_its_site_is_refused(potential):
    water = four_site_water()
    site = water.solute[0] + 3
    with pytest.raises(UnknownElementError, match=f"particle {site} .* has no element"):
        create_mixed_system(water.topology, water.classical(), [*water.solute, site], potential)
    with pytest.raises(ConfigError, match=r"virtual site .* inside and outside"):
        create_mixed_system(
            water.topology,
            water.classical(),
            water.solute[1:],
            potential,
            allow_cut_bonds=True,
        )


def test_a_restraint_that_reaches_out_stays(potential, solution):
    classical = solution.classical()
    restraint = openmm.CustomBondForce("50*r^2")
    restraint.addBond(solution.solute[0], solution.solute[-1] + 1)
    classical.addForce(restraint)
    mixed = create_mixed_system(solution.topology, classical, solution.solute, potential)
    kept = [f for f in mixed.getForces() if isinstance(f, openmm.CustomBondForce)]
    assert [force.getNumBonds() for force in kept] == [1]
    harmonic = next(f for f in mixed.getForces() if isinstance(f, openmm.HarmonicBondForce))
    inside = set(solution.solute)
    for index in range(harmonic.getNumBonds()):
        assert not inside & set(harmonic.getBondParameters(index)[:2])


def test_the_potential_sees_images_of_its_region_only(potential):
    """In a box narrower than a molecule and a cutoff a region meets itself, and nothing else."""
    solution = peptide_in_water()
    topology, positions = solution.alone(solution.solute)
    numbers = numbers_of(topology, range(22))
    box = np.diag([0.9, 1.9, 1.9])
    energies = []
    for periodic in (True, False):
        system = openmm.System()
        system.setDefaultPeriodicBoxVectors(*box)
        for _ in range(23):  # and a particle that the force does not act on
            system.addParticle(1.0)
        force = python_force(potential, [*numbers, 0], particles=range(22), periodic=periodic)
        system.addForce(force)
        energies.append(evaluate(context_of(system, np.vstack([positions, [[0.1, 0.2, 0.3]]])))[0])
    alone = by_potential(potential, numbers, positions)[0]
    assert energies[1] == pytest.approx(alone, abs=1e-9)
    assert abs(energies[0] - alone) > 1e-4
