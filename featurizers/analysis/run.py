"""From features to slow coordinates, states and a report: what ``analyze-trajectory`` does."""

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurizers.analysis.frames import Frames, evaluate, join
from featurizers.analysis.importance import token_importance
from featurizers.analysis.lagged import (
    Block,
    cross_validation,
    hold_out,
    inner_validation,
    whole_trajectories,
)
from featurizers.analysis.learning import TrainingOptions
from featurizers.analysis.markov import (
    MarkovModel,
    cluster,
    implied_timescales,
    markov_model,
    number_of_states,
)
from featurizers.analysis.metastable import (
    Metastable,
    chapman_kolmogorov,
    clusters_as_states,
    metastable_states,
)
from featurizers.analysis.methods import Recipe, cross_validate, fit_coordinates
from featurizers.analysis.progress import TRAINING_SHARE, Meter
from featurizers.analysis.results import Analysis, ResultFolder, summarize, write_coordinates
from featurizers.analysis.settings import AnalysisSettings
from featurizers.analysis.sources import (
    check_sources,
    read_back,
    representatives,
    write_structures,
)
from featurizers.analysis.times import Clock
from featurizers.store import FeatureSet
from forcefield.devices import check_device
from forcefield.display import make_display
from forcefield.errors import ConfigError, DataError
from forcefield.files import write_json, write_text

if TYPE_CHECKING:
    from mdtraj import Trajectory

PROCESSES = 5
"""Implied timescales shown."""

LAGS = 8
"""Lags at which implied timescales are estimated, besides that of the analysis."""


@dataclass(frozen=True)
class AnalysisResult:
    """What a call of :func:`analyze` leaves.

    Attributes:
        analysis: What was found.
        folder: Where the files are.
        summary: Contents of summary.json.
    """

    analysis: Analysis
    folder: ResultFolder
    summary: dict[str, Any]


def analyze(
    features: FeatureSet,
    settings: AnalysisSettings,
    out: str | Path,
    *,
    name: str = "the trajectories",
    overwrite: bool = False,
    show_progress: bool = False,
) -> AnalysisResult:
    """Find slow coordinates and metastable states, and write a report, figures and structures.

    Args:
        features: From :func:`featurizers.store.read_features`.
        settings: What to do.
        out: Folder that receives the files.
        name: Of the features, in the report.
        overwrite: Replace an older analysis.
        show_progress: Show what is being done, and the time left.

    Raises:
        ConfigError: The folder is not empty, or a setting does not fit the features.
        DataError: Too few frames for the lag, or features that are not finite or do not vary.
    """
    folder = ResultFolder(Path(out))
    folder.check_free(overwrite)
    start = time.monotonic()
    frames = join(features.trajectories)
    meter = Meter(make_display(10.0) if show_progress else None, settings.folds)
    try:
        analysis = _analyze(features, frames, settings, meter)
        meter.stage("structures", 0.97)
        analysis, structures = _look_back(features, frames, analysis)
        meter.stage("report", 0.98)
        from featurizers.analysis.report import analysis_report  # Loads matplotlib.

        folder.path.mkdir(parents=True, exist_ok=True)
        folder.clear()
        write_coordinates(folder.coordinates, analysis)
        files = write_structures(folder.structures, structures)
        summary = summarize(analysis, files, time.monotonic() - start)
        write_json(folder.summary, summary)
        write_text(folder.report, analysis_report(analysis, files, name))
        meter.stage("done", 1.0)
    finally:
        meter.close()
    return AnalysisResult(analysis, folder, summary)


def _analyze(
    features: FeatureSet, frames: Frames, settings: AnalysisSettings, meter: Meter
) -> Analysis:
    """Everything that needs the features alone."""
    check_device(settings.device)
    lag = settings.lag_frames(features.frame_time)
    clock = Clock(features.frame_time)
    blocks = whole_trajectories(frames.bounds)
    _check_motion(frames)
    _check_lag(blocks, lag, clock, settings)
    seconds = None
    if settings.minutes is not None:
        seconds = 60.0 * settings.minutes / (settings.folds + 1)
    recipe = Recipe(
        settings.method,
        settings.coordinates,
        lag,
        settings.mixer,
        training=TrainingOptions(
            epochs=settings.epochs, seconds=seconds, seed=settings.seed, device=settings.device
        ),
    )
    scores = cross_validate(frames, blocks, settings.folds, recipe, meter.fold)
    fit = fit_coordinates(frames, blocks, recipe, meter.last_fit)
    values = evaluate(fit.coordinates, frames)

    meter.stage("Markov models", TRAINING_SHARE)
    labels = fit.states
    if labels is not None and labels.max() == 0:
        raise DataError(
            f"spib found one state alone: at a lag of {clock.text(lag)} no other is stayed in. Choose a "
            "shorter lag"
        )
    if labels is None:
        labels = cluster(values, settings.clusters, settings.seed)
    trajectories = frames.cut(labels)
    model = markov_model(trajectories, lag, settings.seed)
    lags = _lags(lag, max(block.length for block in blocks))
    timescales = implied_timescales(trajectories, lags, PROCESSES, settings.seed)
    states = _states(model, settings)
    meter.stage("Chapman-Kolmogorov test", TRAINING_SHARE + 0.06)
    test = chapman_kolmogorov(model, trajectories, states, settings.seed)
    importance = token_importance(
        fit.coordinates, frames, blocks, lag, settings.seed, meter.importance
    )
    return Analysis(
        settings,
        lag,
        clock,
        frames.bounds,
        frames.labels,
        scores,
        fit.history,
        values,
        fit.coordinates.timescales,
        model,
        timescales,
        states,
        states.of_frames(model.clusters),
        test,
        importance,
        None,
        tuple(_remarks(model, states, settings, values.shape[1])),
    )


def _check_motion(frames: Frames) -> None:
    """Refuse features that are the same in all frames."""
    if not any(
        values.numel() and bool((values.amax(0) > values.amin(0)).any())
        for values in (frames.scalars, frames.vectors)
    ):
        raise DataError("the features are the same in all frames: there is no motion to analyse")


def _check_lag(
    blocks: tuple[Block, ...], lag: int, clock: Clock, settings: AnalysisSettings
) -> None:
    """Refuse lags for which there are no pairs, before anything takes time."""
    longest = max(block.length for block in blocks)
    if lag >= longest:
        raise ConfigError(
            f"the lag of {clock.text(lag)} is longer than the trajectories, of which the longest has "
            f"{longest} frames ({clock.text(longest)})"
        )
    splits = cross_validation(blocks, lag, settings.folds)
    # The training frames of each fold are divided again, for validation, and so are all in the end.
    for train in (*(split.train for split in splits), blocks):
        if settings.method == "linear":
            inner_validation(train, lag)
        else:
            hold_out(train, lag)


def _lags(lag: int, longest: int) -> list[int]:
    """Lags around that of the analysis, evenly spaced on a logarithmic scale, and it among them."""
    most = max(lag, min(10 * lag, longest // 4))
    spaced = np.geomspace(max(1, lag // 10), max(2, most), LAGS).round().astype(int)
    return sorted({lag, *(int(value) for value in spaced)})


def _states(model: MarkovModel, settings: AnalysisSettings) -> Metastable:
    if settings.method == "spib":
        return clusters_as_states(model)
    number = settings.states or number_of_states(model, settings.max_states)
    return metastable_states(model, number)


def _remarks(
    model: MarkovModel, states: Metastable, settings: AnalysisSettings, coordinates: int
) -> list[str]:
    """What should not be overlooked."""
    remarks = []
    if model.share < 1.0:
        remarks.append(
            f"{100 * (1 - model.share):.1f} % of the frames are in clusters that are not visited back "
            f"and forth with the others; the Markov models leave them out and keep {len(model.kept)} "
            "clusters. Longer trajectories or fewer clusters would connect them."
        )
    found = len(states.populations)
    if settings.states is not None and found < settings.states:
        remarks.append(
            f"{settings.states} states were asked for, and {found} were found: PCCA+ leaves some of more "
            "without any cluster."
        )
    if coordinates < settings.coordinates:
        remarks.append(
            f"{settings.coordinates} coordinates were asked for, and the features have only "
            f"{coordinates}."
        )
    return remarks


def _look_back(
    features: FeatureSet, frames: Frames, analysis: Analysis
) -> tuple[Analysis, list["Trajectory"]]:
    """What needs the trajectories again: dihedrals, and structures of each metastable state."""
    chosen = representatives(analysis.coordinates, analysis.states)
    try:
        check_sources(features)
        structures, dihedrals = read_back(features, frames, np.concatenate(chosen).tolist())
    except DataError as error:
        remark = f"No structures of the metastable states: {error}."
        return replace(analysis, remarks=(*analysis.remarks, remark)), []
    edges = np.cumsum([0, *map(len, chosen)])
    parts = [structures[a:b] for a, b in pairwise(edges)]
    return replace(analysis, dihedrals=dihedrals), parts
