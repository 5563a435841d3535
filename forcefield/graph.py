"""Atomic graphs: structures and the pairs of atoms that see each other.

Shapes: atoms ``n``, edges ``e``, structures ``b``. Each pair of neighbours is listed once, as an edge
between atom j (``edge_index[0]``) and atom i (``edge_index[1]``) with

    edge_vector = r_j - r_i + cell_shifts @ cell            (Å)

Which of the two atoms is called i does not matter: energies, forces and features are the same. Every
pair closer than the cutoff is present (an atom and its own periodic image make a pair, too); pairs
beyond it may be present as well (all pairs of a small molecule, a list built with a skin): the models'
envelope makes them count for exactly nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forcefield.errors import InvalidStructureError
from forcefield.neighbors import neighbor_pairs


@dataclass(frozen=True)
class AtomicGraph:
    """One structure or a batch of structures of any sizes.

    Attributes:
        positions: Cartesian coordinates, (n, 3), Å.
        atomic_numbers: Nuclear charges, (n,), int64.
        edge_index: Atoms j and i of each pair, (2, e), int64.
        cell_shifts: Cell vectors to add to r_j, (e, 3), whole numbers as floats.
        cell: Cell vectors in rows, (b, 3, 3), Å; zeros for a structure without a cell.
        batch: The structure of each atom, (n,), int64.
    """

    positions: Tensor
    atomic_numbers: Tensor
    edge_index: Tensor
    cell_shifts: Tensor
    cell: Tensor
    batch: Tensor

    @property
    def num_structures(self) -> int:
        """Number of structures b."""
        return self.cell.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "AtomicGraph":
        """Copy to a device, and floating-point tensors to ``dtype`` if one is given."""
        return AtomicGraph(
            positions=self.positions.to(device, dtype),
            atomic_numbers=self.atomic_numbers.to(device),
            edge_index=self.edge_index.to(device),
            cell_shifts=self.cell_shifts.to(device, dtype),
            cell=self.cell.to(device, dtype),
            batch=self.batch.to(device),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields in the order of :meth:`forcefield.potential.Potential.forward`."""
        return (
            self.positions,
            self.atomic_numbers,
            self.edge_index,
            self.cell_shifts,
            self.cell,
            self.batch,
        )


def build_graph(
    positions: np.ndarray,
    atomic_numbers: np.ndarray,
    cutoff: float,
    cell: np.ndarray | None = None,
    pbc: Sequence[bool] | bool = False,
    dtype: torch.dtype = torch.float64,
) -> AtomicGraph:
    """Build the graph of one structure.

    Args:
        positions: (n, 3), Å. Atoms may lie outside the cell.
        atomic_numbers: (n,).
        cutoff: Every pair closer than this (Å) becomes an edge.
        cell: Cell vectors in rows, (3, 3), Å; needed along periodic directions only.
        pbc: Periodicity, one for all directions or one each.
        dtype: Floating-point type of the graph's tensors.

    Raises:
        InvalidStructureError: Positions are not finite or not (n, 3), or a periodic direction has no
            cell vector.
    """
    positions = np.asarray(positions, dtype=np.float64)
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    if positions.shape != (len(numbers), 3):
        raise InvalidStructureError(
            f"{len(numbers)} atomic numbers need positions of shape ({len(numbers)}, 3), "
            f"found {positions.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise InvalidStructureError(
            f"the position of atom {bad[0]} is not finite: {positions[bad[0]]}"
        )
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    cell_array = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
    pairs, shifts = neighbor_pairs(positions, cell_array, periodic, cutoff)
    return AtomicGraph(
        positions=torch.as_tensor(positions, dtype=dtype),
        atomic_numbers=torch.as_tensor(numbers),
        edge_index=torch.as_tensor(pairs),
        cell_shifts=torch.as_tensor(shifts, dtype=dtype),
        cell=torch.as_tensor(cell_array, dtype=dtype).reshape(1, 3, 3),
        batch=torch.zeros(len(numbers), dtype=torch.int64),
    )


def collate(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Join graphs into one batch; atoms and edges keep their order."""
    atoms = [len(graph.atomic_numbers) for graph in graphs]
    structures = [graph.num_structures for graph in graphs]
    first_atom = np.concatenate([[0], np.cumsum(atoms)[:-1]])
    first_structure = np.concatenate([[0], np.cumsum(structures)[:-1]])
    return AtomicGraph(
        positions=torch.cat([graph.positions for graph in graphs]),
        atomic_numbers=torch.cat([graph.atomic_numbers for graph in graphs]),
        edge_index=torch.cat(
            [g.edge_index + int(start) for g, start in zip(graphs, first_atom, strict=True)], dim=1
        ),
        cell_shifts=torch.cat([graph.cell_shifts for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        batch=torch.cat(
            [g.batch + int(start) for g, start in zip(graphs, first_structure, strict=True)]
        ),
    )


def edge_vectors(
    positions: Tensor, edge_index: Tensor, cell_shifts: Tensor, cell: Tensor, batch: Tensor
) -> Tensor:
    """Vectors from atom i to atom j of each pair, (e, 3), Å."""
    vectors = positions.index_select(0, edge_index[0]) - positions.index_select(0, edge_index[1])
    if cell.shape[0] == 1:
        return vectors + cell_shifts @ cell[0]
    edge_cell = cell.index_select(0, batch.index_select(0, edge_index[1]))
    return vectors + (cell_shifts.unsqueeze(2) * edge_cell).sum(1)


def both_directions(edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directed edges for models whose messages differ by direction.

    Returns:
        Senders (2 e,), receivers (2 e,), and vectors from receiver to sender (2 e, 3), Å.
    """
    sender = torch.cat([edge_index[0], edge_index[1]])
    receiver = torch.cat([edge_index[1], edge_index[0]])
    return sender, receiver, torch.cat([vectors, -vectors])
