"""Structures of any sizes in one npz file: flat arrays and the place where each structure begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcefield.files import write_with
from training.datasets.frames import Frame


@dataclass(frozen=True, eq=False)
class Structure:
    """One geometry.

    Attributes:
        numbers: Atomic numbers, (n,).
        positions: (n, 3), Å.
        molecule: Identifies the molecule; geometries of one molecule share it.
        energy: Total energy, eV; None without labels.
        forces: (n, 3), eV/Å; None without labels.
    """

    numbers: np.ndarray
    positions: np.ndarray
    molecule: str
    energy: float | None = None
    forces: np.ndarray | None = None


def save_structures(structures: Sequence[Structure], path: Path) -> None:
    """Write structures, all of them with labels or none."""
    arrays: dict[str, Any] = {
        "num_atoms": np.array([len(s.numbers) for s in structures]),
        "atomic_numbers": np.concatenate([s.numbers for s in structures]).astype(np.uint8),
        "positions": np.concatenate([s.positions for s in structures]).astype(np.float32),
        "molecules": np.array([s.molecule for s in structures]),
    }
    if structures[0].forces is not None:
        arrays["energy"] = np.array([s.energy for s in structures], dtype=np.float64)
        arrays["forces"] = np.concatenate([s.forces for s in structures]).astype(np.float32)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_with(path, write)


def load_structures(path: Path) -> list[Structure]:
    """Read what :func:`save_structures` wrote."""
    with np.load(path) as data:
        ends = np.cumsum(data["num_atoms"])[:-1]
        numbers = np.split(data["atomic_numbers"].astype(np.int64), ends)
        positions = np.split(data["positions"].astype(np.float64), ends)
        molecules = data["molecules"].tolist()
        if "forces" not in data:
            return [
                Structure(z, r, name)
                for z, r, name in zip(numbers, positions, molecules, strict=True)
            ]
        forces = np.split(data["forces"].astype(np.float64), ends)
        energies = data["energy"].tolist()
    return [
        Structure(z, r, name, energy, f)
        for z, r, name, energy, f in zip(
            numbers, positions, molecules, energies, forces, strict=True
        )
    ]


def as_frame(structure: Structure) -> Frame:
    """A labelled structure as training sees it."""
    assert structure.energy is not None
    assert structure.forces is not None
    return Frame(
        atomic_numbers=structure.numbers,
        positions=structure.positions,
        energy=structure.energy,
        forces=structure.forces,
        source=structure.molecule,
    )
