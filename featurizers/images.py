"""Molecules that a unit cell cuts are put together again."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory


def whole(trajectory: "Trajectory", periodic: bool) -> np.ndarray:
    """Positions with bonded atoms next to each other, (f, n, 3), nm.

    From the first atom of each molecule on, every atom is put at that image which is nearest to an atom
    it is bonded to; molecules are put at the image nearest to the first one. The nearest image is
    taken by rounding along the cell vectors, which is right for bonds in any cell a simulation uses.

    Args:
        trajectory: From mdtraj.
        periodic: Whether the unit cell counts; if not, positions are left as they are.
    """
    positions = trajectory.xyz
    if not periodic:
        return positions
    cells = trajectory.unitcell_vectors.astype(np.float64)
    inverse = np.linalg.inv(cells)
    positions = positions.astype(np.float64)
    for atom, neighbor in _order(trajectory.topology):
        away = positions[:, atom] - positions[:, neighbor]
        images = np.round(np.einsum("fa,fab->fb", away, inverse))
        positions[:, atom] -= np.einsum("fb,fba->fa", images, cells)
    return positions


def _order(topology: "Topology") -> list[tuple[int, int]]:
    """Each atom but the first, and an earlier atom to be near to: a bonded one, or the very first."""
    bonded: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for one, other in topology.bonds:
        bonded[one.index].append(other.index)
        bonded[other.index].append(one.index)
    order, seen = [], set()
    for first in range(topology.n_atoms):
        if first in seen:
            continue
        seen.add(first)
        if first:
            order.append((first, 0))
        waiting = [first]
        while waiting:
            atom = waiting.pop()
            for other in bonded[atom]:
                if other not in seen:
                    seen.add(other)
                    order.append((other, atom))
                    waiting.append(other)
    return order
