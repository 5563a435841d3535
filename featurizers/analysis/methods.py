"""The ways to slow coordinates, behind one function, and their cross-validation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch

from featurizers.analysis.frames import Frames, evaluate
from featurizers.analysis.lagged import Block, cross_validation, frames_of
from featurizers.analysis.learning import Epoch, Report, TrainingOptions
from featurizers.analysis.linear import fit_linear
from featurizers.analysis.markov import cluster
from featurizers.analysis.scores import Scores, held_out_scores
from featurizers.analysis.slow import SlowCoordinates, slow_coordinates
from featurizers.analysis.spib import Spib, train_spib
from featurizers.analysis.vampnet import train_vampnet
from featurizers.mixers import MixerNetwork, build_network

Method = Literal["linear", "vampnet", "spib"]

SPARE_OUTPUTS = 2
"""Outputs of a VAMPNet beyond the coordinates wanted. Without spare ones networks are found more often
that have missed one of the slow motions and do not get away from there."""

INITIAL_STATES = 20
"""Clusters of the linear slow coordinates that SPIB starts from."""


@dataclass(frozen=True)
class Recipe:
    """How slow coordinates are made.

    Attributes:
        method: "linear", "vampnet" or "spib".
        dimension: Number of coordinates.
        lag: Frames.
        mixer: Network of "vampnet" and "spib", a name of :data:`featurizers.mixers.MIXERS`.
        width: Its width.
        layers: Its layers.
        training: How long it is trained, and the seed of everything random.
    """

    method: Method
    dimension: int
    lag: int
    mixer: str = "mlp"
    width: int = 64
    layers: int = 2
    training: TrainingOptions = field(default_factory=TrainingOptions)


@dataclass(frozen=True)
class Fit:
    """Slow coordinates that were found.

    Attributes:
        coordinates: From features to coordinates.
        states: State of every frame from SPIB, (f,); None for other methods.
        history: Course of the training, empty for "linear".
    """

    coordinates: SlowCoordinates
    states: np.ndarray | None
    history: list[Epoch]


def fit_coordinates(
    frames: Frames, blocks: Sequence[Block], recipe: Recipe, report: Report | None = None
) -> Fit:
    """Find slow coordinates.

    Args:
        frames: The features.
        blocks: Frames to learn from.
        recipe: How.
        report: Told about the course.

    Raises:
        ConfigError: The mixer is unknown, or cannot be built with this width.
        DataError: There are too few frames, or nothing moves.
    """
    lag, dimension, options = recipe.lag, recipe.dimension, recipe.training
    if recipe.method == "linear":
        return Fit(fit_linear(frames, blocks, lag, dimension, options.seed), None, [])
    if recipe.method == "vampnet":
        network = _build(frames, recipe, dimension + SPARE_OUTPUTS)
        history = train_vampnet(network, frames, blocks, lag, dimension, options, report=report)
        model = slow_coordinates(network, evaluate(network, frames), blocks, lag, dimension)
        return Fit(model, None, history)
    labels = _clusters(frames, blocks, recipe)
    with _seeded(options.seed):
        spib = Spib(_build(frames, recipe, 2 * dimension), dimension, int(labels.max()) + 1)
    result = train_spib(spib, frames, labels, blocks, lag, options, report)
    model = slow_coordinates(spib, evaluate(spib, frames), blocks, lag, dimension)
    return Fit(model, result.states, result.history)


def cross_validate(
    frames: Frames,
    blocks: Sequence[Block],
    folds: int,
    recipe: Recipe,
    report: Callable[[int, float, str], None] | None = None,
) -> list[Scores]:
    """Find slow coordinates on the training frames of each fold, score them on its test frames.

    Args:
        frames: The features.
        blocks: All frames.
        folds: See :func:`~featurizers.analysis.lagged.cross_validation`.
        recipe: How coordinates are found.
        report: Told the fold, the share of its training that is done, and how it goes.
    """
    results = []
    for k, split in enumerate(cross_validation(blocks, recipe.lag, folds)):
        told = None if report is None else partial(report, k)
        fit = fit_coordinates(frames, split.train, recipe, told)
        results.append(held_out_scores(evaluate(fit.coordinates, frames), split, recipe.lag))
        if told is not None:
            told(1.0, f"VAMP-2 {results[-1].vamp2:.3f}")
    return results


def _build(frames: Frames, recipe: Recipe, outputs: int) -> MixerNetwork:
    with _seeded(recipe.training.seed):
        return build_network(
            recipe.mixer,
            frames.scalars.shape[2],
            frames.vectors.shape[3],
            frames.scalars.shape[1],
            outputs,
            width=recipe.width,
            layers=recipe.layers,
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed inside a block; those outside stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _clusters(frames: Frames, blocks: Sequence[Block], recipe: Recipe) -> np.ndarray:
    """Clusters of the linear slow coordinates, made from the frames to learn from, (f,)."""
    seed = recipe.training.seed
    linear = fit_linear(frames, blocks, recipe.lag, recipe.dimension, seed)
    values = evaluate(linear, frames)
    return cluster(values, INITIAL_STATES, seed, frames_of(blocks))
