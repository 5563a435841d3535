"""MLPotential("hegnn") of openmm-ml: found by its entry point, the same numbers as ours."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from forcefield.errors import CheckpointError, ConfigError

openmm = pytest.importorskip("openmm")
openmmml = pytest.importorskip("openmmml")

from calculators.openmm import create_mixed_system, create_system  # noqa: E402
from calculators.openmm_interpolate import LAMBDA  # noqa: E402
from calculators.openmmml import HEGNNPotentialImplFactory  # noqa: E402
from tests.integration.openmm_systems import (  # noqa: E402
    context_of,
    evaluate,
    peptide_file,
    peptide_in_water,
    topology_of,
)


@pytest.fixture
def path() -> Path:
    return peptide_file()


@pytest.fixture
def potential(path: Path):
    return openmmml.MLPotential("hegnn", modelPath=path)


def test_the_entry_point_names_the_factory():
    found = metadata.entry_points(group="openmmml.potentials", name="hegnn")
    assert {entry.load() for entry in found} == {HEGNNPotentialImplFactory}


def test_our_module_can_be_imported_first():
    """Each of them imports the other."""
    code = (
        "import calculators.openmmml, openmmml; "
        "print('hegnn' in openmmml.MLPotential._implFactories)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_whole_system(path, potential, float32_potential, ethanol, water_box):
    for atoms in (ethanol, water_box):
        topology = topology_of(atoms, bonds=True)
        system = potential.createSystem(topology)
        assert system.usesPeriodicBoundaryConditions() == bool(atoms.pbc.all())
        expected = evaluate(context_of(create_system(topology, path, "python"), atoms))
        energy, forces = evaluate(context_of(system, atoms))
        assert energy == pytest.approx(expected[0], abs=1e-9)
        np.testing.assert_allclose(forces, expected[1], atol=1e-10)
    context = context_of(system, atoms)
    context.getIntegrator().step(3)
    # A barostat moves molecules as a whole.
    assert [len(molecule) for molecule in context.getMolecules()] == [3] * (len(atoms) // 3)
    single = openmmml.MLPotential("hegnn", modelPath=str(float32_potential.path))
    energies = [
        evaluate(context_of(single.createSystem(topology, precision=precision), atoms))[0]
        for precision in (None, "single", "double")
    ]
    assert energies[0] == energies[1] != energies[2]
    assert energies[0] == pytest.approx(energies[2], abs=1e-3)


def test_a_mixed_system(path, potential):
    """openmm-ml's mechanical embedding and ours mean the same."""
    solution = peptide_in_water()
    classical = solution.classical()
    arguments = (solution.topology, classical, solution.solute)
    systems = [
        create_mixed_system(*arguments, path, "python", interpolate=True),
        potential.createMixedSystem(*arguments, interpolate=True),
    ]
    assert systems[0].getNumConstraints() == systems[1].getNumConstraints()
    contexts = [context_of(system, solution.positions) for system in systems]
    for value in (0.0, 0.4, 1.0):
        results = []
        for context in contexts:
            context.setParameter(LAMBDA, value)
            results.append(evaluate(context))
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
        np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_link_atoms(potential):
    """A region that ends in the middle of a peptide is capped with hydrogen, a virtual site."""
    solution = peptide_in_water()
    acetyl = [a.index for a in solution.topology.atoms() if a.residue.name == "ACE"]
    info = potential.createMixedSystem(
        solution.topology, solution.classical(), acetyl, returnInfo=True
    )
    cap = info["topology"].getNumAtoms() - 1
    assert cap == solution.topology.getNumAtoms()
    system = info["system"]
    assert system.isVirtualSite(cap)
    context = context_of(system, np.vstack([solution.positions, np.zeros((1, 3))]))
    context.computeVirtualSites()
    forces = evaluate(context)[1]
    direction = np.random.default_rng(3).normal(size=(len(acetyl), 3))
    ends = []
    for sign in (1, -1):
        positions = np.vstack([solution.positions, np.zeros((1, 3))])
        positions[acetyl] += sign * 1e-5 * direction
        context.setPositions(positions)
        context.computeVirtualSites()
        ends.append(evaluate(context)[0])
    slope = (ends[0] - ends[1]) / 2e-4  # Å
    assert -slope == pytest.approx((forces[acetyl] * direction).sum(), rel=1e-5)


def test_mistakes_are_named(path, potential, ethanol, tmp_path):
    topology = topology_of(ethanol)
    with pytest.raises(ConfigError, match="needs the exported file"):
        openmmml.MLPotential("hegnn")
    with pytest.raises(ConfigError, match="takes modelPath alone, found device"):
        openmmml.MLPotential("hegnn", modelPath=path, device="cpu")
    with pytest.raises(ConfigError, match="does not know the option 'cutoff'"):
        potential.createSystem(topology, cutoff=1.0)
    with pytest.raises(ConfigError, match="'single' or 'double', found 'half'"):
        potential.createSystem(topology, precision="half")
    topology.setPeriodicBoxVectors(0.1 * np.eye(3))
    with pytest.raises(ConfigError, match="the box has a volume of 1 Å³"):
        potential.createSystem(topology)
    topology.setPeriodicBoxVectors(None)
    missing = openmmml.MLPotential("hegnn", modelPath=tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        missing.createSystem(topology)
    solution = peptide_in_water()
    with pytest.raises(ValueError, match="mlLongRange"):
        potential.createMixedSystem(
            solution.topology, solution.classical(), solution.solute, mlLongRange=True
        )
