"""The energy does not change under symmetries of space; forces and stress turn with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from forcefield import Potential, build_graph
from tests.conftest import ARCHITECTURES, Structure, make_potential

MODELS = {name: make_potential(name) for name in ARCHITECTURES}

seeds = st.integers(0, 2**32 - 1)
quaternions = st.tuples(*[st.floats(-1, 1) for _ in range(4)]).filter(
    lambda q: np.linalg.norm(q) > 0.1
)


def random_molecule(seed: int) -> Structure:
    """Ten atoms at least 0.9 Å apart."""
    rng = np.random.default_rng(seed)
    positions = np.empty((0, 3))
    while len(positions) < 10:
        trial = rng.uniform(-2.2, 2.2, 3)
        if len(positions) == 0 or np.linalg.norm(positions - trial, axis=1).min() > 0.9:
            positions = np.vstack([positions, trial])
    return Structure(positions, rng.choice([1, 6, 8], 10))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@settings(max_examples=15, deadline=None)
@given(seed=seeds, quaternion=quaternions, reflect=st.booleans())
def test_rotation_and_reflection(name, seed, quaternion, reflect):
    structure = random_molecule(seed)
    matrix = Rotation.from_quat(quaternion).as_matrix() * (-1.0 if reflect else 1.0)
    before = structure.evaluate(MODELS[name])
    after = structure.moved(structure.positions @ matrix.T).evaluate(MODELS[name])
    np.testing.assert_allclose(after["energies"], before["energies"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(after["forces"], before["forces"] @ matrix.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@settings(max_examples=10, deadline=None)
@given(seed=seeds, shift=st.tuples(*[st.floats(-50, 50) for _ in range(3)]))
def test_translation(name, seed, shift):
    structure = random_molecule(seed)
    before = structure.evaluate(MODELS[name])
    after = structure.moved(structure.positions + np.array(shift)).evaluate(MODELS[name])
    np.testing.assert_allclose(after["energy"], before["energy"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(after["forces"], before["forces"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@settings(max_examples=10, deadline=None)
@given(seed=seeds, order=st.permutations(range(10)))
def test_permutation(name, seed, order):
    structure = random_molecule(seed)
    order = np.array(order)
    before = structure.evaluate(MODELS[name])
    after = Structure(structure.positions[order], structure.numbers[order]).evaluate(MODELS[name])
    np.testing.assert_allclose(after["energy"], before["energy"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(after["forces"], before["forces"][order], rtol=0, atol=1e-10)


def test_wrapping_and_origin_in_a_periodic_cell(potential: Potential, crystal: Structure):
    before = crystal.evaluate(potential, stress=True)
    rng = np.random.default_rng(0)
    images = crystal.positions + rng.integers(-3, 4, (8, 3)) @ crystal.cell
    for positions in (images, crystal.positions + np.array([1.7, -0.4, 12.3])):
        after = crystal.moved(positions).evaluate(potential, stress=True)
        for key in before:
            np.testing.assert_allclose(after[key], before[key], rtol=0, atol=1e-9)


def test_rotating_a_crystal_turns_its_stress(potential: Potential, crystal: Structure):
    matrix = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    before = crystal.evaluate(potential, stress=True)
    rotated = crystal.moved(crystal.positions @ matrix.T, crystal.cell @ matrix.T)
    after = rotated.evaluate(potential, stress=True)
    np.testing.assert_allclose(after["energy"], before["energy"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        after["stress"][0], matrix @ before["stress"][0] @ matrix.T, atol=1e-10
    )


def test_supercell_has_the_same_energy_per_atom(potential: Potential, crystal: Structure):
    single = crystal.evaluate(potential, stress=True)
    doubled = Structure(
        np.vstack([crystal.positions, crystal.positions + crystal.cell[0]]),
        np.tile(crystal.numbers, 2),
        crystal.cell * np.array([[2.0], [1.0], [1.0]]),
        crystal.pbc,
    ).evaluate(potential, stress=True)
    np.testing.assert_allclose(doubled["energy"], 2 * single["energy"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(doubled["forces"], np.tile(single["forces"], (2, 1)), atol=1e-10)
    np.testing.assert_allclose(doubled["stress"], single["stress"], atol=1e-10)


def test_either_direction_of_a_pair_will_do(potential: Potential, crystal: Structure):
    """Pairs are listed once; which of its atoms comes first must not matter."""
    graph = build_graph(
        crystal.positions, crystal.numbers, potential.cutoff, crystal.cell, crystal.pbc
    )
    turn = torch.rand(graph.edge_index.shape[1], generator=torch.manual_seed(0)) < 0.5
    edges = torch.where(turn, graph.edge_index.flip(0), graph.edge_index)
    shifts = torch.where(turn.unsqueeze(1), -graph.cell_shifts, graph.cell_shifts)
    before = potential(*graph.tensors(), True)
    after = potential(
        graph.positions, graph.atomic_numbers, edges, shifts, graph.cell, graph.batch, True
    )
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-10)
