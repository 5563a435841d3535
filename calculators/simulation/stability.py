"""Does a simulation stay a molecule? Bonds, the time of collapse, distributions of distances.

A run has collapsed once a bond, a pair that was bonded in a reference structure, differs from its
reference length by more than 0.5 Å:

    max over bonds | |r_i - r_j| - b_ij | > Δ,    Δ = 0.5 Å

and its structure is judged by the distribution of all interatomic distances, averaged over frames,

    h(r) = 1 / (n (n - 1)) Σ_i Σ_{j ≠ i} δ(r - |r_i - r_j|),    MAE = ∫ |h(r) - h_ref(r)| dr,

which is 0 for equal and 2 for disjoint distributions.

Reference: X. Fu et al., "Forces are not Enough", Transactions on Machine Learning Research (2023).
Lengths are in Å.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.geometry import find_mic

from forcefield.neighbors import neighbor_pairs

BOND_FACTOR = 1.2
"""Atoms closer than this multiple of the sum of their covalent radii are bonded."""

TOLERANCE = 0.5
"""Å by which a bond may differ from its reference."""

DISTANCE_EDGES = np.linspace(0.0, 12.0, 601)
"""Bins of h(r), Å: 0.02 Å wide, as far as the largest molecules of rMD17 reach."""


@dataclass(frozen=True)
class Bonds:
    """Bonded pairs.

    Attributes:
        pairs: (b, 2), int64, the smaller index first.
        lengths: Reference lengths, (b,), Å.
    """

    pairs: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Collapse:
    """The first frame in which a bond is too far from its reference.

    Attributes:
        frame: Its index.
        time: In the units of the times that were given.
        bond: The two atoms.
        change: Length minus reference, Å; NaN if a position is not finite.
    """

    frame: int
    time: float
    bond: tuple[int, int]
    change: float


def find_bonds(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
    factor: float = BOND_FACTOR,
) -> Bonds:
    """Pairs closer than ``factor`` times the sum of their covalent radii (Cordero et al. 2008).

    Args:
        numbers: Atomic numbers, (n,).
        positions: (n, 3), Å.
        cell: Cell vectors in rows, (3, 3), Å.
        pbc: (3,), bool.
        factor: See above.
    """
    cell, pbc = _box(cell, pbc)
    radii = covalent_radii[np.asarray(numbers, dtype=np.int64)]
    (j, i), shifts = neighbor_pairs(positions, cell, pbc, 2.0 * factor * float(radii.max()))
    distances = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
    near = (distances < factor * (radii[i] + radii[j])) & (i != j)
    pairs = np.sort(np.stack([i[near], j[near]], axis=1), axis=1)
    # Through the walls of a small cell a pair can be bonded twice: the shorter one is kept.
    order = np.lexsort((distances[near], pairs[:, 1], pairs[:, 0]))
    pairs, lengths = pairs[order], distances[near][order]
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return Bonds(pairs[first], lengths[first])


def bond_lengths(
    positions: np.ndarray,
    pairs: np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> np.ndarray:
    """Distances of bonded pairs, nearest images in a periodic cell.

    Args:
        positions: One frame (n, 3) or, outside a cell, several (f, n, 3), Å.
        pairs: (b, 2).
        cell: (3, 3), Å.
        pbc: (3,), bool.

    Returns:
        (b,) or (f, b), Å.
    """
    cell, pbc = _box(cell, pbc)
    vectors = positions[..., pairs[:, 1], :] - positions[..., pairs[:, 0], :]
    if pbc.any() and len(pairs) and np.isfinite(vectors).all():
        vectors = find_mic(vectors, cell, pbc)[0]
    return np.linalg.norm(vectors, axis=-1)


def mean_bonds(numbers: np.ndarray, positions: np.ndarray, factor: float = BOND_FACTOR) -> Bonds:
    """Bonds of a molecule by its mean distances over frames, with these as reference lengths.

    Args:
        numbers: Atomic numbers, (n,).
        positions: (f, n, 3), Å.
        factor: As for :func:`find_bonds`.
    """
    radii = covalent_radii[np.asarray(numbers, dtype=np.int64)]
    pairs = np.stack(np.triu_indices(positions.shape[1], k=1), axis=1)
    means = bond_lengths(positions, pairs).mean(axis=0)
    near = means < factor * radii[pairs].sum(axis=1)
    return Bonds(pairs[near], means[near])


def collapse_time(
    positions: np.ndarray,
    times: np.ndarray,
    bonds: Bonds,
    tolerance: float = TOLERANCE,
    cells: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> Collapse | None:
    """When a trajectory collapses; None if it does not.

    Args:
        positions: (f, n, 3), Å.
        times: (f,).
        bonds: Pairs and their reference lengths.
        tolerance: Å.
        cells: (f, 3, 3), Å, of a periodic system.
        pbc: (3,), bool.
    """
    if cells is None:
        lengths = bond_lengths(positions, bonds.pairs)
    else:
        frames = zip(positions, cells, strict=True)
        lengths = np.array([bond_lengths(r, bonds.pairs, cell, pbc) for r, cell in frames])
    return first_collapse(lengths - bonds.lengths, times, bonds, tolerance)


def first_collapse(
    changes: np.ndarray, times: np.ndarray, bonds: Bonds, tolerance: float = TOLERANCE
) -> Collapse | None:
    """The same from the changes of bond lengths (f, b), Å."""
    broken = ~(np.abs(changes) <= tolerance)  # NaN is broken, too
    frames = np.flatnonzero(broken.any(axis=1))
    if not len(frames):
        return None
    frame = int(frames[0])
    worst = int(np.argmax(np.where(np.isnan(changes[frame]), np.inf, np.abs(changes[frame]))))
    i, j = bonds.pairs[worst].tolist()
    return Collapse(frame, float(times[frame]), (i, j), float(changes[frame, worst]))


def pair_distances(
    positions: np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
    cutoff: float | None = None,
) -> np.ndarray:
    """Distances of all pairs of one frame, each once, unsorted.

    Args:
        positions: (n, 3), Å.
        cell: (3, 3), Å.
        pbc: (3,), bool.
        cutoff: Å; needed in a periodic cell, where each image counts.
    """
    cell, pbc = _box(cell, pbc)
    if cutoff is None:
        i, j = np.triu_indices(len(positions), k=1)
        return np.linalg.norm(positions[j] - positions[i], axis=1)
    (j, i), shifts = neighbor_pairs(positions, cell, pbc, cutoff)
    return np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)


def distance_distribution(positions: np.ndarray, edges: np.ndarray = DISTANCE_EDGES) -> np.ndarray:
    """h(r) of a molecule, averaged over frames.

    Args:
        positions: (f, n, 3), Å.
        edges: Edges of k bins, (k + 1,), Å. Distances beyond the last one are counted in the norm.

    Returns:
        (k,), 1/Å; its integral is the share of distances within the edges.
    """
    i, j = np.triu_indices(positions.shape[1], k=1)
    counts = np.zeros(len(edges) - 1)
    for start in range(0, len(positions), 1000):
        part = positions[start : start + 1000]
        distances = np.linalg.norm(part[:, j] - part[:, i], axis=2)
        counts += np.histogram(distances, edges)[0]
    return counts / (max(1, len(positions) * len(i)) * np.diff(edges))


def distribution_error(h: np.ndarray, reference: np.ndarray, edges: np.ndarray) -> float:
    """∫ |h - h_ref| dr of two distributions over the same edges, between 0 and 2."""
    return float((np.abs(h - reference) * np.diff(edges)).sum())


def _box(cell: np.ndarray | None, pbc: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if cell is None or pbc is None:
        return np.zeros((3, 3)), np.zeros(3, dtype=bool)
    return np.asarray(cell, dtype=np.float64), np.asarray(pbc, dtype=bool)
