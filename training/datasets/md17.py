"""Reader for the numpy archives in which MD17, its revisions and its relatives are published.

Two layouts, with f frames of n atoms:

    revised MD17    nuclear_charges (n,), coords (f, n, 3), energies (f,), forces (f, n, 3); the
                    labels of the first edition in old_energies and old_forces, unused here
    MD17, CCSD(T),  z (n,), R (f, n, 3), E (f,) or (f, 1), F (f, n, 3), sometimes with the units in
    MD22, sGDML     e_unit and r_unit; molecules of different size share an array if z is (f, n),
                    padded with zeros (QM7-X)

Energies are in kcal/mol and lengths in Å unless the file or the user says otherwise. A file with a
z per frame must say: such sets come in eV as well as in kcal/mol.

References: A. S. Christensen, O. A. von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020);
S. Chmiela et al., Sci. Adv. 3, e1603015 (2017) and Nat. Commun. 9, 3887 (2018).
"""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from forcefield.errors import DataError
from training.datasets.frames import Frame, Reading
from training.datasets.options import ReadOptions

_LAYOUTS = {
    "revised MD17": ("nuclear_charges", "coords", "energies", "forces"),
    "MD17 / sGDML": ("z", "R", "E", "F"),
}


def read_npz(path: Path, options: ReadOptions | None = None, source: str | None = None) -> Reading:
    """Read every frame of an npz file in one of the published layouts.

    Args:
        path: The file.
        options: Units, where the file does not state them.
        source: What the frames are called in messages; the path if None.

    Raises:
        DataError: Not an npz file, an unknown layout, arrays of the wrong shape, or a set of
            different molecules without a stated energy unit.
        ConfigError: An unknown unit.
    """
    source = source or str(path)
    arrays = _load_arrays(path)
    layout = next((keys for keys in _LAYOUTS.values() if set(keys) <= arrays.keys()), None)
    if layout is None:
        known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _LAYOUTS.items())
        raise DataError(
            f"{source}: the arrays {sorted(arrays)} fit no layout known here ({known}). "
            "Rename the arrays, or write the frames as extxyz with ASE"
        )
    numbers, coords, energies, forces = (arrays[key] for key in layout)
    numbers, energies = _check_shapes(source, layout, numbers, coords, energies, forces)

    options = _with_units_of_file(options or ReadOptions(), arrays)
    if numbers.ndim == 2 and options.energy_unit is None:
        raise DataError(
            f"{source}: the file holds different molecules and does not state its energy unit. "
            "Say it: energy_unit=eV (QM7-X) or energy_unit=kcal/mol"
        )
    energy_scale, length_scale, forces_scale = options.scales("kcal/mol", "Angstrom")

    positions = np.asarray(coords, dtype=np.float64) * length_scale
    force_array = np.asarray(forces, dtype=np.float64) * forces_scale
    energy_list = (np.asarray(energies, dtype=np.float64) * energy_scale).tolist()
    charges = numbers.astype(np.int64)
    no_pbc = np.zeros(3, dtype=bool)
    if charges.ndim == 1:
        frames = [
            Frame(charges, r, e, f, pbc=no_pbc, index=i, source=source)
            for i, (r, e, f) in enumerate(zip(positions, energy_list, force_array, strict=True))
        ]
    else:
        frames = [
            Frame(z[z > 0], r[z > 0], e, f[z > 0], pbc=no_pbc, index=i, source=source)
            for i, (z, r, e, f) in enumerate(
                zip(charges, positions, energy_list, force_array, strict=True)
            )
        ]
    return Reading(frames, {}, energy_scale, length_scale, forces_scale)


_CELLS = {"lattice", "lattices", "cell", "cells", "pbc", "box"}


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that the layouts name, and empty ones in place of all others.

    Arrays of pickled objects could run code when read: they are refused.
    """
    wanted = {key for keys in _LAYOUTS.values() for key in keys} | {"e_unit", "r_unit"}
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array, not an npz archive")
        with archive:
            # Exported molecules may say pbc=False, or have a cell of zeros.
            named = [name for name in archive.files if name.lower() in _CELLS]
            cells = [name for name in named if np.any(archive[name] != 0)]
            if cells:
                raise DataError(
                    f"{path}: it holds a cell ({', '.join(cells)}), and npz files are read as molecules "
                    "outside one; write the frames as extxyz, with ASE"
                )
            return {key: archive[key] if key in wanted else np.empty(0) for key in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an npz archive ({error})") from error


def _check_shapes(
    source: str,
    names: tuple[str, ...],
    numbers: np.ndarray,
    coords: np.ndarray,
    energies: np.ndarray,
    forces: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as (n,) or (f, n) and energies as (f,), or a DataError that shows all four shapes."""
    shapes = ", ".join(
        f"{name} {array.shape}"
        for name, array in zip(names, (numbers, coords, energies, forces), strict=True)
    )
    if coords.ndim != 3 or coords.shape[2] != 3 or 0 in coords.shape:
        raise DataError(f"{source}: {names[1]} must have shape (frames, atoms, 3); found {shapes}")
    count, atoms = coords.shape[:2]
    if numbers.shape == (count, atoms, 1) or numbers.shape == (1, atoms):
        numbers = numbers.reshape(numbers.shape[:2]) if numbers.ndim == 3 else numbers[0]
    fits = {
        names[0]: numbers.shape in {(atoms,), (count, atoms)},
        names[2]: energies.shape in {(count,), (count, 1)},
        names[3]: forces.shape == coords.shape,
    }
    wrong = [name for name, good in fits.items() if not good]
    if wrong:
        raise DataError(
            f"{source}: {' and '.join(wrong)} do not fit {count} frames of {atoms} atoms; "
            f"found {shapes}"
        )
    return numbers, energies.reshape(count)


def _with_units_of_file(options: ReadOptions, arrays: dict[str, np.ndarray]) -> ReadOptions:
    """What the user states comes first, then what the file states."""
    stated = {
        "energy_unit": options.energy_unit or _text(arrays.get("e_unit")),
        "length_unit": options.length_unit or _text(arrays.get("r_unit")),
    }
    return replace(options, **stated)


def _text(value: np.ndarray | None) -> str | None:
    """A string stored as a numpy scalar, as text or as bytes."""
    if value is None or value.size != 1:
        return None
    item = value.reshape(()).item()
    return item.decode() if isinstance(item, bytes) else str(item)
