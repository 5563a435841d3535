"""What a topology says about a trajectory's features: the elements, and which atoms share a token.

Shapes: atoms ``n``, tokens ``t``.
"""

from collections.abc import Collection
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
    from mdtraj.core.topology import Chain

TokenKind = Literal["atom", "residue", "molecule"]
"""What becomes one token."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a topology.

    Attributes:
        of_atom: Token of each atom, (n,), int64; every token has at least one atom.
        labels: Name of each token, t of them.
    """

    of_atom: np.ndarray
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


def assign_tokens(topology: "Topology", kind: TokenKind) -> Tokens:
    """Divide the atoms of a topology into tokens, in the topology's order.

    Labels are mdtraj's names (``ALA2-CA``, ``ALA2``, ``ACE1-NME3`` for a molecule from its first to
    its last residue), behind the chain's name and a colon if there are several chains.

    Args:
        topology: Of the trajectory.
        kind: ``atom``; ``residue``, where residues of different chains are different whatever their
            numbers; or ``molecule``, all residues that bonds join. Bonds inside residues do not
            matter, so a ligand without them stays whole.

    Raises:
        ConfigError: ``kind`` is none of the three.
        DataError: Molecules are asked for, and no bonds tell which of several residues they hold.
    """
    if kind not in get_args(TokenKind):
        raise ConfigError(f"unknown tokens {kind!r}; known are {', '.join(get_args(TokenKind))}")
    prefix = _chain_prefixes(topology)
    if kind == "atom":
        labels = [f"{prefix[atom.residue.chain.index]}{atom}" for atom in topology.atoms]
        return Tokens(np.arange(topology.n_atoms), tuple(labels))

    residues = list(topology.residues)
    # The first residue of the group that each residue is in; a group is a residue or a molecule.
    first = _molecules(topology) if kind == "molecule" else np.arange(len(residues))
    groups, of_atom = np.unique(
        [first[atom.residue.index] for atom in topology.atoms], return_inverse=True
    )
    labels = []
    for group in groups:
        start, end = residues[group], residues[np.flatnonzero(first == group)[-1]]
        name = str(start) if start is end else f"{start}-{end}"
        labels.append(f"{prefix[start.chain.index]}{name}")
    return Tokens(of_atom.astype(np.int64), tuple(labels))


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
