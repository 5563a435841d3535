"""Which particles of an OpenMM System a force acts on, and what elements they are."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forcefield.errors import ConfigError, UnknownElementError
from forcefield.export import ExportedPotential

if TYPE_CHECKING:
    from openmm.app import Topology


def check_particles(particles: Iterable[int] | None, size: int) -> np.ndarray | None:
    """Indices of particles as an array (n,), None if none were given.

    Args:
        particles: What a user gave.
        size: Number of particles that there are.

    Raises:
        ConfigError: They are no whole numbers, none at all, twice the same, or not there.
    """
    if particles is None:
        return None
    given = list(particles)
    for index in given:
        if isinstance(index, bool | np.bool_) or not isinstance(index, int | np.integer):
            raise ConfigError(
                f"particles are named by their indices, found {index!r}; "
                "of Atom objects take atom.index"
            )
    if not given:
        raise ConfigError("the list of particles is empty; leave it out for all of them")
    where = np.array(given, dtype=np.int64)
    bad = where[(where < 0) | (where >= size)]
    if len(bad):
        # OpenMM would read beyond its memory.
        raise ConfigError(f"there is no particle {bad[0]}: there are {size}, from 0 to {size - 1}")
    values, counts = np.unique(where, return_counts=True)
    if len(values) < len(where):
        raise ConfigError(f"particle {values[counts > 1][0]} is named more than once")
    return where


def count_particles(atoms: "Topology | Sequence[int] | np.ndarray") -> int:
    """Number of particles of a Topology or a list of atomic numbers."""
    return atoms.getNumAtoms() if hasattr(atoms, "getNumAtoms") else len(atoms)


def atomic_numbers(
    atoms: "Topology | Sequence[int] | np.ndarray", where: np.ndarray | None
) -> np.ndarray:
    """Atomic numbers (n,) of the atoms that the force acts on.

    Raises:
        UnknownElementError: One of them has no element.
    """
    if not hasattr(atoms, "atoms"):
        numbers = np.asarray(atoms, dtype=np.int64)
        return numbers if where is None else numbers[where]
    everything = list(atoms.atoms())
    chosen = everything if where is None else [everything[index] for index in where]
    for atom in chosen:
        if atom.element is None:
            raise UnknownElementError(
                f"particle {atom.index} ({atom.name} of residue {atom.residue.name} "
                f"{atom.residue.id}) has no element: virtual sites and extra particles carry no "
                "forces of a machine-learned potential, remove them from the topology or name the "
                "others (particles=[...])"
            )
    return np.array([atom.element.atomic_number for atom in chosen], dtype=np.int64)


def check_elements(
    potential: ExportedPotential, numbers: np.ndarray, where: np.ndarray | None
) -> None:
    """As ``potential.check_elements``, with the particle's index in the message."""
    if where is None:
        potential.check_elements(numbers)
        return
    named = np.full(where.max() + 1, potential.species[0])
    named[where] = numbers
    potential.check_elements(named)


def is_periodic(atoms: "Topology | Sequence[int] | np.ndarray", periodic: bool | None) -> bool:
    """Whether the box counts: as the user says, else if the topology has one."""
    if periodic is not None:
        return periodic
    if not hasattr(atoms, "getPeriodicBoxVectors"):
        return False
    return atoms.getPeriodicBoxVectors() is not None
