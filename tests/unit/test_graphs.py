"""Batches, samplers and statistics of the training frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forcefield.errors import ConfigError, DataError
from training.datasets import Frame
from training.graphs import (
    EpochSampler,
    GraphDataset,
    StackedFrames,
    StackedLoader,
    evaluation_batches,
    is_one_molecule,
    join,
    training_loader,
)
from training.statistics import collect_statistics


def make_frames(count: int, seed: int = 0) -> list[Frame]:
    """Water-like frames of two sizes."""
    random = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        numbers = np.array([8, 1, 1] if k % 2 else [8, 1, 1, 8, 1, 1])
        frames.append(
            Frame(
                atomic_numbers=numbers,
                positions=random.normal(size=(len(numbers), 3)) * 2,
                energy=float(-2000.0 * (numbers == 8).sum() - 13.0 * (numbers == 1).sum()),
                forces=random.normal(size=(len(numbers), 3)),
            )
        )
    return frames


def test_batches_hold_the_frames_in_order():
    frames = make_frames(4)
    batch = join(GraphDataset(frames, 5.0).items)
    assert batch.energy.tolist() == [frame.energy for frame in frames]
    assert batch.num_atoms.tolist() == [6, 3, 6, 3]
    assert batch.energy.dtype == batch.forces.dtype == batch.graph.positions.dtype == torch.float64
    np.testing.assert_array_equal(batch.forces, np.concatenate([frame.forces for frame in frames]))
    assert batch.graph.batch.bincount().tolist() == [6, 3, 6, 3]
    structure = batch.graph.batch[batch.graph.edge_index]
    assert torch.equal(structure[0], structure[1])


def test_order_follows_from_seed_and_epoch_alone():
    sampler = EpochSampler(50, seed=3)
    sampler.set_epoch(7)
    order = list(sampler)
    assert sorted(order) == list(range(50))
    torch.manual_seed(123)
    later = EpochSampler(50, seed=3)
    later.set_epoch(7)
    assert list(later) == order
    later.set_epoch(8)
    assert list(later) != order
    other = EpochSampler(50, seed=4)
    other.set_epoch(7)
    assert list(other) != order


def test_processes_share_the_frames_equally():
    shares = [list(EpochSampler(10, 0, rank, 4)) for rank in range(4)]
    assert {len(share) for share in shares} == {3}
    assert set().union(*shares) == set(range(10))


def test_loader_visits_every_frame_once():
    dataset = GraphDataset(make_frames(11), 5.0)
    batches = list(training_loader(dataset, 4, EpochSampler(11, 0)))
    assert [len(batch.energy) for batch in batches] == [4, 4, 3]
    positions = torch.cat([batch.graph.positions for batch in batches])
    expected = torch.cat([item.graph.positions for item in dataset.items])
    assert torch.equal(positions.sort(0).values, expected.sort(0).values)


def test_stacked_batches_are_the_joined_ones_with_all_pairs():
    dataset = GraphDataset(make_frames(22)[1::2], 3.0)
    stacked = StackedLoader(StackedFrames(dataset, "cpu"), 4, EpochSampler(11, 5))
    ordinary = training_loader(dataset, 4, EpochSampler(11, 5))
    stacked.sampler.set_epoch(3)
    ordinary.sampler.set_epoch(3)
    assert len(stacked) == len(ordinary) == 3
    for batch, expected in zip(stacked, ordinary, strict=True):
        assert torch.equal(batch.energy, expected.energy)
        assert torch.equal(batch.forces, expected.forces)
        assert torch.equal(batch.num_atoms, expected.num_atoms)
        for name in ("positions", "atomic_numbers", "cell", "batch"):
            assert torch.equal(getattr(batch.graph, name), getattr(expected.graph, name)), name
        pairs = {tuple(pair) for pair in batch.graph.edge_index.T.tolist()}
        assert len(pairs) == batch.graph.edge_index.shape[1] == 3 * len(batch.energy)
        assert pairs >= {tuple(pair) for pair in expected.graph.edge_index.T.tolist()}
        assert not batch.graph.cell_shifts.any()


def test_one_molecule_is_one_outside_a_cell_with_its_atoms_in_order():
    water = make_frames(6)[1::2]
    assert is_one_molecule(GraphDataset(water, 5.0))
    assert not is_one_molecule(GraphDataset(make_frames(6), 5.0))
    assert not is_one_molecule(GraphDataset([], 5.0))
    turned = replace(water[1], atomic_numbers=np.array([1, 8, 1]))
    assert not is_one_molecule(GraphDataset([water[0], turned], 5.0))
    periodic = replace(water[0], cell=np.eye(3) * 4.0, pbc=np.array([True] * 3))
    assert not is_one_molecule(GraphDataset([water[0], periodic], 5.0))
    positions = np.arange(195.0).reshape(65, 3)
    large = Frame(np.ones(65, dtype=int), positions, -1.0, np.ones((65, 3)))
    assert not is_one_molecule(GraphDataset([large], 5.0))


@pytest.mark.parametrize("max_atoms", [1, 9, 10, 1000])
def test_evaluation_batches_cover_all_frames_in_order(max_atoms):
    dataset = GraphDataset(make_frames(9), 5.0)
    found = []
    for part, batch in evaluation_batches(dataset, max_atoms):
        assert len(batch.energy) == part.stop - part.start
        assert batch.num_atoms.sum() <= max_atoms or len(batch.energy) == 1
        found += range(part.start, part.stop)
    assert found == list(range(9))


def test_statistics_reproduce_the_frames():
    frames = make_frames(6)
    statistics = collect_statistics(frames, avg_neighbors=4.5)
    assert statistics.species == [1, 8]
    assert statistics.avg_neighbors == 4.5
    forces = np.concatenate([frame.forces for frame in frames])
    assert statistics.energy_scale == pytest.approx(np.sqrt(np.mean(forces**2)))
    for frame in frames:
        total = sum(statistics.reference_energies[int(z)] for z in frame.atomic_numbers)
        assert total == pytest.approx(frame.energy, abs=1e-6)


def test_isolated_atoms_come_before_the_fit_and_the_users_word_before_both():
    frames = make_frames(4)
    isolated = {1: -13.1, 8: -2001.0, 6: -1000.0}
    assert collect_statistics(frames, 1.0, isolated).reference_energies == {1: -13.1, 8: -2001.0}
    assert "least squares" in collect_statistics(frames, 1.0, {1: -13.1}).reference_source
    given = collect_statistics(frames, 1.0, isolated, {"H": -1.0, "O": -2.0})
    assert given.reference_energies == {1: -1.0, 8: -2.0}


def test_reference_energies_must_fit_the_elements():
    frames = make_frames(2)
    with pytest.raises(ConfigError, match="no energy for O"):
        collect_statistics(frames, 1.0, given={"H": -13.6})
    with pytest.raises(ConfigError, match="'Xx' is not an element"):
        collect_statistics(frames, 1.0, given={"Xx": -13.6})


def test_vanishing_forces_are_refused():
    frame = Frame(np.array([1, 1]), np.eye(3)[:2], -30.0, np.zeros((2, 3)))
    with pytest.raises(DataError, match="exactly zero"):
        collect_statistics([frame], 1.0)
