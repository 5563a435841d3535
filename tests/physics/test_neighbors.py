"""Neighbour lists against a brute-force sum over images, under motion and changing cells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.neighbors import Structure, check, is_right, reference, torch_force_pairs
from forcefield import neighbors
from forcefield.errors import ConfigError, InvalidStructureError
from forcefield.neighbors import MoleculePairs, VerletList, all_pairs, neighbor_pairs

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
    # Atoms end some 0.8 Å from where they began.
    assert verlet.builds == 30 if skin == 0.0 else 1 < verlet.builds <= 30


@pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
def test_a_skin_that_would_lose_pairs_is_refused(skin):
    with pytest.raises(ConfigError, match=r"skin is a length in Å, zero .* or above, found"):
        VerletList(CUTOFF, skin)


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


def test_random_cases_of_every_kind():
    """A part of ``benchmarks/neighbors.py --cases 100000``: all lists, TorchForce's among them."""
    compared, wrong = check(cases=1000, seed=99)
    assert not wrong
    for kind in ("cell thinner than the cutoff", "TorchForce"):
        assert compared[kind] > 200
    assert all(compared[f"periodic in {n} directions"] > 30 for n in range(4))
    assert compared["list with a skin, searches"] < 0.8 * compared["list with a skin"]


@pytest.mark.parametrize("fault", ["half", "cell", "strain"])
def test_the_random_cases_find_a_list_that_is_reused_for_too_long(fault, monkeypatch):
    """The faults that neighbour lists in the wild have."""
    right = VerletList._still_complete

    def wrong(self, positions, cell, pbc):
        if fault == "half":  # the whole skin instead of half of it
            self.skin *= 2.0
            answer = right(self, positions, cell, pbc)
            self.skin *= 0.5
            return answer
        if fault == "cell":  # blind for the cell
            return right(self, positions, self._cell, pbc)
        if positions.shape != self._positions.shape or (pbc != self._pbc).any():
            return False
        back = np.linalg.lstsq(cell[pbc], self._cell[pbc])[0] if pbc.any() else np.eye(3)
        moved = positions @ back - self._positions  # blind for the stretch of the cutoff
        return bool(np.linalg.norm(moved, axis=1).max() < 0.5 * self.skin)

    monkeypatch.setattr(VerletList, "_still_complete", wrong)
    # A few hundred cases each; the command line runs a hundred thousand.
    assert any(check(cases=100, seed=seed)[1]["list with a skin"] for seed in range(40))


def test_ten_thousand_steps_with_a_barostat():
    """Atoms diffuse through a sheared cell whose vectors change a little at every other step."""
    rng = np.random.default_rng(3)
    cell, pbc = 1.3 * CELLS["sheared"], np.ones(3, dtype=bool)
    positions = rng.random((16, 3)) @ cell
    velocities = rng.normal(scale=0.01, size=positions.shape)
    verlet = VerletList(CUTOFF, 0.6)
    largest = 0.0
    for step in range(10_000):
        velocities = 0.99 * velocities + rng.normal(scale=0.0015, size=positions.shape)
        positions = positions + velocities
        if step % 2:
            target = 1.3 * CELLS["sheared"] * (1.0 + 0.1 * np.sin(step / 500))
            strain = np.eye(3) + 0.01 * np.linalg.solve(cell, target - cell)
            strain = strain + rng.normal(scale=1e-5, size=(3, 3))
            cell, positions = cell @ strain, positions @ strain
        largest = max(largest, np.abs(positions @ np.linalg.inv(cell)).max())
        edges, shifts = verlet.within_cutoff(positions, cell, pbc)
        expected_edges, expected_shifts = neighbor_pairs(positions, cell, pbc, CUTOFF)
        np.testing.assert_array_equal(edges.numpy(), expected_edges)
        np.testing.assert_array_equal(shifts.numpy(), expected_shifts)
    assert largest > 1.5, "no atom left the cell"
    assert verlet.builds < 1000


def test_a_changed_cell_is_a_new_list_for_a_torch_force():
    """Unwrapped atoms six boxes apart: 0.11 Å of box vector are 0.66 Å of distance."""
    cell = 8.0 * np.eye(3)
    before = Structure(
        np.array([[0.0, 0.0, 0.0], [6 * 8.0 + 5.6, 0.0, 0.0]]), cell, np.ones(3, bool)
    )
    after = before.changed(cell=cell + 0.11 * np.eye(3))
    cutoff, skin = 5.0, 0.5
    for structure, pairs in ((before, 0), (after, 1)):
        truth = reference(structure, cutoff)
        assert sum(row[2] == 6 for row in truth[0]) == pairs
        assert is_right(torch_force_pairs(structure, cutoff, skin), structure, cutoff, truth)


def test_the_list_follows_atoms_that_lie_millions_of_cells_outside(monkeypatch):
    rng = np.random.default_rng(8)
    cell, pbc = CELLS["sheared"], np.ones(3, dtype=bool)
    positions = rng.random((6, 3)) @ cell
    away = rng.integers(-(2**20), 2**20, (6, 3))
    near, near_shifts = neighbor_pairs(positions, cell, pbc, CUTOFF)
    far, far_shifts = neighbor_pairs(positions + away @ cell, cell, pbc, CUTOFF)
    back = far_shifts + away[far[0]] - away[far[1]]
    assert both_directions(far, back) == both_directions(near, near_shifts)


def test_the_order_of_a_list_is_by_i_then_j_then_shift():
    rng = np.random.default_rng(2)
    (j, i), shifts = neighbor_pairs(
        rng.random((9, 3)) @ CELLS["small"], CELLS["small"], np.ones(3, bool), CUTOFF
    )
    order = np.lexsort((*shifts.T[::-1], j, i))
    np.testing.assert_array_equal(order, np.arange(len(i)))
    shuffled = rng.permutation(len(i))
    for atoms in (9, 2**40):  # with one number for each pair, and without
        found = neighbors._order(i[shuffled], j[shuffled], shifts[shuffled], atoms)
        np.testing.assert_array_equal(shuffled[found], order)


def test_a_barostat_does_not_pay_for_a_search_at_every_step():
    rng = np.random.default_rng(4)
    cell, pbc = 9.0 * np.eye(3), np.ones(3, dtype=bool)
    positions = rng.random((20, 3)) @ cell
    verlet = VerletList(CUTOFF, 0.5)
    for _ in range(50):
        cell, positions = cell * 1.0005, positions * 1.0005
        verlet.update(positions, cell, pbc)
    assert verlet.builds == 1
    verlet.update(positions, cell * 1.1, pbc)  # without the atoms
    assert verlet.builds == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cell_that_is_not_finite_is_refused(value):
    cell = np.eye(3) * 6.0
    cell[1, 0] = value
    with pytest.raises(InvalidStructureError, match="not finite"):
        neighbor_pairs(np.zeros((1, 3)), cell, np.ones(3, dtype=bool), CUTOFF)


def test_a_cell_of_next_to_no_height_is_refused():
    thin = np.array([[5.0, 0, 0], [4.99, 0.01, 0], [0, 0, 5.0]])
    with pytest.raises(InvalidStructureError, match=r"0\.0\d* Å"):
        neighbor_pairs(np.zeros((1, 3)), thin, np.ones(3, dtype=bool), CUTOFF)


def test_pairs_of_a_molecule_come_and_go():
    generator = np.random.default_rng(8)
    positions = generator.uniform(0.0, 6.0, size=(12, 3))
    pairs = MoleculePairs(12, CUTOFF)
    counts = set()
    for _ in range(50):
        positions += 0.2 * generator.normal(size=positions.shape)
        edge_index, shifts = pairs.within_cutoff(positions)
        expected = brute_force(positions, np.zeros((3, 3)), [False] * 3, CUTOFF)
        assert both_directions(edge_index, shifts) == expected
        assert pairs.within_cutoff(positions)[0] is edge_index
        counts.add(edge_index.shape[1])
    assert len(counts) > 5
