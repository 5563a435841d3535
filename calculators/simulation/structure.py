"""The starting structure: read, checked, put into the form that both engines take."""

import hashlib
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import find_mic
from scipy.sparse import coo_array, csr_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import (  # type: ignore[import-untyped]
    breadth_first_order,
    connected_components,
)

from calculators.guard import volume_without_room
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import Bonds, find_bonds
from forcefield.errors import ConfigError, InvalidStructureError
from forcefield.neighbors import neighbor_pairs

OVERLAP = 0.5
"""Atoms closer than this multiple of the sum of their covalent radii lie on top of each other."""


def read_structure(path: Path) -> Atoms:
    """The last frame of a file that holds atoms.

    Raises:
        InvalidStructureError: There is no such file, ASE cannot read it, or it holds no atoms.
    """
    if not path.is_file():
        raise InvalidStructureError(f"no structure at {path}")
    from ase.io import read

    # ASE ends a frame of a PDB file at ENDMDL and again at END, and keeps the cell for the first.
    models = path.suffix.lower() == ".pdb"
    try:
        found = read(path, index=":") if models else read(path)
    except Exception as error:  # Each of ASE's readers fails in its own way.
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InvalidStructureError(
            f"{path} cannot be read as a structure ({detail}); give a PDB or XYZ file, or another "
            "that ASE reads"
        ) from None
    frames = [atoms for atoms in (found if isinstance(found, list) else [found]) if len(atoms)]
    if not frames:
        raise InvalidStructureError(f"{path} holds no atoms")
    first, last = frames[0], frames[-1]
    if models and not last.pbc.any():
        last.set_cell(first.cell)
        last.pbc = first.pbc
    return last


def file_hash(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_structure(atoms: Atoms, settings: SimulationSettings) -> Atoms:
    """A checked copy without calculator; a periodic one in a standard cell.

    OpenMM wants the first cell vector along x, the second in the xy plane and both reduced, and a
    DCD file knows a cell by lengths and angles only. So the structure is turned, and the same
    lattice described by reduced vectors. Molecules that a wall cuts are made whole.

    Args:
        atoms: As it was read.
        settings: Engine, ensemble and format.

    Raises:
        InvalidStructureError: A position is not finite, two atoms overlap, or the cell is singular
            or much too small.
        ConfigError: The engine, the ensemble or the format cannot do with this periodicity, or atoms are
            held by constraints.
    """
    original = atoms
    if original.constraints:
        kinds = ", ".join(sorted({type(held).__name__ for held in original.constraints}))
        raise ConfigError(
            f"the structure's file holds atoms ({kinds}), and here all of them move: take the constraints "
            "out of the file, or write a script with PotentialCalculator (docs/ase.md)"
        )
    atoms = Atoms(
        numbers=original.numbers,
        positions=original.positions,
        masses=original.get_masses(),
        cell=original.cell.array,
        pbc=original.pbc,
    )
    if "momenta" in original.arrays:
        atoms.set_momenta(original.get_momenta())
    for name in ("residuenames", "residuenumbers", "atomtypes"):
        if name in original.arrays:
            atoms.set_array(name, original.arrays[name])
    if settings.isolated or not atoms.pbc.any():
        atoms.set_cell(None)
        atoms.pbc = False
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise InvalidStructureError(f"the position of {_name(atoms, bad[0])} is not finite")
    _check_periodicity(atoms, settings)
    if atoms.pbc.all():
        _standardise(atoms)
    check_overlaps(atoms)
    if atoms.pbc.all():
        make_whole(atoms)
    return atoms


def _check_periodicity(atoms: Atoms, settings: SimulationSettings) -> None:
    pbc = "".join("T" if p else "F" for p in atoms.pbc)
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise ConfigError(
            "npt needs a cell that is periodic in three directions, and the structure has "
            f"{'no cell' if pbc == 'FFF' else f'pbc {pbc}'}; choose --ensemble nvt"
        )
    if pbc not in ("TTT", "FFF"):
        if settings.engine == "openmm":
            raise ConfigError(
                f"the structure is periodic in some directions only (pbc {pbc}), which OpenMM does "
                "not know; choose --engine ase"
            )
        if settings.format != "extxyz":
            raise ConfigError(
                f"a structure that is periodic in some directions only (pbc {pbc}) is written as "
                "extxyz; choose --format extxyz"
            )
    if not atoms.pbc.all():
        return
    volume = volume_without_room(atoms.cell.array, len(atoms))
    if volume is not None:
        raise InvalidStructureError(
            f"the cell has a volume of {volume:.3g} Å³ for {len(atoms)} atoms; if it only stands for "
            "'no cell', as in some PDB files, add --isolated"
        )


def _standardise(atoms: Atoms) -> None:
    cell = atoms.cell.array.copy()
    if np.linalg.det(cell) < 0.0:
        cell[2] *= -1.0  # the same lattice; turning a left-handed one would mirror the molecules
        atoms.set_cell(cell)
    rotated, rotation = atoms.cell.standard_form()
    atoms.set_positions(atoms.positions @ rotation.T)
    if "momenta" in atoms.arrays:
        atoms.set_momenta(atoms.get_momenta() @ rotation.T)
    a, b, c = rotated.array
    # The order matters: c by b, then both by a.
    c = c - b * np.round(c[1] / b[1])
    c = c - a * np.round(c[0] / a[0])
    b = b - a * np.round(b[0] / a[0])
    atoms.set_cell(np.array([a, b, c]))


def check_overlaps(atoms: Atoms) -> None:
    """Raise :class:`InvalidStructureError` for the closest pair if it lies on top of each other."""
    radii = covalent_radii[atoms.numbers]
    cell, pbc = atoms.cell.array, atoms.pbc
    # A search below 1 Å has nothing to gain.
    cutoff = max(1.0, 2.0 * OVERLAP * float(radii.max()))
    (j, i), shifts = neighbor_pairs(atoms.positions, cell, pbc, cutoff)
    distances = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shifts @ cell, axis=1)
    relative = distances / (radii[i] + radii[j])
    if len(relative) and relative.min() < OVERLAP:
        k = int(relative.argmin())
        raise InvalidStructureError(
            f"{_name(atoms, i[k])} and {_name(atoms, j[k])} are {distances[k]:.2f} Å apart: they lie "
            "on top of each other, or the file's lengths are not in Å"
        )


def make_whole(atoms: Atoms) -> None:
    """Move the atoms of each molecule to one side of the walls, in place."""
    bonds = find_bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    if not len(bonds.pairs):
        return
    i, j = bonds.pairs.T
    steps, _ = find_mic(atoms.positions[j] - atoms.positions[i], atoms.cell, atoms.pbc)
    step = dict(zip(zip(i.tolist(), j.tolist(), strict=True), steps, strict=True))
    # One tree for all: an additional node is joined to the first atom of each molecule.
    root = len(atoms)
    _, label = _components(root, bonds)
    first = np.unique(label, return_index=True)[1]
    graph = _graph(root + 1, np.append(i, np.full(len(first), root)), np.append(j, first))
    order, before = breadth_first_order(graph, root, directed=False)
    for atom in order.tolist():
        parent = int(before[atom]) if atom != root else root
        if parent == root:
            continue
        vector = step[parent, atom] if parent < atom else -step[atom, parent]
        atoms.positions[atom] = atoms.positions[parent] + vector


def molecular_bonds(atoms: Atoms, bonds: Bonds) -> Bonds:
    """The bonds without those of periodic networks, such as crystals, which are no molecules.

    Args:
        atoms: With whole molecules.
        bonds: All of them.
    """
    if not atoms.pbc.any():
        return bonds
    straight = atoms.positions[bonds.pairs[:, 1]] - atoms.positions[bonds.pairs[:, 0]]
    through_wall = np.linalg.norm(straight, axis=1) > bonds.lengths + 1e-3
    _, label = _components(len(atoms), bonds)
    networks = np.unique(label[bonds.pairs[through_wall, 0]])
    inside = ~np.isin(label[bonds.pairs[:, 0]], networks)
    return Bonds(bonds.pairs[inside], bonds.lengths[inside])


def molecules(atoms: Atoms, bonds: Bonds) -> list[np.ndarray]:
    """Atoms of each molecule, in the order of their first atoms; each atom of a network is its own.

    Args:
        atoms: With whole molecules.
        bonds: All of them.
    """
    _, label = _components(len(atoms), molecular_bonds(atoms, bonds))
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return sorted(groups, key=lambda group: int(group[0]))


def _components(count: int, bonds: Bonds) -> tuple[int, np.ndarray]:
    i, j = bonds.pairs.T
    return connected_components(_graph(count, i, j), directed=False)


def _graph(count: int, i: np.ndarray, j: np.ndarray) -> csr_array:
    return coo_array((np.ones(len(i)), (i, j)), shape=(count, count)).tocsr()


def _name(atoms: Atoms, index: int) -> str:
    return f"atom {index} ({chemical_symbols[atoms.numbers[index]]})"
