"""Labelled geometries: one frame, the three parts of a split, and the hash that identifies them.

Units are the project's: Å, eV, eV/Å, eV/Å³.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from forcefield.errors import DataError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def _no_periodicity() -> BoolArray:
    return np.zeros(3, dtype=bool)


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled geometry.

    Attributes:
        atomic_numbers: Nuclear charges, (n,), int64.
        positions: Cartesian coordinates, (n, 3), Å.
        energy: Total energy, eV.
        forces: Minus the derivative of the energy, (n, 3), eV/Å.
        cell: Cell vectors in rows, (3, 3), Å; None where no direction is periodic.
        pbc: Periodicity of each direction, (3,), bool.
        stress: dE/dstrain / V, (3, 3), eV/Å³, or None.
        index: Position of the frame in its source, counted from 0.
        source: File or named set that the frame comes from.
    """

    atomic_numbers: IntArray
    positions: FloatArray
    energy: float
    forces: FloatArray
    cell: FloatArray | None = None
    pbc: BoolArray = field(default_factory=_no_periodicity)
    stress: FloatArray | None = None
    index: int = 0
    source: str = ""

    @property
    def where(self) -> str:
        """The frame's place in words, for messages."""
        return f"{self.source}, frame {self.index}" if self.source else f"frame {self.index}"


@dataclass(frozen=True)
class Reading:
    """What one file holds.

    Attributes:
        frames: The labelled geometries, in the file's order.
        isolated_atoms: Energies of single atoms found in the file, eV by atomic number.
        energy_unit: Size of the unit in which the energies were read, eV.
        length_unit: Size of the unit in which the positions were read, Å.
        forces_unit: Size of the unit in which the forces were read, eV/Å.
        warnings: What a person should know about the reading.
    """

    frames: list[Frame]
    isolated_atoms: dict[int, float]
    energy_unit: float
    length_unit: float
    forces_unit: float
    warnings: tuple[str, ...] = ()


def add_isolated(isolated: dict[int, float], number: int, energy: float, where: str) -> None:
    """Keep the energy of an isolated atom.

    Args:
        isolated: Those known so far, eV by atomic number; changed in place.
        number: Of the atom.
        energy: eV.
        where: Its frame, in words.

    Raises:
        DataError: The element has another energy already.
    """
    known = isolated.setdefault(number, energy)
    if abs(known - energy) > 1e-6:
        raise DataError(
            f"{where}: the isolated {chemical_symbols[number]} atom has {energy:.6f} eV here and "
            f"{known:.6f} eV in an earlier frame; keep one of them"
        )


@dataclass(frozen=True)
class Split:
    """A data set, divided.

    Attributes:
        train: Frames to fit.
        valid: Frames to choose the best weights by; taken from the training part.
        test: Frames that nothing is chosen by.
        source: The name or file that was asked for.
        license: Licence of a public set; empty for one's own files.
        notes: How a public set is cited.
        isolated_atoms: Energies of single atoms, eV by atomic number; empty if there are none.
        warnings: What a person should know before training on these frames.
    """

    train: list[Frame]
    valid: list[Frame]
    test: list[Frame]
    source: str
    license: str = ""
    notes: str = ""
    isolated_atoms: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def data_hash(frames: Iterable[Frame]) -> str:
    """Hash of everything that training sees: numbers, positions, energies, forces, cells, stresses.

    The order of the frames counts; where they came from does not.

    Returns:
        sha256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(np.asarray(frame.atomic_numbers, dtype="<i8").tobytes())
        digest.update(np.asarray(frame.positions, dtype="<f8").tobytes())
        digest.update(np.asarray([frame.energy], dtype="<f8").tobytes())
        digest.update(np.asarray(frame.forces, dtype="<f8").tobytes())
        for name, array in (("cell", frame.cell), ("stress", frame.stress)):
            if array is not None:
                digest.update(name.encode() + np.asarray(array, dtype="<f8").tobytes())
        digest.update(np.asarray(frame.pbc, dtype=np.uint8).tobytes())
    return digest.hexdigest()
