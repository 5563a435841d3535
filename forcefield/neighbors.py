"""Neighbour lists: all pairs for small molecules, vesin for everything else, reuse with a skin.

A pair (j, i, S) is in a list with cutoff r_c if |r_j - r_i + S @ cell| < r_c, where S counts cell
vectors; an atom and its own periodic image form a pair, an atom and itself do not. Each pair is listed
once, as (j, i, S) or (i, j, -S). Lists are sorted, so that the same structure always gives the same
list.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from forcefield.errors import InvalidStructureError


def neighbor_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Every pair closer than the cutoff, once.

    Args:
        positions: (n, 3), Å; atoms may lie outside the cell.
        cell: Cell vectors in rows, (3, 3), Å. Rows of non-periodic directions are ignored.
        pbc: Periodicity of each direction, (3,), bool.
        cutoff: Å.

    Returns:
        Atoms j and i (2, e) and cell shifts (e, 3), int64, sorted by i.

    Raises:
        InvalidStructureError: The periodic cell vectors are missing or linearly dependent.
    """
    from vesin import NeighborList

    pbc = np.asarray(pbc, dtype=bool)
    box = _full_cell(np.asarray(cell, dtype=np.float64), pbc)
    i, j, shifts = NeighborList(cutoff=cutoff, full_list=False).compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=[bool(p) for p in pbc],
        quantities="ijS",
    )
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    return np.stack([j[order], i[order]]).astype(np.int64), shifts[order].astype(np.int64)


def _full_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """A regular cell: non-periodic directions get unit vectors orthogonal to the periodic ones."""
    if not pbc.any():
        return np.zeros((3, 3))
    periodic = cell[pbc]
    if np.linalg.matrix_rank(periodic, tol=1e-6) < len(periodic):
        raise InvalidStructureError(
            f"the cell vectors of the periodic directions {np.flatnonzero(pbc).tolist()} are zero or "
            f"linearly dependent: {periodic.tolist()}"
        )
    full = cell.copy()
    if not pbc.all():
        # The right singular vectors beyond the rank span the orthogonal complement.
        full[~pbc] = np.linalg.svd(periodic)[2][len(periodic) :]
    return full


@cache
def all_pairs(num_atoms: int) -> Tensor:
    """Every pair of different atoms, (2, n (n - 1) / 2), sorted by the second.

    For a small molecule outside a cell this graph never changes: no neighbour search and no data
    dependent shapes at any step. Pairs beyond the cutoff contribute exactly zero. The tensor is shared
    by all callers: do not write to it.
    """
    i, j = np.triu_indices(num_atoms, k=1)
    return torch.as_tensor(np.stack([j, i]))


class VerletList:
    """A neighbour list with a skin, reused until it could miss a pair.

    The list holds all pairs within cutoff + skin. It stays complete while no atom has moved by
    skin / 2 or more since it was built, and is built again then, or when the cell, the periodicity
    or the number of atoms is not what it was.

    Args:
        cutoff: Å.
        skin: Å; 0 builds a list at every call.
    """

    def __init__(self, cutoff: float, skin: float = 1.0) -> None:
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.builds = 0
        self._positions = np.empty((0, 3))
        self._cell = np.zeros((3, 3))
        self._pbc = np.zeros(3, dtype=bool)
        self._edges: tuple[Tensor, Tensor] | None = None

    def update(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """The list for these positions.

        Args:
            positions: (n, 3), Å, unwrapped along a trajectory: a jump across the cell costs a rebuild.
            cell: (3, 3), Å.
            pbc: (3,), bool.

        Returns:
            ``edge_index`` (2, e), int64, and ``cell_shifts`` (e, 3), float64. The same tensors as
            at the last call when the list was reused.
        """
        if self._edges is not None and self._still_complete(positions, cell, pbc):
            return self._edges
        pairs, shifts = neighbor_pairs(positions, cell, pbc, self.cutoff + self.skin)
        self._edges = (
            torch.as_tensor(pairs),
            torch.as_tensor(shifts, dtype=torch.float64),
        )
        self._positions = np.array(positions, dtype=np.float64)
        self._cell = np.array(cell, dtype=np.float64)
        self._pbc = np.array(pbc, dtype=bool)
        self.builds += 1
        return self._edges

    def _still_complete(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if positions.shape != self._positions.shape or not np.array_equal(pbc, self._pbc):
            return False
        if self._pbc.any() and not np.array_equal(cell, self._cell):
            return False
        moved = ((positions - self._positions) ** 2).sum(axis=1).max(initial=0.0)
        return bool(moved < (0.5 * self.skin) ** 2)
