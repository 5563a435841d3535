"""From the frames of a trajectory to the edges of one batch of graphs.

Shapes: frames ``f``, atoms ``n``, edges ``e``. Lengths are in Å; edges are those of
:mod:`forcefield.graph`, with the atoms of frame k numbered from k n on.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from forcefield import build_graph, collate
from forcefield.errors import DataError, InvalidStructureError
from forcefield.graph import edge_vectors
from forcefield.neighbors import all_pairs
from forcefield.units import NANOMETER

if TYPE_CHECKING:
    from mdtraj import Trajectory

ALL_PAIRS_ATOMS = 128
"""Up to this many atoms outside a cell, all distances of a batch are taken at once."""

MIN_VOLUME_PER_ATOM = 1.0
"""Å³; diamond has 5.7. A smaller cell is a placeholder, and would give each atom countless images."""


def cells_of(trajectory: "Trajectory", frames: range, periodic: bool | None) -> np.ndarray | None:
    """Cell vectors in rows, (f, 3, 3), Å, or None if periodic images are not to be seen.

    Args:
        trajectory: From mdtraj.
        frames: Numbers of its frames, for messages.
        periodic: True demands a unit cell, None takes one that is there, False takes none.

    Raises:
        DataError: A unit cell is demanded and there is none.
        InvalidStructureError: A unit cell has no room for the atoms.
    """
    if periodic is False:
        return None
    vectors = trajectory.unitcell_vectors
    if vectors is None:
        if periodic:
            raise DataError(
                "periodic=True, but the trajectory has no unit cell: set "
                "trajectory.unitcell_vectors, or leave periodic out"
            )
        return None
    cells = vectors.astype(np.float64) * NANOMETER
    # The triple product, and written so that NaN, which angles of zero give, is bad as well.
    volumes = np.abs((np.cross(cells[:, 0], cells[:, 1]) * cells[:, 2]).sum(1))
    bad = np.flatnonzero(~(volumes >= MIN_VOLUME_PER_ATOM * trajectory.n_atoms))
    if len(bad):
        raise InvalidStructureError(
            f"frame {frames[bad[0]]}: a unit cell of {volumes[bad[0]]:.3g} Å³ has no room for "
            f"{trajectory.n_atoms} atoms; if it is only a placeholder, pass periodic=False"
        )
    return cells


def edges_of(
    positions: np.ndarray,
    numbers: np.ndarray,
    cells: np.ndarray | None,
    cutoff: float,
    device: torch.device,
    frames: range,
) -> tuple[Tensor, Tensor]:
    """Every pair of atoms closer than the cutoff in each frame.

    Args:
        positions: (f, n, 3), Å.
        numbers: Atomic numbers, (n,).
        cells: Cell vectors in rows, (f, 3, 3), Å, or None.
        cutoff: Å.
        device: Where to put the result.
        frames: Numbers of the frames, for messages.

    Returns:
        Atoms j and i of each pair (2, e) and vectors r_j - r_i (e, 3), Å, float64.

    Raises:
        InvalidStructureError: A position is not finite, or two atoms are in one place.
    """
    num_atoms = len(numbers)
    bad = np.argwhere(~np.isfinite(positions).all(axis=2))
    if len(bad):
        frame, atom = bad[0]
        raise InvalidStructureError(
            f"frame {frames[frame]}: the position of atom {atom} is not finite"
        )
    if cells is None and num_atoms <= ALL_PAIRS_ATOMS:
        edge_index, vectors = _all_pairs_within(torch.as_tensor(positions, device=device), cutoff)
    else:
        boxes = [None] * len(positions) if cells is None else list(cells)
        graphs = [
            build_graph(frame_positions, numbers, cutoff, box, pbc=box is not None)
            for frame_positions, box in zip(positions, boxes, strict=True)
        ]
        batch = collate(graphs).to(device)
        edge_index = batch.edge_index
        vectors = edge_vectors(
            batch.positions, edge_index, batch.cell_shifts, batch.cell, batch.batch
        )
    same_place = (vectors == 0).all(dim=1).nonzero()
    if len(same_place):
        j, i = edge_index[:, int(same_place[0])].tolist()
        raise InvalidStructureError(
            f"frame {frames[i // num_atoms]}: atoms {i % num_atoms} and {j % num_atoms} are in the "
            f"same place"
        )
    return edge_index, vectors


def _all_pairs_within(positions: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Pairs (2, e) and their vectors (e, 3) of frames (f, n, 3) without cells."""
    pairs = all_pairs(positions.shape[1]).to(positions.device)
    vectors = positions.index_select(1, pairs[0]) - positions.index_select(1, pairs[1])
    close = vectors.square().sum(2) < cutoff**2
    frame, pair = close.nonzero(as_tuple=True)
    return pairs.index_select(1, pair) + frame * positions.shape[1], vectors[close]
