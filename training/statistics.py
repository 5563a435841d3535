"""What a potential takes from its training frames: reference energies, energy scale, neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forcefield.errors import ConfigError, DataError
from forcefield.readout import fit_reference_energies
from training.datasets.frames import Frame

ISOLATED_ATOMS = "isolated atoms in the data"
LEAST_SQUARES = "least squares over the training frames"


@dataclass(frozen=True)
class Statistics:
    """Statistics of the training frames.

    Attributes:
        species: Atomic numbers present, ascending.
        reference_energies: Energy per element, eV.
        reference_source: Where the reference energies come from, in words.
        energy_scale: Root mean square of the force components, eV/Å; used as a scale in eV.
        avg_neighbors: Neighbours within the cutoff per atom.
    """

    species: list[int]
    reference_energies: dict[int, float]
    reference_source: str
    energy_scale: float
    avg_neighbors: float


def collect_statistics(
    frames: Sequence[Frame],
    avg_neighbors: float,
    isolated_atoms: Mapping[int, float] | None = None,
    given: Mapping[str, float] | None = None,
) -> Statistics:
    """Compute the statistics of the training frames.

    Args:
        frames: Training frames.
        avg_neighbors: Neighbours within the cutoff per atom.
        isolated_atoms: Energies of single atoms from the data, eV; used if they cover all elements.
        given: Energies of single atoms by symbol as a user wrote them, eV; used first.

    Raises:
        ConfigError: ``given`` names something that is not an element, or misses one of the data.
        DataError: All forces are zero.
    """
    species = sorted({int(z) for frame in frames for z in np.unique(frame.atomic_numbers)})
    forces = np.concatenate([frame.forces.reshape(-1) for frame in frames])
    scale = float(np.sqrt(np.mean(np.square(forces))))
    if scale == 0.0:
        raise DataError(f"{frames[0].source}: all forces of the training frames are exactly zero")
    if given is not None:
        references, source = _by_number(given, species), "given in the configuration"
    elif isolated_atoms and set(species) <= set(isolated_atoms):
        references = {z: float(isolated_atoms[z]) for z in species}
        source = ISOLATED_ATOMS
    else:
        numbers = [frame.atomic_numbers for frame in frames]
        references = fit_reference_energies(numbers, [frame.energy for frame in frames])
        source = LEAST_SQUARES
    return Statistics(species, references, source, scale, avg_neighbors)


def _by_number(given: Mapping[str, float], species: Sequence[int]) -> dict[int, float]:
    from ase.data import atomic_numbers, chemical_symbols

    unknown = [symbol for symbol in given if atomic_numbers.get(symbol, 0) == 0]
    if unknown:
        raise ConfigError(f"dataset.reference_energies: '{unknown[0]}' is not an element's symbol")
    references = {atomic_numbers[symbol]: float(energy) for symbol, energy in given.items()}
    missing = [chemical_symbols[z] for z in species if z not in references]
    if missing:
        raise ConfigError(
            f"dataset.reference_energies gives no energy for {', '.join(missing)}, which the training "
            "frames contain"
        )
    return {z: references[z] for z in species}
