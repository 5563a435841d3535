"""What a run writes as it goes: energies, frames, bond lengths, distances, estimated errors."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units

from calculators.simulation.engine import Sample
from calculators.simulation.folder import SimulationFolder
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import (
    TOLERANCE,
    Bonds,
    bond_lengths,
    pair_distances,
)
from calculators.simulation.trajectory import TrajectoryWriter, cut

ALL_PAIRS = 400
"""Up to this many atoms outside a cell every distance is counted; else those up to RANGE."""

RANGE = 6.0
"""Å."""

Uncertainty = Callable[[np.ndarray, np.ndarray | None, np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Mark:
    """Where the files stood at a checkpoint.

    Attributes:
        energies: Bytes of energies.csv.
        trajectory: Bytes of the trajectory.
        frames: Frames so far.
        counts: Of distances in the bins of h(r), (k,).
    """

    energies: int
    trajectory: int
    frames: int
    counts: np.ndarray


class Record:
    """Takes samples, keeps energies.csv and the trajectory in step.

    Args:
        folder: Where the files are.
        settings: The simulation.
        atoms: Starting structure.
        bonds: Bonded pairs and their reference lengths.
        freedom: Degrees of freedom, for the temperature.
        trajectory: Writer of frames.
        uncertainty: Estimated errors of a structure; None to leave them out.
        mark: Where to go on; None at the start of a run.
    """

    def __init__(
        self,
        folder: SimulationFolder,
        settings: SimulationSettings,
        atoms: Atoms,
        bonds: Bonds,
        freedom: int,
        trajectory: TrajectoryWriter,
        uncertainty: Uncertainty | None = None,
        mark: Mark | None = None,
    ) -> None:
        self.settings = settings
        self.bonds = bonds
        self.trajectory = trajectory
        self.frames = 0 if mark is None else mark.frames
        self.edges = distance_edges(atoms)
        self.counts = np.zeros(len(self.edges) - 1) if mark is None else mark.counts.copy()
        self.temperature = float("nan")
        self.collapsed = False
        self._pbc, self._mass = atoms.pbc, float(atoms.get_masses().sum())
        self._freedom = freedom
        self._uncertainty = uncertainty
        path = folder.energies
        if mark is not None:
            cut(path, mark.energies)
        self._file = path.open("w" if mark is None else "a", encoding="utf-8")

    def add(self, sample: Sample) -> None:
        """Write a line and a frame."""
        row = self._row(sample)
        if self.frames == 0:
            self._file.write(",".join(row) + "\n")
        self._file.write(",".join(row.values()) + "\n")
        self.trajectory.write(sample)
        self.counts += self._count(sample)
        self.frames += 1

    def _row(self, sample: Sample) -> dict[str, str]:
        self.temperature = 2.0 * sample.kinetic / (self._freedom * units.kB)
        row = {
            "step": str(sample.step),
            "time_ps": f"{sample.step * self.settings.timestep:.6f}",
            "potential_eV": f"{sample.potential:.8f}",
            "kinetic_eV": f"{sample.kinetic:.8f}",
            "total_eV": f"{sample.total:.8f}",
            "temperature_K": f"{self.temperature:.3f}",
        }
        if sample.conserved is not None:
            row["conserved_eV"] = f"{sample.conserved:.8f}"
        if self._pbc.all() and sample.cell is not None:
            volume = abs(float(np.linalg.det(sample.cell)))
            row["volume_A3"] = f"{volume:.4f}"
            row["density_g_per_cm3"] = f"{density(self._mass, volume):.6f}"
        shortest, longest = self._bond_changes(sample)
        row["shortest_bond_A"] = f"{shortest:+.4f}"
        row["longest_bond_A"] = f"{longest:+.4f}"
        if self._uncertainty is not None:
            energy, forces = self._uncertainty(sample.positions, sample.cell, self._pbc)
            row["energy_uncertainty_eV"] = f"{energy:.6f}"
            row["max_force_uncertainty_eV_per_A"] = f"{forces.max():.6f}"
        return row

    def _bond_changes(self, sample: Sample) -> tuple[float, float]:
        """The most negative and the most positive change of a bond, Å."""
        if not len(self.bonds.pairs):
            return 0.0, 0.0
        lengths = bond_lengths(sample.positions, self.bonds.pairs, sample.cell, self._pbc)
        changes = lengths - self.bonds.lengths
        self.collapsed |= bool(np.abs(changes).max() > TOLERANCE)
        return float(changes.min()), float(changes.max())

    def _count(self, sample: Sample) -> np.ndarray:
        whole = len(sample.positions) <= ALL_PAIRS and not self._pbc.any()
        cutoff = None if whole else RANGE
        distances = pair_distances(sample.positions, sample.cell, self._pbc, cutoff)
        return np.histogram(distances, self.edges)[0]

    def sync(self) -> Mark:
        """Put everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return Mark(self._file.tell(), self.trajectory.sync(), self.frames, self.counts.copy())

    def flush(self) -> None:
        """Let others read the energies so far."""
        self._file.flush()

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        self.trajectory.close()


def distance_edges(atoms: Atoms) -> np.ndarray:
    """Bins of distances, 0.02 Å wide: some Å beyond the size of a molecule, or RANGE, Å."""
    if len(atoms) > ALL_PAIRS or atoms.pbc.any() or len(atoms) < 2:
        return np.linspace(0.0, RANGE, round(RANGE / 0.02) + 1)
    reach = float(np.ceil(1.25 * pair_distances(atoms.positions).max() + 2.0))
    return np.linspace(0.0, reach, round(reach / 0.02) + 1)


def density(mass: float, volume: float) -> float:
    """g/cm³ of a mass in amu and a volume in Å³."""
    gram, centimetre = 1e-3 * units.kg, 1e8 * units.Angstrom
    return mass / volume * centimetre**3 / gram


def read_energies(path: Path) -> dict[str, np.ndarray]:
    """Columns of energies.csv by name."""
    with path.open(encoding="utf-8") as file:
        names = file.readline().strip().split(",")
        table = np.loadtxt(file, delimiter=",", ndmin=2)
    if table.size == 0:
        table = np.empty((0, len(names)))
    return dict(zip(names, table.T, strict=True))
