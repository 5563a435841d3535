"""The folder of a simulation: its files, and whether a new one may begin in it."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forcefield.errors import ConfigError


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

    def is_simulation(self) -> bool:
        """Whether there is a settings file, and one that a simulation wrote."""
        try:
            values = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and {"settings", "degrees_of_freedom"} <= values.keys()


def check_new(folder: SimulationFolder, inputs: Iterable[str], overwrite: bool) -> None:
    """Check that a new simulation may use a folder; nothing is changed yet.

    Args:
        folder: Where its files are to go; those of an earlier simulation will be removed.
        inputs: Names of the files that it reads.
        overwrite: Whether an earlier simulation may be replaced.

    Raises:
        ConfigError: There is a simulation already and ``overwrite`` is False, one of its files is an
            input, or a file that no simulation wrote would be replaced.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"{folder.path} is a file: choose another --out")
    there = [path for path in folder.all_files() if path.exists() or path.is_symlink()]
    if not folder.is_simulation():
        if there:
            raise ConfigError(
                f"{folder.path} is not the folder of a simulation, and its {there[0].name} would be "
                "replaced, which --overwrite does not allow either: choose another --out"
            )
        return
    if not overwrite:
        raise ConfigError(
            f"{folder.path} holds a simulation already: continue it with --resume, replace it "
            "with --overwrite, or choose another --out"
        )
    for source in map(Path, inputs):
        # Whatever the names are: a link to a file that goes is of no use either.
        if source.is_file() and any(path.exists() and path.samefile(source) for path in there):
            raise ConfigError(
                f"{source} belongs to the simulation that --overwrite would remove: choose another "
                "--out, or copy the file to somewhere else first"
            )


@contextmanager
def alone_in(folder: SimulationFolder) -> Iterator[None]:
    """Hold a folder, so that two processes do not write into its files.

    Where a file system or Windows knows no such locks, nothing is held.

    Raises:
        ConfigError: Another process holds it.
    """
    try:
        import fcntl

        opened = os.open(folder.path, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is writing into {folder.path}: wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # Some network file systems lock no folders.
        yield
    finally:
        os.close(opened)
