"""What an analysis finds, and the files that hold it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurizers.analysis.learning import Epoch
from featurizers.analysis.markov import MarkovModel, Timescales
from featurizers.analysis.metastable import ChapmanKolmogorov, Metastable
from featurizers.analysis.scores import Scores
from featurizers.analysis.settings import AnalysisSettings
from featurizers.analysis.times import Clock
from forcefield.errors import ConfigError
from forcefield.files import write_with
from forcefield.version import __version__


@dataclass(frozen=True)
class Analysis:
    """What an analysis finds. Times are in frames, states are counted from 0.

    Attributes:
        settings: What was asked for.
        lag: Frames.
        clock: Turns frames into times.
        bounds: First frame of each trajectory, and the number of all frames.
        labels: Names of the tokens.
        scores: Of each fold, on its test frames.
        history: Course of the last training.
        coordinates: Slow coordinates of all frames, slowest first, (f, k).
        coordinate_timescales: Relaxation times of TICA, (k,).
        model: The Markov model.
        timescales: Implied timescales over lags.
        metastable: Its metastable states.
        states: State of each frame, -1 for frames of clusters that are not connected, (f,).
        test: Chapman-Kolmogorov test.
        importance: Of each token, percent, (t,).
        dihedrals: φ and ψ, radians, (f, 2), of a dipeptide.
        remarks: What should not be overlooked.
    """

    settings: AnalysisSettings
    lag: int
    clock: Clock
    bounds: tuple[int, ...]
    labels: tuple[str, ...]
    scores: list[Scores]
    history: list[Epoch]
    coordinates: np.ndarray
    coordinate_timescales: np.ndarray
    model: MarkovModel
    timescales: Timescales
    metastable: Metastable
    states: np.ndarray
    test: ChapmanKolmogorov
    importance: np.ndarray
    dihedrals: np.ndarray | None
    remarks: tuple[str, ...]

    @property
    def slowest(self) -> tuple[float, float]:
        """The slowest implied timescale at the lag, and its standard error."""
        place = int(np.flatnonzero(self.timescales.lags == self.lag)[0])
        return float(self.timescales.values[place, 0]), float(self.timescales.errors[place, 0])

    def score(self, kind: str) -> tuple[float, float]:
        """Mean of "vamp2" or "vampe" over the folds, and its standard deviation."""
        values = np.array([getattr(fold, kind) for fold in self.scores])
        return float(values.mean()), float(values.std(ddof=1))


@dataclass(frozen=True)
class ResultFolder:
    """Paths of what an analysis leaves.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def report(self) -> Path:
        """Everything to look at, HTML."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The figures, JSON."""
        return self.path / "summary.json"

    @property
    def coordinates(self) -> Path:
        """Coordinates and states of every frame, npz."""
        return self.path / "coordinates.npz"

    @property
    def structures(self) -> Path:
        """Folder of representative structures, PDB."""
        return self.path / "structures"

    def check_free(self, overwrite: bool) -> None:
        """Check that an analysis may be written here; nothing is changed yet.

        Raises:
            ConfigError: It is a file, or not empty and ``overwrite`` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file: choose another folder with --out")
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise ConfigError(
                f"{self.path} is not empty: choose another folder with --out, or add --overwrite to "
                "replace an analysis in it"
            )

    def clear(self) -> None:
        """Remove the files of an older analysis, and only those."""
        old = self.structures.glob("state-*.pdb") if self.structures.is_dir() else ()
        for path in (self.report, self.summary, self.coordinates, *old):
            path.unlink(missing_ok=True)


def write_coordinates(path: Path, analysis: Analysis) -> None:
    """Write coordinates (f, k) and states (f,) of each trajectory: ``coordinates_0``, ``states_0`` ..."""
    arrays: dict[str, Any] = {"lag": analysis.lag}
    for name, values in (("coordinates", analysis.coordinates), ("states", analysis.states)):
        for k, part in enumerate(np.split(values, analysis.bounds[1:-1])):
            arrays[f"{name}_{k}"] = part

    def write(temporary: Path) -> None:
        # Through an open file, as numpy would append .npz to the temporary name.
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_with(path, write)


def summarize(analysis: Analysis, structures: Sequence[Path], seconds: float) -> dict[str, Any]:
    """The figures, for summary.json: times in frames, and in ps where it is known how long one is."""
    (vamp2, vamp2_spread), (vampe, vampe_spread) = analysis.score("vamp2"), analysis.score("vampe")
    slowest, error = analysis.slowest
    settings, clock, states = analysis.settings, analysis.clock, analysis.metastable
    return {
        "method": settings.method,
        "mixer": None if settings.method == "linear" else settings.mixer,
        "frames": analysis.bounds[-1],
        "trajectories": len(analysis.bounds) - 1,
        "frame_time_ps": clock.frame_time,
        "lag_frames": analysis.lag,
        "lag_ps": clock.picoseconds(analysis.lag),
        "score": {
            "convention": "the constant function counts 1",
            "vamp2_mean": vamp2,
            "vamp2_standard_deviation": vamp2_spread,
            "vampe_mean": vampe,
            "vampe_standard_deviation": vampe_spread,
            "vamp2_folds": [fold.vamp2 for fold in analysis.scores],
            "vampe_folds": [fold.vampe for fold in analysis.scores],
        },
        "slowest_timescale": {
            "frames": slowest,
            "standard_error_frames": error,
            "ps": clock.picoseconds(slowest),
            "standard_error_ps": clock.picoseconds(error),
        },
        "coordinate_timescales_frames": _numbers(analysis.coordinate_timescales),
        "implied_timescales": {
            "lags_frames": analysis.timescales.lags.tolist(),
            "frames": [_numbers(row) for row in analysis.timescales.values],
            "standard_errors_frames": [_numbers(row) for row in analysis.timescales.errors],
        },
        "clusters": {
            "connected": len(analysis.model.kept),
            "share_of_frames": analysis.model.share,
        },
        "states": {
            "populations": states.populations.tolist(),
            "standard_errors": states.population_errors.tolist(),
            "mean_first_passage_frames": states.passage.tolist(),
            "mean_first_passage_standard_errors_frames": states.passage_errors.tolist(),
        },
        "importance_percent": dict(
            zip(analysis.labels, map(float, analysis.importance), strict=True)
        ),
        "structures": [path.name for path in structures],
        "remarks": list(analysis.remarks),
        "settings": {key: getattr(settings, key) for key in settings.__dataclass_fields__},
        "seconds": seconds,
        "version": __version__,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """A list for JSON, which does not know NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]
