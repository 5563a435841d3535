"""Neighbour lists: all pairs for small molecules, vesin for everything else, reuse with a skin.

A pair (j, i, S) is in a list with cutoff r_c if |r_j - r_i + S @ cell| < r_c, where S counts cell
vectors and is zero along directions that are not periodic; an atom and its own periodic image form a
pair, an atom and itself do not. Each pair is listed once, as (j, i, S) or (i, j, -S). Lists are sorted,
so that the same structure always gives the same list. Everything that makes pairs keeps to this, inside
TorchScript (:mod:`calculators.torchforce`) and outside: ``benchmarks/neighbors.py`` checks it against
a sum over images, and measures the cost.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from forcefield.errors import ConfigError, InvalidStructureError

DEFAULT_SKIN = 0.5
"""Å by which a neighbour list outlives the cutoff; an atom that moves half of it ends its life."""

THINNEST_CELL = 0.1
"""Å; no crystal has a cell of less height, and lists would have no end."""


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
    i, j, shifts = NeighborList(
        cutoff=cutoff, full_list=False, n_threads=torch.get_num_threads()
    ).compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=[bool(p) for p in pbc],
        quantities="ijS",
    )
    order = _order(i, j, shifts, len(positions))
    return np.stack([j[order], i[order]]).astype(np.int64), shifts[order].astype(np.int64)


def _order(i: np.ndarray, j: np.ndarray, shifts: np.ndarray, num_atoms: int) -> np.ndarray:
    """The order of pairs by i, then by j, then by shift.

    One number for each pair sorts ten times as fast as five columns.
    """
    if not len(i):
        return np.empty(0, dtype=np.int64)
    lowest = int(shifts.min())
    span = int(shifts.max()) - lowest + 1
    if num_atoms**2 * span**3 >= 2**63:  # Atoms millions of cells apart: no such number.
        return np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    key = i.astype(np.int64) * num_atoms + j.astype(np.int64)
    for axis in range(3):
        key = key * span + (shifts[:, axis] - lowest)
    return np.argsort(key)


def _full_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """A regular cell: non-periodic directions get unit vectors orthogonal to the periodic ones."""
    if not pbc.any():
        return np.zeros((3, 3))
    periodic = cell[pbc]
    if not np.isfinite(periodic).all():
        raise InvalidStructureError(f"the cell is not finite: {periodic.tolist()}")
    full = cell.copy()
    if not pbc.all():
        # The right singular vectors beyond the rank span the orthogonal complement.
        full[~pbc] = np.linalg.svd(periodic)[2][len(periodic) :]
    volume = abs(np.linalg.det(full))
    faces = np.linalg.norm(np.cross(full[[1, 2, 0]], full[[2, 0, 1]]), axis=1)
    heights = np.divide(volume, faces, out=np.zeros(3), where=faces > 0.0)[pbc]
    if heights.min() < THINNEST_CELL:
        raise InvalidStructureError(
            f"the cell vectors of the periodic directions {np.flatnonzero(pbc).tolist()} are zero, "
            f"linearly dependent or far too short: the cell is {heights.min():.2g} Å thin, "
            f"{periodic.tolist()}; set the cell in Å, or turn the periodicity off"
        )
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


def check_skin(skin: float) -> float:
    """The skin of a neighbour list, Å, as a float.

    Raises:
        ConfigError: It is negative, with which lists would miss pairs, or not finite.
    """
    if not 0.0 <= skin < math.inf:
        raise ConfigError(
            f"skin is a length in Å, zero (a new neighbour list at every step) or above, found {skin!r}"
        )
    return float(skin)


class MoleculePairs:
    """Pairs within the cutoff of a molecule outside a cell, small enough to look at every pair.

    The tensors stay the same as long as the pairs do.

    Args:
        num_atoms: n.
        cutoff: Å.
    """

    def __init__(self, num_atoms: int, cutoff: float) -> None:
        self.all = all_pairs(num_atoms)
        self._j, self._i = self.all.numpy()
        self._square = cutoff**2
        self._near: np.ndarray | None = None
        self._edges = (self.all, torch.zeros(self.all.shape[1], 3, dtype=torch.float64))

    def within_cutoff(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Edge index (2, e) and cell shifts (e, 3), all zero, for finite positions (n, 3) in Å."""
        vectors = positions.take(self._j, axis=0)
        vectors -= positions.take(self._i, axis=0)
        near = np.einsum("ij,ij->i", vectors, vectors) < self._square
        if self._near is None or not np.array_equal(near, self._near):
            self._near = near
            edge_index = self.all[:, torch.from_numpy(near)]
            shifts = torch.zeros(edge_index.shape[1], 3, dtype=torch.float64)
            self._edges = (edge_index, shifts)
        return self._edges


class VerletList:
    """A neighbour list with a skin, reused until it could miss a pair.

    The list holds all pairs within cutoff + skin of the structure it was built for. Let F be the
    deformation that takes the cell of then to the cell of now, and u the largest distance of an atom
    from where F alone would have brought it. A pair at d now was at d_0 with |d - d_0 F| <= 2 u, so
    |d_0| <= (|d| + 2 u) ‖F⁻¹‖, and the list is complete as long as

        (cutoff + 2 u) ‖F⁻¹‖₂ < cutoff + skin.

    With the same cell: while no atom has moved by skin / 2. A barostat, whose cell changes a little at
    every step, need not pay for a search at every step. Another periodicity or number of atoms makes
    a new list.

    Args:
        cutoff: Å.
        skin: Å; 0 builds a list at every call.

    Raises:
        ConfigError: ``skin`` is negative or not finite.
    """

    def __init__(self, cutoff: float, skin: float = DEFAULT_SKIN) -> None:
        self.cutoff = float(cutoff)
        self.skin = check_skin(skin)
        self.builds = 0
        self._positions = np.empty((0, 3))
        self._cell = np.zeros((3, 3))
        self._pbc = np.zeros(3, dtype=bool)
        self._edges: tuple[Tensor, Tensor] | None = None

    def update(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """The list for these positions; it may hold pairs beyond the cutoff as well.

        Args:
            positions: (n, 3), Å, unwrapped along a trajectory: a jump across the cell costs a rebuild.
            cell: (3, 3), Å.
            pbc: (3,), bool.

        Returns:
            ``edge_index`` (2, e), int64, and ``cell_shifts`` (e, 3), float64. The same tensors as
            at the last call when the list was reused.

        Raises:
            InvalidStructureError: The periodic cell vectors are missing or linearly dependent.
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

    def within_cutoff(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """The pairs of :meth:`update` that are closer than the cutoff; arguments and errors likewise."""
        edge_index, shifts = self.update(positions, cell, pbc)
        points = torch.as_tensor(positions, dtype=torch.float64)
        vectors = points.index_select(0, edge_index[0])
        vectors -= points.index_select(0, edge_index[1])
        if pbc.any():
            vectors += shifts @ torch.as_tensor(cell, dtype=torch.float64)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        near = (distances < self.cutoff).nonzero().squeeze(1)
        return edge_index.index_select(1, near), shifts.index_select(0, near)

    def _still_complete(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if positions.shape != self._positions.shape or not np.array_equal(pbc, self._pbc):
            return False
        moved, stretch = positions - self._positions, 1.0
        if self._pbc.any() and not np.array_equal(cell, self._cell):
            before, now = _full_cell(self._cell, self._pbc), _full_cell(cell, self._pbc)
            back = np.linalg.solve(now, before)
            stretch = float(np.linalg.norm(back, 2))
            moved = positions - self._positions @ np.linalg.inv(back)
        largest = math.sqrt((moved * moved).sum(axis=1).max(initial=0.0))
        return (self.cutoff + 2.0 * largest) * stretch < self.cutoff + self.skin
