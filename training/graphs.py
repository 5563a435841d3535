"""From frames to graphs with labels, and batches of them.

Neighbour lists are built once, when the data set is made; an epoch only joins graphs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from forcefield import AtomicGraph, collate
from training.datasets.frames import Frame
from training.neighbors import pairs_of_frames


@dataclass(frozen=True)
class LabelledGraph:
    """One or several structures with their labels, all in float64.

    Attributes:
        graph: The structures; a last one without labels may fill a batch up to a given size, see
            :mod:`training.packed`. It has no neighbours, and its atoms have forces of zero here.
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
    """Frames as graphs, kept in memory one after the other.

    Args:
        frames: Labelled geometries.
        cutoff: Cutoff of the neighbour lists, Å.

    Attributes:
        positions: Of all frames' atoms, (n, 3), Å.
        atomic_numbers: (n,).
        forces: (n, 3), eV/Å.
        edge_index: Pairs of all frames, (2, e); each frame counts its atoms from 0.
        cell_shifts: (e, 3).
        cell: (frames, 3, 3), Å.
        energy: (frames,), eV.
        stress: (frames, 3, 3), eV/Å³, NaN where a frame has none; None if no frame has one.
        num_atoms: (frames,), int64.
        num_pairs: (frames,), int64.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float) -> None:
        pairs, shifts = pairs_of_frames(frames, cutoff)
        self.cutoff = cutoff
        self.positions = _joined([frame.positions for frame in frames], (0, 3))
        self.atomic_numbers = _joined([frame.atomic_numbers for frame in frames], (0,)).long()
        self.forces = _joined([frame.forces for frame in frames], (0, 3))
        self.edge_index = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *pairs], dim=1)
        self.cell_shifts = torch.cat([torch.zeros(0, 3, dtype=torch.float64), *shifts])
        no_cell = np.zeros((3, 3))
        cells = [no_cell if frame.cell is None else frame.cell for frame in frames]
        self.cell = _joined(cells, (0, 3)).view(-1, 3, 3)
        self.energy = torch.tensor([frame.energy for frame in frames], dtype=torch.float64)
        self.stress: Tensor | None = None
        if any(frame.stress is not None for frame in frames):
            unknown = np.full((3, 3), np.nan)
            stresses = [unknown if f.stress is None else np.asarray(f.stress) for f in frames]
            self.stress = _joined(stresses, (0, 3)).view(-1, 3, 3)
        self.num_atoms = torch.tensor([len(f.atomic_numbers) for f in frames], dtype=torch.int64)
        self.num_pairs = torch.tensor([part.shape[1] for part in pairs], dtype=torch.int64)
        self._index()

    def _index(self) -> None:
        """Note where each frame begins."""
        self._atoms = [0, *self.num_atoms.cumsum(0).tolist()]
        self._pairs = [0, *self.num_pairs.cumsum(0).tolist()]

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, index: int) -> LabelledGraph:
        index = range(len(self))[index]
        atoms = slice(self._atoms[index], self._atoms[index + 1])
        pairs = slice(self._pairs[index], self._pairs[index + 1])
        frame = slice(index, index + 1)
        graph = AtomicGraph(
            positions=self.positions[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            edge_index=self.edge_index[:, pairs].contiguous(),
            cell_shifts=self.cell_shifts[pairs],
            cell=self.cell[frame],
            batch=torch.zeros(atoms.stop - atoms.start, dtype=torch.int64),
        )
        return LabelledGraph(
            graph=graph,
            energy=self.energy[frame],
            forces=self.forces[atoms],
            num_atoms=self.num_atoms[frame].double(),
            stress=None if self.stress is None else self.stress[frame],
        )

    @property
    def items(self) -> list[LabelledGraph]:
        """All graphs, one by one."""
        return [self[index] for index in range(len(self))]

    @property
    def has_stress(self) -> bool:
        """Whether the graphs have stresses: all of them do, or none."""
        return self.stress is not None

    def evenly(self, frames: int, atoms: int) -> range:
        """Frames at equal distances: at most ``frames``, with about ``atoms`` in all, at least one."""
        step = max(1, -(-len(self) // frames), -(-len(self.positions) // atoms))
        return range(0, len(self), step)

    def subset(self, indices: Sequence[int]) -> "GraphDataset":
        """Some of the frames, as a data set of their own."""
        items = [self[index] for index in indices]
        chosen = GraphDataset([], self.cutoff)
        if not items:
            return chosen
        chosen.positions = torch.cat([item.graph.positions for item in items])
        chosen.atomic_numbers = torch.cat([item.graph.atomic_numbers for item in items])
        chosen.forces = torch.cat([item.forces for item in items])
        chosen.edge_index = torch.cat([item.graph.edge_index for item in items], dim=1)
        chosen.cell_shifts = torch.cat([item.graph.cell_shifts for item in items])
        rows = torch.as_tensor(indices)
        chosen.cell, chosen.energy = self.cell[rows], self.energy[rows]
        chosen.stress = None if self.stress is None else self.stress[rows]
        chosen.num_atoms, chosen.num_pairs = self.num_atoms[rows], self.num_pairs[rows]
        chosen._index()
        return chosen

    def average_neighbors(self) -> float:
        """Neighbours within the cutoff per atom, averaged over all atoms; at least 1."""
        # Each pair is listed once and makes two atoms neighbours.
        return max(1.0, 2 * self.edge_index.shape[1] / max(1, len(self.positions)))


def _joined(arrays: Sequence[np.ndarray], empty: tuple[int, ...]) -> Tensor:
    """Arrays one after the other, in float64."""
    return torch.as_tensor(np.concatenate(arrays) if arrays else np.zeros(empty)).double()


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


def labelled(values: Tensor, batch: LabelledGraph) -> Tensor:
    """What belongs to structures with labels, of something that belongs to structures."""
    count = batch.energy.shape[0]  # Not len, which fixes it where this is traced.
    return values if values.shape[0] == count else values[:count]


def inputs_of(batch: LabelledGraph) -> tuple[Tensor | bool, ...]:
    """What a potential is called with: its stress is asked for where there is one to compare with."""
    tensors = batch.graph.tensors()
    return tensors if batch.stress is None else (*tensors, True)


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
    for index, size in enumerate(dataset.num_atoms.tolist()):
        if index > start and atoms + size > max_atoms:
            yield slice(start, index), join([dataset[k] for k in range(start, index)])
            start, atoms = index, 0
        atoms += size
    if start < len(dataset):
        yield slice(start, len(dataset)), join([dataset[k] for k in range(start, len(dataset))])
