"""Names of atoms and residues: the PDB file beside a trajectory, and OpenMM's Topology.

Names differ within a residue: OpenMM's PDB reader drops atoms that share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from calculators.openmm import LENGTH
from forcefield.files import write_text

if TYPE_CHECKING:
    from openmm.app import Topology

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Residue:
    """A molecule, or a residue of the file that the structure came from.

    Attributes:
        name: Up to three letters.
        number: As in the file, or counted from 1.
        atoms: Indices, contiguous or not.
        names: Of the atoms, all different, up to four characters.
    """

    name: str
    number: int
    atoms: tuple[int, ...]
    names: tuple[str, ...]


def name_residues(atoms: Atoms, molecules: Sequence[np.ndarray]) -> list[Residue]:
    """Residues of the file where it has any, else one for each molecule.

    Args:
        atoms: With the arrays that ASE's PDB reader leaves, or without.
        molecules: Indices of the atoms of each molecule.
    """
    if "residuenumbers" in atoms.arrays and "residuenames" in atoms.arrays:
        return _residues_of_file(atoms)
    residues = []
    for number, members in enumerate(molecules, start=1):
        water = sorted(atoms.numbers[members].tolist()) == [1, 1, 8]
        names = _count_elements(atoms.numbers[members])
        if water:
            names = ["O" if name == "O1" else name for name in names]
        name = "HOH" if water else "MOL"
        residues.append(Residue(name, number, tuple(members.tolist()), tuple(names)))
    return residues


def _residues_of_file(atoms: Atoms) -> list[Residue]:
    numbers = atoms.arrays["residuenumbers"]
    names = atoms.arrays["residuenames"]
    change = (numbers[1:] != numbers[:-1]) | (names[1:] != names[:-1])
    residues = []
    for members in np.split(np.arange(len(atoms)), np.flatnonzero(change) + 1):
        labels = [str(name) for name in atoms.arrays.get("atomtypes", np.empty(0))[members]]
        if len(set(labels)) < len(members) or not all(labels):
            labels = _count_elements(atoms.numbers[members])
        first = members[0]
        name = str(names[first]).strip() or "MOL"
        residues.append(
            Residue(name[:3], int(numbers[first]), tuple(members.tolist()), tuple(labels))
        )
    return residues


def _count_elements(numbers: np.ndarray) -> list[str]:
    """C1, C2, H1 ...; beyond four characters the count goes on in the base 36."""
    counts: dict[int, int] = {}
    names = []
    for z in numbers.tolist():
        counts[z] = counts.get(z, 0) + 1
        symbol = chemical_symbols[z]
        decimal = str(counts[z])
        room = 4 - len(symbol)
        names.append(symbol + (decimal if len(decimal) <= room else _base36(counts[z], room)))
    return names


def _base36(count: int, digits: int) -> str:
    # Starts with a letter, so that it is no decimal count.
    count = count - 10**digits + 10 * 36 ** (digits - 1)
    text = ""
    for _ in range(digits):
        count, rest = divmod(count, 36)
        text = _DIGITS[rest] + text
    return text


def write_pdb(path: Path, atoms: Atoms, residues: Sequence[Residue], pairs: np.ndarray) -> None:
    """The topology of a trajectory, with the bonds.

    Args:
        path: Usually topology.pdb.
        atoms: In a standard cell, if any.
        residues: Names.
        pairs: Bonded atoms, (b, 2).
    """
    lines = []
    if atoms.pbc.all():
        a, b, c, alpha, beta, gamma = atoms.cell.cellpar()
        lines.append(
            f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} P 1           1"
        )
    place = {
        index: (residue, name)
        for residue in residues
        for index, name in zip(residue.atoms, residue.names, strict=True)
    }
    symbols = atoms.get_chemical_symbols()
    for index, (x, y, z) in enumerate(atoms.positions):
        residue, name = place[index]
        # A symbol of one letter starts in the second of the four columns.
        label = name if len(name) == 4 or len(symbols[index]) == 2 else f" {name}"
        lines.append(
            f"HETATM{_serial(index):5d} {label:<4s} {residue.name:>3s} A{residue.number % 10000:4d}"
            f"    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbols[index].upper():>2s}"
        )
    if len(atoms) < 100_000:
        for i, j in pairs.tolist():
            lines.append(f"CONECT{_serial(i):5d}{_serial(j):5d}")
    write_text(path, "\n".join([*lines, "END", ""]))


def _serial(index: int) -> int:
    return (index + 1) % 100_000


def openmm_topology(
    atoms: Atoms, residues: Sequence[Residue], pairs: np.ndarray | None = None
) -> "Topology":
    """OpenMM's Topology with the atoms in their order.

    Args:
        atoms: With a reduced cell, if any.
        residues: Names; those whose atoms do not follow one another become several.
        pairs: Bonds, (b, 2): they make the molecules that a barostat moves as a whole.
    """
    import openmm
    from openmm import app, unit

    topology = app.Topology()
    chain = topology.addChain()
    place = {
        index: (residue, name)
        for residue in residues
        for index, name in zip(residue.atoms, residue.names, strict=True)
    }
    current, target = None, None
    for index, z in enumerate(atoms.numbers.tolist()):
        residue, name = place[index]
        if residue is not current:
            current = residue
            target = topology.addResidue(residue.name, chain, str(residue.number))
        topology.addAtom(name, app.Element.getByAtomicNumber(z), target)
    made = list(topology.atoms())
    for i, j in [] if pairs is None else pairs.tolist():
        topology.addBond(made[i], made[j])
    if atoms.pbc.all():
        vectors = [openmm.Vec3(*row) for row in atoms.cell.array / LENGTH]
        topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    return topology
