"""Neighbour lists against a brute-force sum over images, under motion and changing cells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcefield.errors import InvalidStructureError
from forcefield.neighbors import VerletList, all_pairs, neighbor_pairs

CUTOFF = 3.5

CELLS = {
    "cubic": np.eye(3) * 8.0,
    "small": np.diag([2.5, 3.0, 2.8]),
    "sheared": np.array([[5.0, 0.0, 0.0], [3.9, 4.0, 0.0], [-2.2, 2.9, 4.5]]),
    "left-handed": np.array([[0.0, 5.0, 0.3], [5.5, 0.0, 0.0], [0.0, 0.4, 6.0]]),
}


def brute_force(positions, cell, pbc, cutoff):
    """Every (j, i, shift) closer than the cutoff, in both directions, image by image."""
    reach = [0, 0, 0]
    for axis in range(3):
        if pbc[axis]:
            # Enough images even for positions that lie several cells outside.
            reach[axis] = 12
    found = set()
    grid = [range(-r, r + 1) for r in reach]
    shifts = np.array([[i, j, k] for i in grid[0] for j in grid[1] for k in grid[2]])
    offsets = shifts @ cell
    for i, r_i in enumerate(positions):
        for j, r_j in enumerate(positions):
            distances = np.linalg.norm(r_j - r_i + offsets, axis=1)
            for shift in shifts[(distances < cutoff) & ((i != j) | shifts.any(axis=1))]:
                found.add((j, i, *map(int, shift)))
    return found


def both_directions(pairs, shifts):
    """The pairs of a list as a set, each also turned around; none may be there twice."""
    (j, i), shifts = np.asarray(pairs), np.asarray(shifts)
    rows = {tuple(map(int, row)) for row in np.column_stack([j, i, shifts])}
    turned = {tuple(map(int, row)) for row in np.column_stack([i, j, -shifts])}
    assert len(rows) == len(j), "a pair is listed twice"
    assert not rows & turned, "a pair is listed in both directions"
    return rows | turned


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("name", list(CELLS))
def test_pairs_are_those_of_brute_force(name, pbc):
    rng = np.random.default_rng(len(name) + sum(pbc))
    cell, pbc = CELLS[name], np.array(pbc, dtype=bool)
    positions = rng.uniform(-0.4, 1.4, (7, 3)) @ cell
    pairs, shifts = neighbor_pairs(positions, cell, pbc, CUTOFF)
    assert both_directions(pairs, shifts) == brute_force(positions, cell, pbc, CUTOFF)
    assert (np.diff(pairs[1]) >= 0).all()


def test_a_slab_needs_no_third_cell_vector():
    rng = np.random.default_rng(0)
    cell = np.diag([6.0, 7.0, 0.0])
    positions = rng.uniform(0, 6, (9, 3))
    pbc = np.array([True, True, False])
    found = both_directions(*neighbor_pairs(positions, cell, pbc, CUTOFF))
    assert found == brute_force(positions, cell, pbc, CUTOFF)


def test_a_singular_cell_is_refused():
    flat = np.array([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 5.0]])
    with pytest.raises(InvalidStructureError, match="linearly dependent"):
        neighbor_pairs(np.zeros((1, 3)), flat, np.ones(3, dtype=bool), CUTOFF)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), skin=st.floats(0.0, 1.5))
def test_a_reused_list_misses_no_pair_under_motion(seed, skin):
    """Random walks, in a sheared periodic cell that changes now and then."""
    rng = np.random.default_rng(seed)
    cell, pbc = CELLS["sheared"].copy(), np.array([True, True, seed % 2 == 0])
    positions = rng.uniform(0, 1, (6, 3)) @ cell
    verlet = VerletList(CUTOFF, skin)
    for step in range(30):
        positions = positions + rng.normal(scale=0.05, size=positions.shape)
        if step % 11 == 10:
            strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
            cell, positions = cell @ strain, positions @ strain
        edge_index, shifts = verlet.update(positions, cell, pbc)
        j, i = edge_index.numpy()
        vectors = positions[j] - positions[i] + shifts.numpy() @ cell
        near = np.linalg.norm(vectors, axis=1) < CUTOFF
        reused = both_directions(edge_index.numpy()[:, near], shifts.numpy()[near])
        assert reused == both_directions(*neighbor_pairs(positions, cell, pbc, CUTOFF))
    assert verlet.builds >= 3


def test_the_skin_saves_searches():
    rng = np.random.default_rng(1)
    positions = rng.uniform(0, 8, (20, 3))
    verlet = VerletList(CUTOFF, 1.0)
    for _ in range(50):
        positions = positions + rng.normal(scale=0.005, size=positions.shape)
        verlet.update(positions, np.eye(3) * 8.0, np.ones(3, dtype=bool))
    assert verlet.builds == 1


def test_another_number_of_atoms_or_periodicity_builds_a_new_list():
    verlet = VerletList(CUTOFF, 1.0)
    positions, cell = np.random.default_rng(0).uniform(0, 5, (5, 3)), np.eye(3) * 5
    verlet.update(positions, cell, np.zeros(3, dtype=bool))
    verlet.update(positions, cell, np.ones(3, dtype=bool))
    verlet.update(positions[:4], cell, np.ones(3, dtype=bool))
    assert verlet.builds == 3


def test_all_pairs_are_all_pairs():
    edges = all_pairs(5)
    assert edges.shape == (2, 10)
    assert len({frozenset(edge) for edge in edges.T.tolist()}) == 10
    assert (edges[0] != edges[1]).all()
    assert torch.equal(all_pairs(1), torch.zeros(2, 0, dtype=torch.int64))
