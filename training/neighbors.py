"""Neighbour lists of many frames.

Frames outside a cell are looked at together, all of one size at once: a hundred thousand small molecules
take seconds where one search each takes minutes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forcefield import build_graph
from forcefield.neighbors import all_pairs
from training.datasets.frames import Frame

LARGEST_MOLECULE = 100
"""Atoms up to which it is faster to look at all pairs."""

PAIRS_AT_A_TIME = 4_000_000


def pairs_of_frames(frames: Sequence[Frame], cutoff: float) -> tuple[list[Tensor], list[Tensor]]:
    """Every pair closer than the cutoff, once, in each frame.

    Args:
        frames: Geometries.
        cutoff: Å.

    Returns:
        For each frame atoms j and i (2, e), int64, and cell shifts (e, 3), float64, sorted as by
        :func:`forcefield.neighbors.neighbor_pairs`.

    Raises:
        InvalidStructureError: See :func:`forcefield.graph.build_graph`.
    """
    pairs: list[Tensor] = [torch.empty(0)] * len(frames)
    shifts = list(pairs)
    by_size: dict[int, list[int]] = {}
    for index, frame in enumerate(frames):
        size = len(frame.atomic_numbers)
        if 1 < size <= LARGEST_MOLECULE and not frame.pbc.any() and _is_sound(frame):
            by_size.setdefault(size, []).append(index)
        else:
            graph = build_graph(
                frame.positions, frame.atomic_numbers, cutoff, frame.cell, frame.pbc.tolist()
            )
            pairs[index], shifts[index] = graph.edge_index, graph.cell_shifts
    for size, indices in by_size.items():
        j, i = every = all_pairs(size)
        step = max(1, PAIRS_AT_A_TIME // len(i))
        none = torch.zeros(len(i), 3, dtype=torch.float64)
        for begin in range(0, len(indices), step):
            part = indices[begin : begin + step]
            positions = torch.as_tensor(np.stack([frames[k].positions for k in part]))
            vectors = positions.index_select(1, j) - positions.index_select(1, i)
            near = vectors.square().sum(dim=2) < cutoff**2
            found = every.index_select(1, near.nonzero()[:, 1])
            counts = near.sum(dim=1).tolist()
            for k, edge_index in zip(part, found.split(counts, dim=1), strict=True):
                pairs[k], shifts[k] = edge_index, none[: edge_index.shape[1]]
    return pairs, shifts


def _is_sound(frame: Frame) -> bool:
    """Whether positions are finite and as many as the atoms; who finds out says it better."""
    shape = (len(frame.atomic_numbers), 3)
    return frame.positions.shape == shape and bool(np.isfinite(frame.positions).all())
