"""Pairs of frames a lag apart, and how they are divided into training and test frames.

Frames next to each other in time are alike, so that a test on frames drawn at random from a trajectory
says nothing: training and test frames here are whole trajectories or contiguous blocks in time, and two
blocks of one trajectory are further apart than the lag.

A block is a range of frames of one trajectory, counted over all trajectories one behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from forcefield.errors import DataError

LEAST_PAIRS = 20
"""Pairs that training and test frames must have at least."""

VALIDATION_PARTS = 5
"""Parts that the frames of a training are divided into; one of them is held out for validation."""


INNER_FOLDS = 3
"""Parts that a linear model divides its training frames into."""

SMALLEST_FOLD = 0.5
"""Smallest test of whole trajectories, in units of an equal share of the frames."""


@dataclass(frozen=True, order=True)
class Block:
    """Frames start, ..., stop - 1, all of one trajectory."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.stop - self.start


@dataclass(frozen=True)
class Split:
    """A division of the frames.

    Attributes:
        train: Blocks to learn from.
        test: Blocks to test on.
    """

    train: tuple[Block, ...]
    test: tuple[Block, ...]


def whole_trajectories(bounds: Sequence[int]) -> tuple[Block, ...]:
    """A block for each trajectory that has frames.

    Args:
        bounds: First frame of each trajectory, and the number of all frames at the end.
    """
    return tuple(Block(a, b) for a, b in pairwise(bounds) if b > a)


def lagged_pairs(blocks: Sequence[Block], lag: int) -> np.ndarray:
    """First frames of all pairs (i, i + lag) within the blocks, ascending in each block."""
    parts = [np.arange(block.start, block.stop - lag) for block in blocks if block.length > lag]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def frames_of(blocks: Sequence[Block]) -> np.ndarray:
    """All frames of the blocks."""
    return np.concatenate([np.arange(block.start, block.stop) for block in blocks])


def cross_validation(blocks: Sequence[Block], lag: int, folds: int) -> list[Split]:
    """Divide frames so that each is a test frame once.

    With at least as many blocks as folds, whole blocks are test frames, in folds of about the same
    number of frames. With fewer, or where some fold would have less than half of its share, each is cut
    into as many pieces in time as there are folds; the k-th piece of each makes up the k-th test, and the
    frames less than a lag away from it are left out.

    Args:
        blocks: What to divide, such as :func:`whole_trajectories`.
        lag: Frames.
        folds: Number of divisions, at least 2.

    Raises:
        DataError: There are too few pairs of frames for that.
    """
    return _divide(blocks, lag, folds, f"{folds} folds")


def inner_validation(blocks: Sequence[Block], lag: int) -> list[Split]:
    """Divisions of the frames of a fold by which a linear model chooses its number of components.

    Args:
        blocks: Frames to learn from.
        lag: Frames.

    Raises:
        DataError: There are too few pairs of frames for that.
    """
    return _divide_again(blocks, lag, INNER_FOLDS, "by turns")


def hold_out(blocks: Sequence[Block], lag: int) -> Split:
    """A fifth of the frames to learn from for validation, divided as in :func:`cross_validation`.

    Args:
        blocks: Frames to learn from, such as those that a fold leaves.
        lag: Frames.

    Raises:
        DataError: There are too few pairs of frames for that.
    """
    return _divide_again(blocks, lag, VALIDATION_PARTS, "one of them for validation")[-1]


def _divide_again(blocks: Sequence[Block], lag: int, parts: int, use: str) -> list[Split]:
    """Divisions within a training, of the frames that its fold leaves it."""
    what = (
        f"each training divides the frames that its fold leaves it into {parts} parts, {use}: parts"
    )
    return _divide(blocks, lag, parts, what)


def _divide(blocks: Sequence[Block], lag: int, folds: int, what: str) -> list[Split]:
    """The divisions of :func:`cross_validation`; ``what`` they are, for the message."""
    tests = _whole(blocks, folds)
    share = sum(map(_length, blocks)) / folds
    if min(sum(map(_length, test)) for test in tests) < SMALLEST_FOLD * share:
        tests = _pieces(blocks, folds)
    splits = [Split(tuple(_outside(blocks, test, lag)), tuple(test)) for test in tests]
    parts = [part for split in splits for part in (split.train, split.test)]
    least = min(len(lagged_pairs(part, lag)) for part in parts)
    if least < LEAST_PAIRS:
        longest = max(map(_length, blocks), default=0)
        raise DataError(
            f"{what} of blocks of at most {longest} frames leave {least} pairs of frames {lag} apart, "
            f"and at least {LEAST_PAIRS} are needed: choose a shorter lag, longer trajectories, or "
            "fewer folds"
        )
    return splits


def _length(block: Block) -> int:
    return block.length


def _whole(blocks: Sequence[Block], folds: int) -> list[list[Block]]:
    """Folds of whole blocks: the longest first, each to the fold that has fewest frames."""
    tests: list[list[Block]] = [[] for _ in range(folds)]
    for block in sorted(blocks, key=_length, reverse=True):
        min(tests, key=lambda test: sum(map(_length, test))).append(block)
    return [sorted(test) for test in tests]


def _pieces(blocks: Sequence[Block], folds: int) -> list[list[Block]]:
    """Folds of one piece in time of each block."""
    edges = [
        np.linspace(block.start, block.stop, folds + 1).round().astype(int).tolist()
        for block in blocks
    ]
    # Of a block of fewer frames than folds some pieces are empty.
    return [
        [Block(edge[k], edge[k + 1]) for edge in edges if edge[k] < edge[k + 1]]
        for k in range(folds)
    ]


def _outside(blocks: Sequence[Block], test: Sequence[Block], lag: int) -> list[Block]:
    """What is left of the blocks without test frames and a lag on both sides of them."""
    train = []
    for block in blocks:
        inside = [
            piece for piece in test if block.start <= piece.start and piece.stop <= block.stop
        ]
        if not inside:
            train.append(block)
        for piece in inside:
            rest = (Block(block.start, piece.start - lag), Block(piece.stop + lag, block.stop))
            train += [part for part in rest if part.length > lag]
    return train
