"""Reader for folders in the layout of DeePMD-kit: numpy arrays, one system each.

    type.raw        a number for each atom, (n,)
    type_map.raw    the element of each number
    nopbc           an empty file, if there is no cell
    set.000/ ...    coord.npy (f, 3 n), box.npy (f, 9), energy.npy (f,), force.npy (f, 3 n) and, if there
                    is one, virial.npy (f, 9): minus the derivative of the energy by the strain

Energies are in eV and lengths in Å unless the user says otherwise.

Reference: H. Wang, L. Zhang, J. Han, W. E, Comput. Phys. Commun. 228, 178 (2018); docs of DeePMD-kit.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers as numbers_of_symbols

from forcefield.errors import DataError
from training.datasets.frames import FloatArray, Frame, IntArray, Reading, add_isolated
from training.datasets.options import ReadOptions

TYPES = "type.raw"


def read_deepmd(path: Path, options: ReadOptions | None = None) -> Reading:
    """Read every frame of a system, or of all systems in a folder.

    Args:
        path: A folder with a type.raw, or one that has such folders in it.
        options: Units, where they are not eV and Å.

    Raises:
        DataError: No such folder, an array is missing, unreadable or of the wrong shape, a type without
            an element, or two energies of an isolated atom.
        ConfigError: An unknown unit.
    """
    options = options or ReadOptions()
    scales = options.scales("eV", "Angstrom")
    found = systems(path)
    if not found:
        raise DataError(
            f"{path}: a folder without the {TYPES} of DeePMD-kit; name a file, or the folder that "
            f"holds {TYPES} and set.000"
        )
    frames: list[Frame] = []
    isolated: dict[int, float] = {}
    for system in found:
        for frame in _frames(system, *scales):
            if len(frame.atomic_numbers) > 1 or frame.pbc.any():
                frames.append(frame)
            else:
                add_isolated(isolated, int(frame.atomic_numbers[0]), frame.energy, frame.where)
    return Reading(frames, isolated, *scales)


def systems(path: Path) -> list[Path]:
    """The folder itself if it is a system, or the systems in it."""
    if (path / TYPES).is_file():
        return [path]
    return sorted(file.parent for file in path.glob(f"*/{TYPES}"))


def _frames(
    system: Path, energy_unit: float, length_unit: float, forces_unit: float
) -> Iterator[Frame]:
    numbers = _atomic_numbers(system)
    n = len(numbers)
    periodic = not (system / "nopbc").exists()
    parts = sorted(part for part in system.glob("set.*") if part.is_dir())
    if not parts:
        raise DataError(f"{system}: no folder set.000")
    index = 0
    for part in parts:
        if (part / "real_atom_types.npy").exists():
            raise DataError(
                f"{part}: systems of mixed type are not read; write each composition into a system of "
                "its own (dpdata does)"
            )
        coordinates = _array(part, "coord", 3 * n)
        count = len(coordinates)
        positions = coordinates.reshape(count, n, 3) * length_unit
        energies = _array(part, "energy", 1, count)[:, 0] * energy_unit
        forces = _array(part, "force", 3 * n, count).reshape(count, n, 3) * forces_unit
        cells = (
            _array(part, "box", 9, count).reshape(count, 3, 3) * length_unit if periodic else None
        )
        stresses = None
        if cells is not None and (part / "virial.npy").exists():
            virials = _array(part, "virial", 9, count).reshape(count, 3, 3) * energy_unit
            stresses = -virials / np.abs(np.linalg.det(cells))[:, None, None]
        for k in range(count):
            yield Frame(
                atomic_numbers=numbers,
                positions=positions[k],
                energy=float(energies[k]),
                forces=forces[k],
                cell=None if cells is None else cells[k],
                pbc=np.full(3, periodic),
                stress=None if stresses is None else stresses[k],
                index=index,
                source=str(system),
            )
            index += 1


def _atomic_numbers(system: Path) -> IntArray:
    try:
        types = np.loadtxt(system / TYPES, dtype=np.int64, ndmin=1)
        names = (system / "type_map.raw").read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{system}: {TYPES} needs a number for each atom, and type_map.raw the elements ({error})"
        ) from error
    if types.size == 0 or types.min() < 0 or types.max() >= len(names):
        raise DataError(
            f"{system}: {TYPES} has types that type_map.raw ({' '.join(names)}) does not"
        )
    used = [names[k] for k in types]
    unknown = sorted({name for name in used if not numbers_of_symbols.get(name)})
    if unknown:
        raise DataError(
            f"{system}: {', '.join(unknown)} in type_map.raw is no element; write the elements' symbols"
        )
    return np.array([numbers_of_symbols[name] for name in used], dtype=np.int64)


def _array(part: Path, name: str, width: int, count: int | None = None) -> FloatArray:
    """An array as (frames, width)."""
    path = part / f"{name}.npy"
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        what = "its cells (or an empty file nopbc beside type.raw)" if name == "box" else name
        raise DataError(f"{part}: no {path.name}, and with it no {what}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array ({error})") from error
    if (
        values.size == 0
        or values.size % width
        or (count is not None and values.size != count * width)
    ):
        frames = "frames" if count is None else f"{count} frames"
        raise DataError(f"{path}: {frames} of {width} numbers needed, found shape {values.shape}")
    return np.asarray(values, dtype=np.float64).reshape(-1, width)
