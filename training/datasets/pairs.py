"""Close pairs of atoms over many frames at once, for the checks before training."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from forcefield.errors import InvalidStructureError
from forcefield.neighbors import neighbor_pairs
from training.datasets.frames import FloatArray, Frame, IntArray

_DENSE_ATOMS = 64
"""Molecules up to this size are compared all against all, many frames in one go."""
_DENSE_ELEMENTS = 4_000_000
_SEARCH_CUTOFF = 1.5
"""Å; cell lists of smaller cells cost more than the pairs that they save."""


@dataclass(frozen=True)
class Pairs:
    """Pairs i < j, or an atom and an image, closer than a cutoff.

    Attributes:
        frame: Index into the given frames, (p,).
        i: First atom, (p,).
        j: Second atom, (p,).
        vector: From i to j, (p, 3), Å.
        distance: (p,), Å.
    """

    frame: IntArray
    i: IntArray
    j: IntArray
    vector: FloatArray
    distance: FloatArray


def close_pairs(frames: Sequence[Frame], cutoff: float) -> Pairs:
    """Every pair closer than the cutoff, through periodic boundaries too.

    Args:
        frames: Frames of any sizes with finite positions.
        cutoff: Å.

    Returns:
        The pairs in no particular order; both directions of a pair count as one.

    Raises:
        InvalidStructureError: A periodic direction has no cell vector.
    """
    dense: dict[int, list[int]] = defaultdict(list)
    parts = []
    for index, frame in enumerate(frames):
        if frame.pbc.any() or len(frame.atomic_numbers) > _DENSE_ATOMS:
            parts.append(_listed(frame, index, cutoff))
        else:
            dense[len(frame.atomic_numbers)].append(index)
    for indices in dense.values():
        parts.extend(_dense(frames, indices, cutoff))
    if not parts:
        parts.append((np.empty(0, int), np.empty(0, int), np.empty(0, int), np.empty((0, 3))))
    frame_index, i, j, vector = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(frame_index, i, j, vector, np.linalg.norm(vector, axis=1))


_Part = tuple[IntArray, IntArray, IntArray, FloatArray]


def _dense(frames: Sequence[Frame], indices: list[int], cutoff: float) -> Iterator[_Part]:
    """Frames of equal size outside cells: all pairs, in blocks that fit the memory."""
    atoms = len(frames[indices[0]].atomic_numbers)
    first, second = np.triu_indices(atoms, k=1)
    block = max(1, _DENSE_ELEMENTS // max(1, len(first) * 3))
    for start in range(0, len(indices), block):
        chosen = np.array(indices[start : start + block])
        positions = np.stack([frames[k].positions for k in chosen])
        vector = positions[:, second] - positions[:, first]
        which, pair = np.nonzero((vector**2).sum(axis=2) < cutoff**2)
        yield chosen[which], first[pair], second[pair], vector[which, pair]


def _listed(frame: Frame, index: int, cutoff: float) -> _Part:
    cell = np.zeros((3, 3)) if frame.cell is None else frame.cell
    try:
        (second, first), shifts = neighbor_pairs(
            frame.positions, cell, frame.pbc, max(cutoff, _SEARCH_CUTOFF)
        )
    except InvalidStructureError as error:
        raise InvalidStructureError(f"{frame.where}: {error}") from None
    vector = frame.positions[second] - frame.positions[first] + shifts @ cell
    near = (vector**2).sum(axis=1) < cutoff**2
    return np.full(int(near.sum()), index), first[near], second[near], vector[near]
