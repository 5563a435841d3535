"""Trajectory files that grow, and that a continued run cuts back to where it goes on.

DCD (CHARMM's format, as mdtraj, MDAnalysis, VMD and OpenMM read it) is written and read here, so that
no engine is needed; XTC is written by OpenMM; extxyz, with energies and forces, by ASE.
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import Cell

from calculators.openmm import LENGTH
from calculators.simulation.engine import Sample
from calculators.simulation.quantities import PICOSECOND
from calculators.simulation.settings import SimulationSettings
from forcefield.errors import CheckpointError, EngineError, InvalidStructureError

_AKMA = 1.0 / np.sqrt(units.kcal / units.mol) / PICOSECOND
"""ps in the format's unit of time, Å sqrt(amu / (kcal/mol))."""

_COUNT_AT, _HEADER_BYTES = 8, 276


class TrajectoryWriter(Protocol):
    """Takes frames."""

    def write(self, sample: Sample) -> None:
        """Append a frame."""

    def sync(self) -> int:
        """Put everything on the disk; return the file's length in bytes."""

    def close(self) -> None:
        """Finish the file."""


def open_trajectory(
    path: Path, settings: SimulationSettings, atoms: Atoms, topology: Any, size: int | None
) -> TrajectoryWriter:
    """A writer for the format of the settings.

    Args:
        path: The file.
        settings: Format and intervals.
        atoms: Starting structure.
        topology: OpenMM's, for XTC.
        size: Bytes to keep of an existing file; None for a new one.

    Raises:
        CheckpointError: The file that is to be continued is shorter than that.
    """
    if size is not None:
        cut(path, size)
    if settings.format == "dcd":
        return DCDWriter(path, len(atoms), bool(atoms.pbc.all()), settings, size is not None)
    if settings.format == "xtc":
        return XTCWriter(path, settings, topology, size is not None)
    return ExtxyzWriter(path, atoms, settings, size is not None)


def check_writable(settings: SimulationSettings) -> None:
    """Find out before anything is replaced.

    Raises:
        EngineError: What writes files of the format is not installed.
    """
    if settings.format == "xtc":
        _import_app()


def _import_app() -> Any:
    try:
        from openmm import app
    except ImportError as error:
        raise EngineError(
            f"xtc files are written by OpenMM, which cannot be imported ({error}); choose "
            "--format dcd"
        ) from error
    return app


def cut(path: Path, size: int) -> None:
    """Shorten a file to the length that it had at a checkpoint.

    Raises:
        CheckpointError: It is missing or shorter.
    """
    found = path.stat().st_size if path.is_file() else 0
    if found < size:
        raise CheckpointError(
            f"{path} has {found} bytes, {size} when the checkpoint was written: the run cannot be "
            "continued without it"
        )
    os.truncate(path, size)


class DCDWriter:
    """CHARMM's binary format, single precision, Å."""

    def __init__(
        self, path: Path, atoms: int, periodic: bool, settings: SimulationSettings, append: bool
    ) -> None:
        self._atoms, self._periodic = atoms, periodic
        self._file: BinaryIO = path.open("r+b" if append else "w+b")
        if append:
            self._file.seek(0, os.SEEK_END)
        else:
            self._file.write(self._header(settings))

    def _header(self, settings: SimulationSettings) -> bytes:
        # 20 numbers: frames, first step, interval, steps, five unused, time step, cell, eight
        # unused, version of CHARMM.
        control = struct.pack("<9i", 0, 0, settings.every, 0, 0, 0, 0, 0, 0)
        control += struct.pack("<f", settings.timestep / _AKMA)
        control += struct.pack("<10i", int(self._periodic), 0, 0, 0, 0, 0, 0, 0, 0, 24)
        titles = b"".join(
            title.ljust(80) for title in (b"Created by hegnn-forcefield", b"Positions in Angstrom")
        )
        return (
            _record(b"CORD" + control)
            + _record(struct.pack("<i", 2) + titles)
            + _record(struct.pack("<i", self._atoms))
        )

    def write(self, sample: Sample) -> None:
        """Append a frame."""
        frame = b""
        if self._periodic and sample.cell is not None:
            a, b, c, alpha, beta, gamma = Cell(sample.cell).cellpar()
            frame += _record(struct.pack("<6d", a, gamma, b, beta, alpha, c))
        for axis in sample.positions.astype("<f4").T:
            frame += _record(np.ascontiguousarray(axis).tobytes())
        self._file.write(frame)

    def sync(self) -> int:
        """Write the number of frames into the header, and everything to the disk."""
        end = self._file.tell()
        frames = (end - _HEADER_BYTES) // _frame_bytes(self._atoms, self._periodic)
        self._file.seek(_COUNT_AT)
        self._file.write(struct.pack("<i", frames))
        self._file.seek(end)
        self._file.flush()
        os.fsync(self._file.fileno())
        return end

    def close(self) -> None:
        """Finish the file."""
        if not self._file.closed:
            self.sync()
        self._file.close()


def _record(data: bytes) -> bytes:
    """A record of Fortran's unformatted files: length, data, length."""
    length = struct.pack("<i", len(data))
    return length + data + length


def _frame_bytes(atoms: int, periodic: bool) -> int:
    return 3 * (4 * atoms + 8) + (56 if periodic else 0)


def read_dcd(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames of a DCD file that :class:`DCDWriter` wrote.

    Returns:
        Positions (f, n, 3), float32, Å, and cells (f, 3, 3), Å, or None.

    Raises:
        InvalidStructureError: It is not such a file.
    """
    data = path.read_bytes()
    if len(data) < _HEADER_BYTES or data[4:8] != b"CORD":
        raise InvalidStructureError(f"{path} is not a DCD file of this package")
    periodic = struct.unpack_from("<i", data, 48)[0] == 1
    atoms = struct.unpack_from("<i", data, _HEADER_BYTES - 8)[0]
    size = _frame_bytes(atoms, periodic)
    frames = (len(data) - _HEADER_BYTES) // size
    raw = np.frombuffer(data, np.uint8, frames * size, _HEADER_BYTES).reshape(frames, size)
    cells = None
    if periodic:
        lengths = raw[:, 4:52].copy().view("<f8")
        cells = np.array([Cell.new(row[[0, 2, 5, 4, 3, 1]]).array for row in lengths])
        raw = raw[:, 56:]
    axes = raw.reshape(frames, 3, 4 * atoms + 8)[:, :, 4:-4]
    positions = np.ascontiguousarray(axes).view("<f4").reshape(frames, 3, atoms)
    return positions.transpose(0, 2, 1), cells


class XTCWriter:
    """GROMACS' compressed format, through OpenMM; positions to 0.01 Å."""

    def __init__(
        self, path: Path, settings: SimulationSettings, topology: Any, append: bool
    ) -> None:
        app = _import_app()
        self._path = path
        if not append:
            path.unlink(missing_ok=True)
        empty = not path.is_file() or path.stat().st_size == 0
        self._file = app.XTCFile(
            str(path), topology, settings.timestep, 0, settings.every, append=not empty
        )

    def write(self, sample: Sample) -> None:
        """Append a frame."""
        vectors = None
        if sample.cell is not None:
            from openmm import Vec3

            vectors = [Vec3(*row) for row in sample.cell / LENGTH]
        self._file.writeModel(sample.positions / LENGTH, periodicBoxVectors=vectors)

    def sync(self) -> int:
        """Every frame is written at once: the file's length."""
        return self._path.stat().st_size

    def close(self) -> None:
        """Nothing is left open."""


class ExtxyzWriter:
    """Text, with energy, forces, step and time of every frame."""

    def __init__(
        self, path: Path, atoms: Atoms, settings: SimulationSettings, append: bool
    ) -> None:
        self._time_step = settings.timestep
        self._numbers, self._pbc = atoms.numbers, atoms.pbc
        self._file = path.open("a" if append else "w", encoding="utf-8")

    def write(self, sample: Sample) -> None:
        """Append a frame."""
        from ase.io import write

        atoms = Atoms(self._numbers, sample.positions, cell=sample.cell, pbc=self._pbc)
        atoms.info = {"step": sample.step, "time_ps": sample.step * self._time_step}
        atoms.calc = SinglePointCalculator(atoms, energy=sample.potential, forces=sample.forces)
        write(self._file, atoms, format="extxyz")

    def sync(self) -> int:
        """Put everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
