"""Batches of one shape from frames of any, made on the device that trains.

What a GPU does can be recorded once and replayed (:mod:`training.recorded`) if every batch has the same
numbers of structures, atoms and pairs. Here batches have room for a little more than the average, and one
more structure without neighbours or labels fills them up. All frames stay on the device; a batch is a
few index operations there.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forcefield import AtomicGraph
from forcefield.errors import ConfigError
from training.graphs import GraphDataset, LabelledGraph
from training.loaders import EpochSampler

DEVIATIONS = 2.0
"""Room above the average batch, in standard deviations of a batch's size."""
FILLING_ATOMS = 2
"""At least so many, for the pairs that fill up."""


class PackedFrames:
    """Frames on a device, and batches of a number of them that all have the same shape.

    Args:
        dataset: At least one frame.
        batch_size: Frames in a batch b.
        device: Where to keep them.

    Attributes:
        num_atoms: Atoms in a batch, with those that fill it up.
        num_pairs: Pairs in a batch, likewise.
    """

    def __init__(self, dataset: GraphDataset, batch_size: int, device: torch.device | str) -> None:
        self.batch_size = batch_size
        self.sizes = np.stack([dataset.num_atoms.numpy(), dataset.num_pairs.numpy()], axis=1)
        self.room = room_for(self.sizes, batch_size)
        self.num_pairs = int(self.room[1])
        self.num_atoms = int(self.room[0]) + FILLING_ATOMS
        self._atoms = dataset.num_atoms.to(device)
        self._pairs = dataset.num_pairs.to(device)
        self._first_atom = self._atoms.cumsum(0) - self._atoms
        self._first_pair = self._pairs.cumsum(0) - self._pairs
        # The last row of each is what fills up.
        self._positions = _with_row(dataset.positions, 0.0).to(device)
        self._numbers = _with_row(dataset.atomic_numbers, dataset.atomic_numbers[0]).to(device)
        self._forces = _with_row(dataset.forces, 0.0).to(device)
        self._edge_index = _with_row(dataset.edge_index.T, 0).T.contiguous().to(device)
        self._shifts = _with_row(dataset.cell_shifts, 0.0).to(device)
        self._cell = dataset.cell.to(device)
        self._energy = dataset.energy.to(device)
        self._stress = None if dataset.stress is None else dataset.stress.to(device)
        self._atom_slots = torch.arange(self.num_atoms, device=device)
        self._pair_slots = torch.arange(self.num_pairs, device=device)
        # Pairs that fill up join the last atom with others that fill up: further away than the cutoff.
        self._away = torch.zeros(self.num_atoms, 3, dtype=torch.float64, device=device)
        self._away[-1, 0] = 2.0 * dataset.cutoff

    def batch(self, frames: Tensor) -> LabelledGraph:
        """A batch; nothing here waits for the device.

        Args:
            frames: Indices of b frames that fit, see :meth:`batches`, on the device.
        """
        counts = self._atoms.index_select(0, frames)
        starts, structure, atom, _ = _places(
            counts,
            self._first_atom.index_select(0, frames),
            self._atom_slots,
            len(self._numbers) - 1,
        )
        _, pair_structure, pair, is_filling_pair = _places(
            self._pairs.index_select(0, frames),
            self._first_pair.index_select(0, frames),
            self._pair_slots,
            self._edge_index.shape[1] - 1,
        )
        edge_index = self._edge_index.index_select(1, pair)
        edge_index = edge_index + starts.index_select(0, pair_structure)
        last, filling_starts = self.num_atoms - 1, starts[-1]
        # Spread over all atoms that fill up: thousands adding to one would wait for each other.
        other = filling_starts + self._pair_slots % (last - filling_starts)
        filling = torch.stack([torch.full_like(other, last), other])
        cell = self._cell.index_select(0, frames)
        graph = AtomicGraph(
            positions=self._positions.index_select(0, atom) + self._away,
            atomic_numbers=self._numbers.index_select(0, atom),
            edge_index=torch.where(is_filling_pair, filling, edge_index),
            cell_shifts=self._shifts.index_select(0, pair),
            cell=torch.cat([cell, torch.zeros_like(cell[:1])]),
            batch=structure,
        )
        return LabelledGraph(
            graph=graph,
            energy=self._energy.index_select(0, frames),
            forces=self._forces.index_select(0, atom),
            num_atoms=counts.double(),
            stress=None if self._stress is None else self._stress.index_select(0, frames),
        )

    def batches(self, order: Sequence[int]) -> Iterator[LabelledGraph]:
        """Batches of an epoch; the last one is filled up with the epoch's first frames.

        Frames of batches that are too large change places with others.

        Args:
            order: Indices of the frames, at least one.
        """
        count = -(-len(order) // self.batch_size)
        frames = np.resize(np.asarray(order), count * self.batch_size)
        even_out(frames.reshape(count, self.batch_size), self.sizes, self.room)
        for part in torch.from_numpy(frames).to(self._energy.device).split(self.batch_size):
            yield self.batch(part)


class PackedLoader:
    """Batches of :class:`PackedFrames` in the sampler's order.

    Args:
        frames: On the device that trains.
        sampler: Kept under this name, where the trainer looks for it to set the epoch.
    """

    def __init__(self, frames: PackedFrames, sampler: EpochSampler) -> None:
        self.frames = frames
        self.sampler = sampler

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.frames.batch_size)

    def __iter__(self) -> Iterator[LabelledGraph]:
        # Not before the first batch is asked for: the trainer sets the first epoch after this call.
        yield from self.frames.batches(list(self.sampler))


def even_out(batches: NDArray[np.int64], sizes: NDArray[np.int64], room: NDArray[np.int64]) -> None:
    """Swap frames in place until every batch fits.

    Args:
        batches: Indices of the frames, (batches, b).
        sizes: Atoms and pairs of each frame, (frames, 2).
        room: Atoms and pairs that a batch may have, (2,), as :func:`room_for` makes it.

    Raises:
        ConfigError: It cannot be done. Where frames with more atoms have more pairs, it can.
    """
    totals = sizes[batches].sum(axis=1)
    for _ in range(10 * len(batches)):
        fullness = (totals / np.maximum(room, 1)).max(axis=1)
        full, light = int(fullness.argmax()), int(fullness.argmin())
        if (totals[full] <= room).all():
            return
        kind = int((totals[full] / np.maximum(room, 1)).argmax())
        big = int(sizes[batches[full], kind].argmax())
        small = int(sizes[batches[light], kind].argmin())
        change = sizes[batches[full, big]] - sizes[batches[light, small]]
        batches[full, big], batches[light, small] = batches[light, small], batches[full, big]
        totals[full] -= change
        totals[light] += change
    raise ConfigError(
        "the frames' numbers of atoms and of neighbours are so uneven that batches of one size "
        "cannot be made; hardware.compile=false does without"
    )


def room_for(sizes: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Atoms and pairs to make room for."""
    average = batch_size * sizes.mean(axis=0)
    spread = DEVIATIONS * math.sqrt(batch_size) * sizes.std(axis=0)
    # Two of different size can always change places below this.
    least = average + 2 * (sizes.max(axis=0) - sizes.min(axis=0))
    most = batch_size * sizes.max(axis=0)
    room: NDArray[np.int64] = np.ceil(np.minimum(np.maximum(average + spread, least), most))
    return room.astype(np.int64)


def _places(
    counts: Tensor, first: Tensor, slots: Tensor, filling: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the rows of a batch's frames, and what fills up, come to lie.

    Args:
        counts: Rows of each frame, (b,).
        first: The first one's number among the rows of all frames, (b,).
        slots: 0, 1, ... for each place in the batch.
        filling: The number of the row that fills up.

    Returns:
        Where each structure begins, and what fills up, (b + 1,); and for each slot its structure, its
        row among all frames', and whether it fills up.
    """
    ends = counts.cumsum(0)
    structure = torch.searchsorted(ends, slots, right=True)
    is_filling = structure == len(counts)
    offset = first - (ends - counts)
    row = slots + offset.index_select(0, structure.clamp(max=len(counts) - 1))
    starts = torch.cat([ends - counts, ends[-1:]])
    return starts, structure, torch.where(is_filling, filling, row), is_filling


def _with_row(rows: Tensor, value: float | Tensor) -> Tensor:
    """One more row."""
    return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), float(value))])
