"""From frames to batches of graphs with labels.

Neighbour lists are built once, when the data set is made; an epoch only joins graphs. The order of an
epoch follows from the seed and the epoch's number alone, so that a resumed run sees what an
uninterrupted one would have seen.

Where all frames are one molecule and run on a GPU, they are kept there instead, stacked, with all pairs as
edges: every batch has the same shape, and making it takes no work on the CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from forcefield import AtomicGraph, build_graph, collate
from forcefield.neighbors import all_pairs
from training.datasets.frames import Frame

MOST_ATOMS_WITH_ALL_PAIRS = 64
"""Beyond, too many of all pairs are further apart than the cutoff."""


@dataclass(frozen=True)
class LabelledGraph:
    """One or several structures with their labels, all in float64.

    Attributes:
        graph: The structures.
        energy: Total energies, (b,), eV.
        forces: (n, 3), eV/Å.
        num_atoms: Atoms of each structure, (b,), float64.
        stress: (b, 3, 3), eV/Å³, NaN for structures without one; None where no structure has one.
    """

    graph: AtomicGraph
    energy: Tensor
    forces: Tensor
    num_atoms: Tensor
    stress: Tensor | None = None

    def to(self, device: torch.device | str) -> "LabelledGraph":
        """Copy to a device."""
        return LabelledGraph(
            self.graph.to(device),
            self.energy.to(device),
            self.forces.to(device),
            self.num_atoms.to(device),
            None if self.stress is None else self.stress.to(device),
        )


class GraphDataset(Dataset[LabelledGraph]):
    """Frames as graphs, kept in memory.

    Args:
        frames: Labelled geometries.
        cutoff: Cutoff of the neighbour lists, Å.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float) -> None:
        with_stress = any(frame.stress is not None for frame in frames)
        self.items = [_labelled(frame, cutoff, with_stress) for frame in frames]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LabelledGraph:
        return self.items[index]

    @property
    def has_stress(self) -> bool:
        """Whether the graphs have stresses: all of them do, or none."""
        return bool(self.items) and self.items[0].stress is not None

    def thinned(self, frames: int, atoms: int) -> "GraphDataset":
        """Frames at equal distances: at most ``frames``, with about ``atoms`` in all, at least one."""
        total = sum(len(item.graph.atomic_numbers) for item in self.items)
        step = max(1, -(-len(self) // frames), -(-total // atoms))
        chosen = GraphDataset([], cutoff=0.0)
        chosen.items = self.items[::step]
        return chosen

    def average_neighbors(self) -> float:
        """Neighbours within the cutoff per atom, averaged over all atoms; at least 1."""
        pairs = sum(item.graph.edge_index.shape[1] for item in self.items)
        atoms = sum(len(item.graph.atomic_numbers) for item in self.items)
        # Each pair is listed once and makes two atoms neighbours.
        return max(1.0, 2 * pairs / max(1, atoms))


def join(items: Sequence[LabelledGraph]) -> LabelledGraph:
    """Join labelled graphs into one batch."""
    stresses = [item.stress for item in items if item.stress is not None]
    return LabelledGraph(
        graph=collate([item.graph for item in items]),
        energy=torch.cat([item.energy for item in items]),
        forces=torch.cat([item.forces for item in items]),
        num_atoms=torch.cat([item.num_atoms for item in items]),
        # Of one data set all have it or none has.
        stress=torch.cat(stresses) if stresses else None,
    )


def inputs_of(batch: LabelledGraph) -> tuple[Tensor | bool, ...]:
    """What a potential is called with: its stress is asked for where there is one to compare with."""
    tensors = batch.graph.tensors()
    return tensors if batch.stress is None else (*tensors, True)


class EpochSampler(Sampler[int]):
    """A new order in every epoch, fixed by (seed, epoch); shared among the processes of a parallel run.

    Args:
        length: Frames in the data set.
        seed: Of the run.
        rank: Number of this process.
        processes: Number of processes; each gets equally many frames, some of them twice if need be.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        order += order[: len(self) * self.processes - self.length]
        return iter(order[self.rank :: self.processes])


class StackedFrames:
    """Frames of one molecule, kept on a device; batches of so many frames all have the same shape.

    Pairs beyond the cutoff count for exactly nothing, so that energies and forces are those of
    :func:`join`; what does not differ between two batches of one size is shared by them.

    Args:
        dataset: Frames for which :func:`is_one_molecule`.
        device: Where to keep them.
    """

    def __init__(self, dataset: GraphDataset, device: torch.device | str) -> None:
        items = dataset.items
        self.device = device
        self.num_atoms = len(items[0].graph.atomic_numbers)
        self.positions = torch.stack([item.graph.positions for item in items]).to(device)
        self.energy = torch.cat([item.energy for item in items]).to(device)
        self.forces = torch.stack([item.forces for item in items]).to(device)
        pairs = all_pairs(self.num_atoms)
        self._molecule = replace(
            items[0].graph,
            edge_index=pairs,
            cell_shifts=torch.zeros(pairs.shape[1], 3, dtype=torch.float64),
            cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        )
        self._shared: dict[int, tuple[AtomicGraph, Tensor]] = {}

    def batches(self, order: Sequence[int], size: int) -> Iterator[LabelledGraph]:
        """Batches of ``size`` frames in this order; the last one may be smaller.

        The frames are put in order at once, and batches are views of that.
        """
        index = torch.tensor(order).to(self.device)
        positions = self.positions.index_select(0, index)
        energy = self.energy.index_select(0, index)
        forces = self.forces.index_select(0, index)
        for part in zip(positions.split(size), energy.split(size), forces.split(size), strict=True):
            yield self._batch(*part)

    def _batch(self, positions: Tensor, energy: Tensor, forces: Tensor) -> LabelledGraph:
        count = len(energy)
        if count not in self._shared:
            graph = collate([self._molecule] * count).to(self.device)
            self._shared[count] = (graph, torch.full_like(energy, self.num_atoms))
        graph, num_atoms = self._shared[count]
        graph = replace(graph, positions=positions.flatten(0, 1))
        return LabelledGraph(graph, energy, forces.flatten(0, 1), num_atoms)


def is_one_molecule(dataset: GraphDataset) -> bool:
    """Whether all frames are the same small molecule, its atoms in the same order, and outside a cell.

    A cell through which no atom sees another one is as good as none, unless there is a stress to learn.
    """
    numbers = [item.graph.atomic_numbers for item in dataset.items]
    return (
        len(numbers) > 0
        and len(numbers[0]) <= MOST_ATOMS_WITH_ALL_PAIRS
        and all(torch.equal(numbers[0], other) for other in numbers)
        and not any(item.graph.cell_shifts.any() for item in dataset.items)
        and not dataset.has_stress
    )


class StackedLoader:
    """Batches of :class:`StackedFrames` in the sampler's order.

    Args:
        frames: On the device that trains.
        batch_size: Frames in a batch.
        sampler: Kept under this name, where the trainer looks for it to set the epoch.
    """

    def __init__(self, frames: StackedFrames, batch_size: int, sampler: EpochSampler) -> None:
        self.frames = frames
        self.batch_size = batch_size
        self.sampler = sampler

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[LabelledGraph]:
        # Not before the first batch is asked for: the trainer sets the first epoch after this call.
        yield from self.frames.batches(list(self.sampler), self.batch_size)


def training_loader(
    dataset: GraphDataset, batch_size: int, sampler: EpochSampler
) -> "DataLoader[LabelledGraph]":
    """Batches in the sampler's order."""
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=join)


ATOMS_PER_EVALUATION = 2000
"""Atoms in a batch that is only evaluated."""


def evaluation_batches(
    dataset: GraphDataset, max_atoms: int = ATOMS_PER_EVALUATION
) -> Iterator[tuple[slice, LabelledGraph]]:
    """Batches in the order of the frames, as large as speed and memory like them.

    Args:
        dataset: The frames.
        max_atoms: Atoms per batch (a larger structure makes a batch of its own).

    Yields:
        The frames' indices in the data set, and the batch.
    """
    start, atoms = 0, 0
    for index, item in enumerate(dataset.items):
        size = len(item.graph.atomic_numbers)
        if index > start and atoms + size > max_atoms:
            yield slice(start, index), join(dataset.items[start:index])
            start, atoms = index, 0
        atoms += size
    if start < len(dataset):
        yield slice(start, len(dataset)), join(dataset.items[start:])


def _labelled(frame: Frame, cutoff: float, with_stress: bool) -> LabelledGraph:
    stress = None
    if with_stress:
        unknown = np.full((3, 3), np.nan)
        stress = torch.as_tensor(unknown if frame.stress is None else frame.stress)[None].double()
    return LabelledGraph(
        graph=build_graph(
            frame.positions, frame.atomic_numbers, cutoff, frame.cell, frame.pbc.tolist()
        ),
        energy=torch.tensor([frame.energy], dtype=torch.float64),
        forces=torch.as_tensor(frame.forces, dtype=torch.float64),
        num_atoms=torch.tensor([len(frame.atomic_numbers)], dtype=torch.float64),
        stress=stress,
    )
