"""The order of an epoch, and batches in that order.

The order follows from the seed and the epoch's number alone, so that a resumed run sees what an
uninterrupted one would have seen.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from training.graphs import GraphDataset, LabelledGraph, join


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


def training_loader(
    dataset: GraphDataset, batch_size: int, sampler: EpochSampler
) -> "DataLoader[LabelledGraph]":
    """Batches in the sampler's order."""
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=join)
