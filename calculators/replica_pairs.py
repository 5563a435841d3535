"""Which pairs of the copies of a molecule are evaluated: those within the cutoff.

Shapes: replicas ``k``, atoms ``n`` of each, pairs ``p = k n (n - 1) / 2`` of all of them.
"""

import math

import torch
from torch import Tensor

from forcefield.neighbors import all_pairs

WORTH_LISTING = 1000
"""Pairs that a :class:`PairList` must spare: to look for them costs a GPU as much as to evaluate several
hundred."""


class ClosePairs:
    """The pairs within the cutoff, looked for at every call.

    Their number differs from call to call, and on a GPU it takes a wait for the device to know it.

    Args:
        num_atoms: Of one copy, n.
        number: Copies k.
        cutoff: Å.
        device: Where the positions are.

    Attributes:
        every: All pairs of atoms of the same copy, (2, p).
    """

    def __init__(self, num_atoms: int, number: int, cutoff: float, device: torch.device) -> None:
        pairs = all_pairs(num_atoms)
        first = num_atoms * torch.arange(number).repeat_interleave(pairs.shape[1])
        self.every = (pairs.repeat(1, number) + first).to(device)
        self.cutoff = cutoff

    def edges(self, positions: Tensor) -> Tensor:
        """Edge index (2, e) for positions (k, n, 3), Å."""
        return self.every.index_select(1, self.near(positions).nonzero().squeeze(1))

    def near(self, positions: Tensor) -> Tensor:
        """Whether each of all pairs is within the cutoff, (p,)."""
        points = positions.reshape(-1, 3)
        vectors = points.index_select(0, self.every[0]) - points.index_select(0, self.every[1])
        distances = torch.linalg.vector_norm(vectors, dim=1)
        # Where these differ the pair is too far; both are false if an atom is nowhere, and then its
        # pairs stay, for the potential to say NaN.
        return (distances < self.cutoff) == (distances < math.inf)

    def overflowed(self) -> bool:
        """Whether a call found more pairs than it gave; never."""
        return False

    def grow(self) -> None:
        """Hold more pairs from now on."""


class PairList:
    """The pairs within the cutoff and a few more, always as many: for CUDA graphs.

    :meth:`edges` does not wait for the device. It puts the pairs within the cutoff first and as many of
    the others behind them as the list has room for. There are enough of these, for the list is no longer
    than all pairs; they lie beyond the cutoff, and so they contribute exactly zero. Should there be more
    pairs within the cutoff than the list holds, the results are wrong, and :meth:`overflowed` tells.

    Args:
        pairs: Of the same copies.
        positions: (k, n, 3), Å; the list holds some five percent more pairs than are close there.
    """

    def __init__(self, pairs: ClosePairs, positions: Tensor) -> None:
        self.pairs = pairs
        self._numbers = torch.arange(pairs.every.shape[1], device=pairs.every.device)
        self._most = pairs.near(positions).sum()
        self.length = 0
        self.grow()

    def edges(self, positions: Tensor) -> Tensor:
        """Edge index (2, length) for positions (k, n, 3), Å."""
        if self._complete():
            return self.pairs.every
        near = self.pairs.near(positions)
        ranks = near.cumsum(0)
        count = ranks[-1]
        self._most.copy_(torch.maximum(self._most, count))
        places = torch.where(near, ranks - 1, count + self._numbers - ranks)
        order = torch.empty_like(places).scatter_(0, places, self._numbers)
        return self.pairs.every.index_select(1, order[: self.length])

    def overflowed(self) -> bool:
        """Whether a call since the last growth found more pairs than the list holds."""
        return not self._complete() and int(self._most) > self.length

    def grow(self) -> None:
        """Make room for the most pairs that a call found, and for some more."""
        most = int(self._most)
        self.length = most + math.ceil(0.05 * most + 2.0 * math.sqrt(most))
        if self.length > len(self._numbers) - WORTH_LISTING:
            self.length = len(self._numbers)

    def _complete(self) -> bool:
        return self.length == len(self._numbers)
