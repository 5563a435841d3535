"""Molecules that a unit cell cuts are put together again."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory
    from mdtraj.core.topology import Residue


def whole(trajectory: "Trajectory", periodic: bool) -> np.ndarray:
    """Positions with bonded atoms next to each other, (f, n, 3), nm.

    From the first atom of each molecule on, every atom is put at that image which is nearest to an atom
    it is bonded to, and then each molecule at the image whose centre is nearest to that of the first one.
    Where bonds are missing, residues and chains of amino acids or nucleotides count as molecules, atom by
    atom in their order. The nearest image is taken by rounding along the cell vectors, which is right for
    bonds in any cell a simulation uses.

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

    def put_near(atoms: "np.ndarray | int", away: np.ndarray) -> None:
        images = np.round(np.einsum("fa,fab->fb", away, inverse))
        shift = np.einsum("fb,fba->fa", images, cells)
        positions[:, atoms] -= shift if isinstance(atoms, int) else shift[:, None]

    molecules = _molecules(trajectory.topology)
    for molecule in molecules:
        for atom, neighbor in molecule[1:]:
            put_near(atom, positions[:, atom] - positions[:, neighbor])
    members = [np.array([atom for atom, _ in molecule]) for molecule in molecules]
    centre = positions[:, members[0]].mean(axis=1)
    for others in members[1:]:
        put_near(others, positions[:, others].mean(axis=1) - centre)
    return positions


def _molecules(topology: "Topology") -> list[list[tuple[int, int]]]:
    """The atoms of each molecule, each with an earlier one of it to be near to (the first with itself)."""
    bonded: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for one, other in topology.bonds:
        bonded[one.index].append(other.index)
        bonded[other.index].append(one.index)
    atoms = list(topology.atoms)
    molecules: list[list[tuple[int, int]]] = []
    molecule_of: dict[int, list[tuple[int, int]]] = {}
    for first, atom in enumerate(atoms):
        if first in molecule_of:
            continue
        near = first
        missing = first and not (bonded[first] and bonded[first - 1])
        if missing and _belong_together(atoms[first - 1].residue, atom.residue):
            near, molecule = first - 1, molecule_of[first - 1]
        else:
            molecule = []
            molecules.append(molecule)
        waiting = [(first, near)]
        molecule_of[first] = molecule
        while waiting:
            this, near = waiting.pop()
            molecule.append((this, near))
            for other in bonded[this]:
                if other not in molecule_of:
                    molecule_of[other] = molecule
                    waiting.append((other, this))
    return molecules


def _belong_together(one: "Residue", other: "Residue") -> bool:
    """Whether atoms next to each other in the topology are of one molecule, where bonds do not say."""
    if one is other:
        return True
    if one.chain is not other.chain:
        return False
    return (one.is_protein and other.is_protein) or (one.is_nucleic and other.is_nucleic)
