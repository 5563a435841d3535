"""What a topology says about a trajectory's features: the elements, and which atoms share a token.

Shapes: atoms ``n``, tokens ``t``.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from ase.data import chemical_symbols

from forcefield.errors import (
    ConfigError,
    DataError,
    InvalidStructureError,
    UnknownElementError,
)

if TYPE_CHECKING:
    from mdtraj import Topology
    from mdtraj.core.topology import Atom, Chain

TokenKind = Literal["atom", "residue", "ca", "molecule"]
"""What becomes one token."""

Beads = Mapping[str, Sequence[int]]
"""A mapping of one's own: name of each token, and its atoms by their index in the topology, of those atoms
that were selected."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a topology.

    Attributes:
        atoms: Atoms that belong to tokens, (k,), int64; an atom may be in several tokens, or in none.
        token_of: Token of each of them, (k,), int64; every token has at least one atom.
        labels: Name of each token, t of them.
    """

    atoms: np.ndarray
    token_of: np.ndarray
    labels: tuple[str, ...]


def atomic_numbers(topology: "Topology", species: Collection[int]) -> np.ndarray:
    """Atomic numbers (n,), int64, from the topology's elements.

    Args:
        topology: Of the trajectory.
        species: Atomic numbers that the potential knows.

    Raises:
        UnknownElementError: An atom has no element, or one that is not among ``species``.
        InvalidStructureError: An atom is a virtual site.
    """
    known = ", ".join(chemical_symbols[z] for z in species)
    numbers = []
    for atom in topology.atoms:
        name = f"atom {atom.index} ({atom})"
        if atom.element is None:
            raise UnknownElementError(
                f"{name} has no element in the topology: set its element, or load a topology "
                "file that states the elements"
            )
        if atom.element.atomic_number == 0:
            raise InvalidStructureError(
                f"{name} is a virtual site, which a potential does not know: leave such sites out "
                "with trajectory.atom_slice(...) or atom_indices"
            )
        if atom.element.atomic_number not in species:
            raise UnknownElementError(
                f"{name} is {atom.element.symbol} (Z = {atom.element.atomic_number}); this "
                f"potential was trained on {known} only"
            )
        numbers.append(atom.element.atomic_number)
    return np.array(numbers, dtype=np.int64)


def assign_tokens(topology: "Topology", kind: TokenKind | Beads, hydrogens: bool = True) -> Tokens:
    """Divide the atoms of a topology into tokens, in the topology's order.

    Labels are mdtraj's names (``ALA2-CA``, ``ALA2``, ``ACE1-NME3`` for a molecule from its first to
    its last residue), behind the chain's name and a colon if there are several chains, and with a number
    where names are not unique (``MOL1-C#2``).

    Args:
        topology: Of the trajectory.
        kind: ``atom``; ``residue``, where residues of different chains are different whatever their
            numbers; ``ca``, the Cα atom of every residue that has one; ``molecule``, all residues
            that bonds join (bonds inside residues do not matter, so a ligand without them stays
            whole); or a mapping from names of tokens to indices of atoms.
        hydrogens: Whether hydrogens belong to tokens. Without them, tokens of hydrogens alone are
            left out.

    Raises:
        ConfigError: ``kind`` is unknown, a mapping is empty or names atoms that there are not, or
            no atom is left.
        DataError: Molecules are asked for, and no bonds tell which of several residues they hold.
    """
    if not isinstance(kind, str):
        members = _beads(topology, kind)
    elif kind not in get_args(TokenKind):
        raise ConfigError(
            f"unknown tokens {kind!r}; known are {', '.join(get_args(TokenKind))}, and a mapping from "
            "names to atom indices"
        )
    elif kind in ("atom", "ca"):
        prefix = _chain_prefixes(topology)
        members = [
            (f"{prefix[atom.residue.chain.index]}{atom}", [atom.index])
            for atom in topology.atoms
            if kind == "atom" or _is_ca(atom)
        ]
    else:
        members = _groups(topology, kind)
    if not hydrogens:
        heavy = np.array(
            [a.element is None or a.element.atomic_number != 1 for a in topology.atoms]
        )
        members = [(label, [k for k in atoms if heavy[k]]) for label, atoms in members]
        members = [(label, atoms) for label, atoms in members if atoms]
    if not members:
        raise ConfigError(f"tokens={kind!r} leaves nothing of {topology.n_atoms} atoms")
    return Tokens(
        atoms=np.array([k for _, atoms in members for k in atoms], dtype=np.int64),
        token_of=np.repeat(np.arange(len(members)), [len(atoms) for _, atoms in members]),
        labels=_told_apart([label for label, _ in members]),
    )


def _told_apart(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels that occur several times with a number behind them, as atoms that all are called C."""
    several = {label for label, number in Counter(labels).items() if number > 1}
    seen: Counter[str] = Counter()
    told = []
    for label in labels:
        seen[label] += 1
        told.append(f"{label}#{seen[label]}" if label in several else label)
    return tuple(told)


Member = tuple[str, list[int]]
"""Label of a token and its atoms."""


def _beads(topology: "Topology", beads: Beads) -> list[Member]:
    members = [(str(name), [int(k) for k in atoms]) for name, atoms in beads.items()]
    for name, atoms in members:
        wrong = [k for k in atoms if not 0 <= k < topology.n_atoms]
        if wrong or not atoms:
            what = f"atom {wrong[0]}" if wrong else "no atoms"
            raise ConfigError(
                f"token {name!r} has {what}; atoms are numbered from 0 to {topology.n_atoms - 1}"
            )
    return members


def _is_ca(atom: "Atom") -> bool:
    """A calcium ion is also called CA."""
    return atom.name == "CA" and atom.element is not None and atom.element.atomic_number == 6


def _groups(topology: "Topology", kind: TokenKind) -> list[Member]:
    """Residues, or molecules."""
    prefix = _chain_prefixes(topology)
    residues = list(topology.residues)
    # The first residue of the group that each residue is in.
    first = _molecules(topology) if kind == "molecule" else np.arange(len(residues))
    members: dict[int, list[int]] = {}
    for atom in topology.atoms:
        members.setdefault(int(first[atom.residue.index]), []).append(atom.index)
    labelled = []
    for group, atoms in sorted(members.items()):
        start, end = residues[group], residues[np.flatnonzero(first == group)[-1]]
        name = str(start) if start is end else f"{start}-{end}"
        labelled.append((f"{prefix[start.chain.index]}{name}", atoms))
    return labelled


def _molecules(topology: "Topology") -> np.ndarray:
    """Index of the first residue of each residue's molecule, (residues,)."""
    if (
        topology.n_bonds == 0
        and topology.n_residues > 1
        and topology.n_atoms > topology.n_residues  # ions or a noble gas need no bonds
    ):
        raise DataError(
            f"the topology has {topology.n_residues} residues and no bonds, so its molecules are "
            "unknown: load it from a file with bonds (a PDB file with CONECT records), add them "
            "(topology.add_bond), or take tokens='residue'"
        )
    first = np.arange(topology.n_residues)
    for one, other in topology.bonds:
        a, b = first[one.residue.index], first[other.residue.index]
        if a != b:
            first[first == max(a, b)] = min(a, b)
    return first


def _chain_prefixes(topology: "Topology") -> list[str]:
    """What stands before the labels of each chain: its name if it has one of its own, or its index."""
    chains: list[Chain] = list(topology.chains)
    if len(chains) < 2:
        return [""] * len(chains)
    names = [(chain.chain_id or "").strip() for chain in chains]
    if not all(names) or len(set(names)) < len(names):
        names = [str(chain.index) for chain in chains]
    return [f"{name}:" for name in names]
