"""Geometries to pretrain on, from whatever holds them; labels are left aside."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forcefield.errors import DataError
from training.datasets.md17 import read_npz
from training.datasets.options import ReadOptions
from training.pretraining.molecules import read_spice
from training.pretraining.storage import Structure, load_structures

SPICE = (".hdf5", ".h5")


def read_geometries(path: Path) -> list[Structure]:
    """All geometries of a file.

    Args:
        path: HDF5 as SPICE has it; npz in the layouts of MD17 or of
            :mod:`training.pretraining.storage`; or any format that ASE reads.

    Raises:
        DataError: The file cannot be read, or holds nothing.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        if path.suffix.lower() in SPICE:
            structures = list(read_spice(path))
        elif path.suffix.lower() == ".npz":
            structures = _read_npz(path)
        else:
            structures = _read_ase(path)
    except DataError:
        raise
    except Exception as error:  # ASE's readers differ in what they raise.
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read ({reason})") from error
    if not structures:
        raise DataError(f"{path} holds no geometries")
    return structures


def _read_npz(path: Path) -> list[Structure]:
    with np.load(path) as data:
        own = "num_atoms" in data
    if own:
        return load_structures(path)
    # Energies are not used, but the reader wants to know their unit.
    frames = read_npz(path, ReadOptions(energy_unit="eV")).frames
    return [Structure(frame.atomic_numbers, frame.positions, path.stem) for frame in frames]


def _read_ase(path: Path) -> list[Structure]:
    """Molecules are told apart by their composition."""
    from ase.io import iread

    structures = []
    for index, atoms in enumerate(iread(path)):
        if atoms.pbc.any():
            raise DataError(
                f"{path}, frame {index} is periodic, and molecules are wanted; if it is one in a box, set "
                "its pbc to F F F"
            )
        structures.append(Structure(atoms.numbers, atoms.positions, atoms.get_chemical_formula()))
    return structures


def divide(
    structures: Sequence[Structure], held_out: float, seed: int = 0
) -> tuple[list[Structure], list[Structure]]:
    """Training and validation structures; a molecule is in one of them only.

    If there are too few molecules for that, every so many-th structure is held out
    (:func:`molecules_held_out`).

    Args:
        structures: Of any molecules.
        held_out: Share of the molecules to validate on.
        seed: Of the choice.
    """
    names = sorted({structure.molecule for structure in structures})
    count = molecules_held_out(len(names), held_out)
    if count:
        np.random.default_rng(seed).shuffle(names)
        held = set(names[:count])
        chosen = [structure.molecule in held for structure in structures]
    else:
        step = min(max(2, round(1 / held_out)), max(2, len(structures)))
        chosen = [k % step == step - 1 for k in range(len(structures))]
    train = [s for s, out in zip(structures, chosen, strict=True) if not out]
    valid = [s for s, out in zip(structures, chosen, strict=True) if out]
    return train, valid


def molecules_held_out(number: int, held_out: float) -> int:
    """How many whole molecules are held out of so many; with 0 it is structures of the same ones.

    Args:
        number: Of molecules.
        held_out: Share of them to validate on.
    """
    return round(held_out * number)
