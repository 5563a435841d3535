"""What is wrong with a structure, or with what a potential says about it: found, named and explained.

The engines find out at the cost of one number that something may be wrong, and look here what it is.
Units: Å, eV, eV/Å.
"""

import numpy as np
from ase.data import chemical_symbols

from forcefield.errors import AbsurdForceError, InvalidStructureError, NonFiniteForceError
from forcefield.neighbors import neighbor_pairs

CLOSE = 0.5
"""Å; nuclei of a molecule stay farther apart (0.74 Å in H2): closer pairs explain bad forces."""

COINCIDENT = 0.01
"""Å; below this two atoms are one by mistake."""

MIN_VOLUME = 2.0
"""Å³ per atom. Diamond has 5.7; a PDB file's cell of 1 Å³ stands for "no cell"."""


def first_bad_atom(values: np.ndarray) -> int | None:
    """Index of the first row that holds NaN or infinity, None if every number is finite."""
    if np.isfinite(values.sum()):
        # A finite sum of finite numbers: any NaN or infinity would have carried through.
        return None
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    return int(bad[0]) if len(bad) else None


def volume_without_room(cell: np.ndarray, atoms: int) -> float | None:
    """Volume of a cell (3, 3) that is too small for so many atoms, Å³; None for one that is not."""
    volume = abs(float(np.linalg.det(cell)))
    return volume if volume < MIN_VOLUME * atoms else None


def check_positions(numbers: np.ndarray, positions: np.ndarray) -> None:
    """Stop at the first position that is not finite.

    Args:
        numbers: Atomic numbers, (n,).
        positions: (n, 3).

    Raises:
        InvalidStructureError: Names the atom.
    """
    bad = first_bad_atom(positions)
    if bad is not None:
        raise InvalidStructureError(
            f"the position of {atom_name(numbers, bad)} is not finite: {positions[bad]} Å; "
            "the structure was damaged before the potential saw it"
        )


def check_results(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray | None,
    pbc: np.ndarray | None,
    energy: float,
    forces: np.ndarray,
    max_force: float,
) -> None:
    """Stop at results that no simulation should go on with.

    Args:
        numbers: Atomic numbers, (n,).
        positions: (n, 3), finite.
        cell: (3, 3), None without a cell.
        pbc: (3,), likewise.
        energy: Of the structure.
        forces: (n, 3).
        max_force: The largest force on an atom to let pass.

    Raises:
        InvalidStructureError: The results are bad, and two atoms lie on top of each other.
        NonFiniteForceError: The energy or a force is NaN or infinite.
        AbsurdForceError: A force is larger than ``max_force``.
    """
    sizes = np.linalg.norm(forces, axis=1)
    bad = first_bad_atom(forces)
    if bad is None and np.isfinite(energy) and sizes.max(initial=0.0) <= max_force:
        return
    reason = _reason(numbers, positions, cell, pbc)
    if bad is not None:
        raise NonFiniteForceError(
            f"the force on {atom_name(numbers, bad)} is not finite: {forces[bad]} eV/Å; the "
            f"structure has left the domain of the potential ({reason})"
        )
    if not np.isfinite(energy):
        raise NonFiniteForceError(f"the potential energy is not finite: {energy} eV ({reason})")
    worst = int(sizes.argmax())
    raise AbsurdForceError(
        f"the force on {atom_name(numbers, worst)} is {sizes[worst]:.4g} eV/Å, more than max_force = "
        f"{max_force:g} eV/Å; the structure has left the domain of the potential ({reason}; "
        "max_force=math.inf goes on regardless)"
    )


def atom_name(numbers: np.ndarray, index: int) -> str:
    """An atom as messages call it: "atom 2 (O)"."""
    return f"atom {index} ({chemical_symbols[numbers[index]]})"


def _reason(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray | None
) -> str:
    """Where to look for what went wrong: the closest pair of atoms, if it is too close.

    Raises:
        InvalidStructureError: Two atoms lie on top of each other.
    """
    if cell is None or pbc is None:
        cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    (j, i), shifts = neighbor_pairs(positions, cell, pbc, CLOSE)
    if not len(i):
        return "look for a time step too long, or a bad starting structure"
    vectors = positions[j] - positions[i] + shifts[:, pbc] @ cell[pbc]
    distances = np.linalg.norm(vectors, axis=1)
    closest = int(distances.argmin())
    first, second = sorted((int(i[closest]), int(j[closest])))
    other = "its own image" if first == second else atom_name(numbers, second)
    image = " across the cell" if first != second and shifts[closest].any() else ""
    pair = f"{atom_name(numbers, first)} and {other}"
    if distances[closest] < COINCIDENT:
        raise InvalidStructureError(
            f"{pair} lie on top of each other{image} ({distances[closest]:.3f} Å apart); look for an "
            "atom that is there twice, or for a cell that is too small or in other units"
        )
    return f"{pair} are {distances[closest]:.2f} Å apart{image}"
