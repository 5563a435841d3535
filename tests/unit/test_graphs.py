"""Batches, samplers and statistics of the training frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forcefield import build_potential
from forcefield.errors import ConfigError, DataError, InvalidStructureError
from forcefield.graph import edge_vectors
from forcefield.neighbors import neighbor_pairs
from training.clock import Clock
from training.compiled import as_tensors
from training.config import TrainingConfig
from training.datasets import Frame
from training.graphs import GraphDataset, evaluation_batches, join
from training.loaders import EpochSampler, training_loader
from training.module import ForceFieldModule
from training.packed import PackedFrames, PackedLoader, even_out, room_for
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


def periodic_frames(count: int) -> list[Frame]:
    """Frames of several sizes, some in a cell, some with a stress."""
    random = np.random.default_rng(1)
    frames = make_frames(count)
    for k in range(0, count, 3):
        cell = np.eye(3) * 4.0 + random.normal(size=(3, 3)) * 0.1
        stress = np.eye(3) * k if k % 2 else None
        frames[k] = replace(frames[k], cell=cell, pbc=np.array([True] * 3), stress=stress)
    return frames


def test_every_frame_has_the_pairs_of_a_search_of_its_own():
    frames = periodic_frames(9)
    dataset = GraphDataset(frames, 3.0)
    for item, frame in zip(dataset.items, frames, strict=True):
        cell = np.zeros((3, 3)) if frame.cell is None else frame.cell
        pairs, shifts = neighbor_pairs(frame.positions, cell, frame.pbc, 3.0)
        np.testing.assert_array_equal(item.graph.edge_index, pairs)
        np.testing.assert_array_equal(item.graph.cell_shifts, shifts)


def test_a_frame_that_is_not_finite_is_named_when_graphs_are_made():
    frames = make_frames(3)
    frames[1].positions[2, 0] = np.nan
    with pytest.raises(InvalidStructureError, match="atom 2 is not finite"):
        GraphDataset(frames, 3.0)


def test_packed_batches_give_the_losses_of_ordinary_ones():
    dataset = GraphDataset(periodic_frames(18), 3.0)
    packed = PackedLoader(PackedFrames(dataset, 6, "cpu"), EpochSampler(18, 5))
    ordinary = training_loader(dataset, 6, EpochSampler(18, 5))
    assert len(packed) == len(ordinary) == 3
    torch.manual_seed(0)
    architecture = {"name": "hegnn", "cutoff": 3.0, "layers": 2, "features": 8, "channels": 4}
    potential = build_potential(architecture, [1, 8], dtype=torch.float64)
    module = ForceFieldModule(potential, TrainingConfig(), 10, Clock(None))
    totals, shapes = [], set()
    for loader in (packed, ordinary):
        loader.sampler.set_epoch(3)
        for batch in loader:
            loss, sums = module.evaluate(batch)
            totals.append(torch.cat([loss.detach().view(1), sums]))
            if loader is packed:
                shapes.add(tuple(tensor.shape for tensor in as_tensors(batch)))
    assert len(shapes) == 1
    for found, expected in zip(totals[:3], totals[3:], strict=True):
        torch.testing.assert_close(found, expected)


def test_packed_batches_fill_up_with_pairs_beyond_the_cutoff():
    dataset = GraphDataset(make_frames(7), 3.0)
    frames = PackedFrames(dataset, 4, "cpu")
    batches = list(frames.batches(range(7)))
    assert [batch.energy.tolist() for batch in batches] == [
        dataset.energy[:4].tolist(),
        [*dataset.energy[4:].tolist(), float(dataset.energy[0])],
    ]
    for batch in batches:
        graph = batch.graph
        vectors = edge_vectors(*graph.tensors()[:1], *graph.tensors()[2:])
        structure = graph.batch[graph.edge_index]
        assert torch.equal(structure[0], structure[1])
        filling = structure[0] == 4
        assert filling.any()
        assert (vectors[filling].norm(dim=1) > 3.0).all()
        assert (vectors[~filling].norm(dim=1) < 3.0).all()
        assert not batch.forces[graph.batch == 4].any()


@pytest.mark.parametrize("batch_size", [1, 3, 16, 60])
def test_frames_of_batches_that_are_too_large_change_places(batch_size):
    random = np.random.default_rng(batch_size)
    for _ in range(20):
        sizes = random.integers(1, random.integers(2, 200), size=(60, 2))
        sizes[:, 1] *= sizes[:, 0]
        order = random.permutation(60)
        batches = np.resize(order, (-(-60 // batch_size), batch_size))
        before = np.bincount(batches.ravel())
        room = room_for(sizes, batch_size)
        even_out(batches, sizes, room)
        assert (sizes[batches].sum(axis=1) <= room).all()
        np.testing.assert_array_equal(np.bincount(batches.ravel()), before)


@pytest.mark.parametrize("max_atoms", [1, 9, 10, 1000])
def test_evaluation_batches_cover_all_frames_in_order(max_atoms):
    dataset = GraphDataset(make_frames(9), 5.0)
    found = []
    for part, batch in evaluation_batches(dataset, max_atoms):
        assert len(batch.energy) == part.stop - part.start
        assert batch.num_atoms.sum() <= max_atoms or len(batch.energy) == 1
        found += range(part.start, part.stop)
    assert found == list(range(9))


def test_some_of_the_frames_are_a_data_set_of_their_own():
    frames = make_frames(9)
    dataset = GraphDataset(frames, 5.0)
    assert list(dataset.evenly(4, 1000)) == [0, 3, 6]
    assert list(dataset.evenly(100, 10)) == [0, 5]  # 42 atoms
    for chosen in ([0, 3, 6], [8, 1], range(0, 9, 4)):
        found = dataset.subset(chosen)
        expected = GraphDataset([frames[k] for k in chosen], 5.0)
        for one, other in zip(found.items, expected.items, strict=True):
            for a, b in zip(as_tensors(one), as_tensors(other), strict=True):
                assert torch.equal(a, b)


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
