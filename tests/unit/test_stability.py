"""Bonds, collapse, distances, drifts: against trajectories and series whose answer is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from calculators.simulation.stability import (
    DISTANCE_EDGES,
    Bonds,
    bond_lengths,
    collapse_time,
    distance_distribution,
    distribution_error,
    find_bonds,
    mean_bonds,
    pair_distances,
)
from calculators.simulation.statistics import block_average, linear_drift
from calculators.simulation.summary import drift, verdict


def stretched(changes: np.ndarray) -> tuple[np.ndarray, Bonds]:
    """Water whose second bond is longer by given amounts, one frame each, turned and moved about."""
    water = molecule("H2O")
    bonds = find_bonds(water.numbers, water.positions)
    frames = []
    for number, change in enumerate(changes):
        atoms = water.copy()
        direction = atoms.positions[2] - atoms.positions[0]
        atoms.positions[2] += change * direction / np.linalg.norm(direction)
        atoms.rotate(17.0 * number, (1, 2, 3))
        atoms.translate((0.3 * number, -0.2, 0.1))
        frames.append(atoms.positions)
    return np.array(frames), bonds


@pytest.mark.parametrize(
    ("name", "count"), [("CH3CH2OH", 8), ("C6H6", 12), ("H2O", 2), ("CO2", 2), ("CH4", 4)]
)
def test_bonds_of_molecules(name, count):
    atoms = molecule(name)
    bonds = find_bonds(atoms.numbers, atoms.positions)
    assert len(bonds.pairs) == count
    assert (bonds.pairs[:, 0] < bonds.pairs[:, 1]).all()
    i, j = bonds.pairs.T
    np.testing.assert_allclose(bonds.lengths, atoms.get_all_distances()[i, j])


def test_bonds_through_walls_are_the_same():
    water = molecule("H2O")
    inside = find_bonds(water.numbers, water.positions)
    water.set_cell([[4.0, 0.0, 0.0], [1.5, 5.0, 0.0], [-1.0, 2.0, 6.0]])
    water.pbc = True
    water.positions[1] += water.cell.array[0] - 2 * water.cell.array[2]
    water.wrap()
    found = find_bonds(water.numbers, water.positions, water.cell.array, water.pbc)
    np.testing.assert_array_equal(found.pairs, inside.pairs)
    np.testing.assert_allclose(found.lengths, inside.lengths)
    lengths = bond_lengths(water.positions, found.pairs, water.cell.array, water.pbc)
    np.testing.assert_allclose(lengths, inside.lengths)


def test_two_bonds_of_one_pair_count_as_one():
    """In a primitive cell of diamond the two atoms are bonded four times, at equal lengths."""
    diamond = bulk("C")
    bonds = find_bonds(diamond.numbers, diamond.positions, diamond.cell.array, diamond.pbc)
    assert bonds.pairs.tolist() == [[0, 1]]


def test_mean_bonds_do_not_depend_on_one_frame():
    frames, bonds = stretched(np.array([0.0, 0.4, -0.1, 0.1]))
    found = mean_bonds(molecule("H2O").numbers, frames)
    np.testing.assert_array_equal(found.pairs, bonds.pairs)
    np.testing.assert_allclose(found.lengths, bonds.lengths + np.array([0.0, 0.1]))
    assert len(find_bonds(molecule("H2O").numbers, frames[1]).pairs) == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_collapse_is_found_when_a_bond_breaks(sign):
    """The bond changes by 0.1 Å per frame: 0.5 Å is passed in the sixth frame after the first."""
    frames, bonds = stretched(sign * np.linspace(0.0, 0.8, 9))
    times = 0.25 * np.arange(9)
    found = collapse_time(frames, times, bonds, tolerance=0.5 + 1e-9)
    assert found is not None
    assert (found.frame, found.time, found.bond) == (6, 1.5, (0, 2))
    assert found.change == pytest.approx(sign * 0.6)
    assert collapse_time(frames[:6], times[:6], bonds, tolerance=0.5 + 1e-9) is None


def test_positions_that_are_no_numbers_are_a_collapse():
    frames, bonds = stretched(np.zeros(5))
    frames[3, 1, 0] = np.nan
    found = collapse_time(frames, np.arange(5.0), bonds)
    assert found is not None
    assert (found.frame, found.bond) == (3, (0, 1))


def test_crossing_a_wall_or_changing_the_box_is_no_collapse():
    frames, bonds = stretched(np.full(6, 0.1))
    cells = np.array([np.diag([4.0 + 0.1 * k, 5.0, 6.0]) for k in range(6)])
    frames[2, 0] += cells[2, 0]
    frames[4, 2] -= 3 * cells[4, 1]
    pbc = np.ones(3, dtype=bool)
    assert collapse_time(frames, np.arange(6.0), bonds, cells=cells, pbc=pbc) is None
    assert collapse_time(frames, np.arange(6.0), bonds) is not None


def test_distances_of_a_known_molecule():
    """CO2: two distances of one length and one of twice that."""
    co2 = Atoms("OCO", [[0, 0, 1.161], [0, 0, 0], [0, 0, -1.161]])
    frames = np.array([co2.positions, co2.positions + 3.0])
    h = distance_distribution(frames)
    width = DISTANCE_EDGES[1]
    assert (h * width).sum() == pytest.approx(1.0)
    filled = np.flatnonzero(h)
    np.testing.assert_allclose(h[filled] * width, [2 / 3, 1 / 3])
    for k, distance in zip(filled, (1.161, 2.322), strict=True):
        assert DISTANCE_EDGES[k] <= distance < DISTANCE_EDGES[k + 1]


def test_error_of_distributions_goes_from_zero_to_two():
    edges = np.linspace(0.0, 2.0, 21)
    left = np.where(edges[:-1] < 0.99, 1.0, 0.0)
    assert distribution_error(left, left, edges) == 0.0
    assert distribution_error(left, left[::-1], edges) == pytest.approx(2.0)
    half = 0.5 * np.ones(20)
    assert distribution_error(left, half, edges) == pytest.approx(1.0)


def test_pair_distances_in_a_cell_count_images():
    cell = np.diag([3.0, 3.0, 3.0])
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = pair_distances(positions, cell, np.ones(3, dtype=bool), 3.01)
    # 1 and 2 Å along the line, and each atom's own images, three directions once
    np.testing.assert_allclose(np.sort(found), [1.0, 2.0] + 6 * [3.0])
    np.testing.assert_allclose(pair_distances(positions), [1.0])


def correlated(random: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """A series whose values forget each other with e^(-t / memory), of variance 1."""
    keep = np.exp(-1.0 / memory)
    noise = random.standard_normal(count) * np.sqrt(1.0 - keep**2)
    values = np.empty(count)
    values[0] = random.standard_normal()
    for k in range(1, count):
        values[k] = keep * values[k - 1] + noise[k]
    return values


def test_block_average_knows_the_memory_of_a_series():
    random = np.random.default_rng(1)
    memory, count = 10.0, 4096
    true = np.sqrt((1 + np.exp(-1 / memory)) / (1 - np.exp(-1 / memory)) / count)
    series = [-4216.0 + correlated(random, count, memory) for _ in range(20)]
    estimates = [block_average(values) for values in series]
    errors = [estimate.error for estimate in estimates]
    assert np.mean(errors) == pytest.approx(true, rel=0.3)
    assert np.mean(errors) > 3.0 / np.sqrt(count)  # that of independent values: 1 / sqrt(count)
    off = np.array([estimate.value + 4216.0 for estimate in estimates]) / errors
    assert np.abs(off).max() < 3.5
    assert block_average(np.full(50, 7.0)).error == 0.0
    assert np.isnan(block_average(np.arange(4.0)).error)
    assert np.isnan(block_average(np.empty(0)).value)


def test_drift_is_found_within_its_error():
    random = np.random.default_rng(2)
    times = np.linspace(0.0, 100.0, 2000)
    off = []
    for _ in range(20):
        energies = -55000.0 + 0.02 * times + 0.3 * correlated(random, 2000, 15.0)
        found = linear_drift(times, energies)
        off.append((found.value - 0.02) / found.error)
        assert 0.0005 < found.error < 0.01
    assert np.abs(off).max() < 4.0
    assert np.std(off) > 0.4  # errors that are far too large would hide every drift
    exact = linear_drift(times, 3.0 - 0.5 * times)
    assert exact.value == pytest.approx(-0.5)
    assert exact.error < 1e-12
    assert np.isnan(linear_drift(times[:1], times[:1]).value)


def rows_of(longest: list[float], shortest: list[float] | None = None) -> dict[str, np.ndarray]:
    count = len(longest)
    return {
        "time_ps": 0.01 * np.arange(count),
        "total_eV": -100.0 + 0.001 * np.arange(count),
        "longest_bond_A": np.array(longest),
        "shortest_bond_A": np.zeros(count) if shortest is None else np.array(shortest),
    }


def test_verdict_names_the_first_reason():
    stable = verdict(rows_of([0.0, 0.1, 0.2]), None, None)
    assert stable["stable"]
    assert stable["verdict"] == "stable: in 0.02 ps no bond changed by more than 0.20 Å"
    broken = verdict(rows_of([0.0, 0.1, 0.2], [0.0, -0.7, -0.1]), "NaN", 0.025)
    assert broken["collapse_time_ps"] == 0.01
    assert broken["verdict"] == "collapsed at t = 0.01 ps: a bond had changed by 0.70 Å"
    failed = verdict(rows_of([0.0, 0.1, 0.2]), "the force is absurd", 0.025)
    assert failed["verdict"] == "collapsed at t = 0.025 ps: the force is absurd"


def test_drift_counts_only_what_was_before_the_collapse():
    rows = rows_of([0.0] * 20)
    rows["total_eV"][10:] += 500.0
    found = drift(rows, 4, "nve", rows["time_ps"][10])
    assert found is not None
    assert found["meV_per_atom_per_ps"] == pytest.approx(1000 * 0.001 / 0.01 / 4)
    assert drift(rows, 4, "nvt", None) is None


def test_radial_distribution_of_a_gas_and_of_a_crystal():
    path = Path(__file__).parents[2] / "benchmarks" / "stability_water.py"
    spec = importlib.util.spec_from_file_location("stability_water", path)
    assert spec is not None
    assert spec.loader is not None
    water = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(water)
    random = np.random.default_rng(4)
    cells = np.array([np.diag([14.0, 15.0, 16.0])] * 20)
    gas = random.uniform(0.0, 1.0, (20, 120, 3)) @ cells
    edges, g = water.radial_distribution(gas, cells, 6.0, 24)
    assert g[8:] == pytest.approx(1.0, abs=0.15)
    assert g[12:].mean() == pytest.approx(1.0, abs=0.01)

    crystal = bulk("Cu", cubic=True) * (4, 4, 4)
    positions, cells = crystal.positions[None], crystal.cell.array[None]
    edges, g = water.radial_distribution(positions, cells, 4.0, 40)
    (k,) = np.flatnonzero(g[:30])
    assert edges[k] <= 3.61 / np.sqrt(2) < edges[k + 1]
    shell = 4.0 / 3.0 * np.pi * (edges[k + 1] ** 3 - edges[k] ** 3)
    density = (len(crystal) - 1) / crystal.get_volume()
    assert g[k] * shell * density == pytest.approx(12.0)
