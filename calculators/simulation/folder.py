"""The folder of a simulation."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SimulationFolder:
    """Paths of what a simulation leaves.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """What was asked for, by which versions, with which potential."""
        return self.path / "settings.json"

    @property
    def energies(self) -> Path:
        """A line for every frame."""
        return self.path / "energies.csv"

    @property
    def topology(self) -> Path:
        """Names for trajectories that hold none."""
        return self.path / "topology.pdb"

    @property
    def checkpoint(self) -> Path:
        """What a continued run needs."""
        return self.path / "checkpoint.npz"

    @property
    def final(self) -> Path:
        """The last structure, with velocities."""
        return self.path / "final.extxyz"

    @property
    def failed(self) -> Path:
        """The structure in which the run failed, if there was one with numbers in it."""
        return self.path / "failed.extxyz"

    @property
    def summary(self) -> Path:
        """Speed, drift, temperature, stability."""
        return self.path / "summary.json"

    @property
    def plot(self) -> Path:
        """The same as a picture."""
        return self.path / "plot.png"

    def trajectory(self, suffix: str) -> Path:
        """The frames."""
        return self.path / f"trajectory.{suffix}"

    def all_files(self) -> list[Path]:
        """Everything that a simulation may leave."""
        return [
            self.settings,
            self.energies,
            self.topology,
            self.checkpoint,
            self.final,
            self.failed,
            self.summary,
            self.plot,
            *(self.trajectory(suffix) for suffix in ("dcd", "xtc", "extxyz")),
        ]
