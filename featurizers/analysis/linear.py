"""The linear baseline: slow coordinates as linear combinations of the scalar features.

Hundreds of channels are nearly linear combinations of one another, and TICA on all of them fits noise:
it is applied to their leading principal components, whose number is the one with the best VAMP-2 score
on held-out blocks of the training frames.

Shapes: frames ``f``, channels of all tokens ``n``, principal components ``m``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from featurizers.analysis.frames import Frames, evaluate
from featurizers.analysis.lagged import Block, Split, frames_of, inner_validation
from featurizers.analysis.scores import held_out_scores
from featurizers.analysis.slow import SlowCoordinates, slow_coordinates
from forcefield.errors import DataError

COMPONENTS = (10, 25, 50, 100, 200, 400)
"""Numbers of principal components tried."""

MAX_FRAMES, MAX_VALUES = 20_000, 50_000_000
"""Frames that principal components are taken from, and numbers in them, at most."""

MAX_CHANNELS = 3000
"""Channels up to which principal components are exact."""


class PrincipalComponents(nn.Module):
    """Leading principal components of the standardised scalars of all tokens.

    Args:
        mean: (n,).
        components: (n, m).
    """

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> Tensor:
        """Components (b, m) of scalars (b, t, c); vectors and positions are not looked at."""
        return (scalars.flatten(1) - self.mean) @ self.components


def principal_components(
    frames: Frames, blocks: Sequence[Block], most: int, seed: int
) -> PrincipalComponents:
    """Principal components of the correlation matrix of the scalars, the largest first.

    Args:
        frames: The features.
        blocks: Frames to take them from.
        most: Number of components, if there are so many.
        seed: For more than ``MAX_CHANNELS`` channels they are found by random projections.

    Raises:
        DataError: No scalar varies.
    """
    index = frames_of(blocks)
    most_frames = min(MAX_FRAMES, MAX_VALUES // frames.scalars[0].numel())
    index = index[:: max(1, len(index) // max(1, most_frames))]
    values = frames.scalars[index].flatten(1).double()
    spread, mean = torch.std_mean(values, dim=0)
    varies = spread > 1e-6 * spread.max()
    if not varies.any():
        raise DataError("the features are the same in all frames: there is no motion to analyse")
    values = (values - mean)[:, varies] / spread[varies]
    if values.shape[1] <= MAX_CHANNELS:
        variances, axes = torch.linalg.eigh(values.T @ values / len(values))
        kept = int((variances > 1e-6 * variances[-1]).sum())
        axes = axes.flip(1)[:, : min(most, kept)]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            axes = torch.pca_lowrank(values, min(most, *values.shape), center=False, niter=2)[2]
    components = mean.new_zeros(len(mean), axes.shape[1])
    components[varies] = axes / spread[varies, None]
    return PrincipalComponents(mean.float(), components.float())


def fit_linear(
    frames: Frames, blocks: Sequence[Block], lag: int, dimension: int, seed: int = 0
) -> SlowCoordinates:
    """TICA on principal components of the scalars.

    Args:
        frames: The features.
        blocks: Frames to learn from.
        lag: Frames.
        dimension: Number of coordinates.
        seed: See :func:`principal_components`.

    Raises:
        DataError: No scalar varies, or there are too few frames.
    """
    splits = inner_validation(blocks, lag)
    network = principal_components(frames, blocks, COMPONENTS[-1], seed)
    outputs = evaluate(network, frames)
    best, highest = 0, -np.inf
    for number in [m for m in COMPONENTS if m < outputs.shape[1]] + [outputs.shape[1]]:
        score = _score(outputs[:, :number], splits, lag, dimension)
        if score < highest:
            break  # More components only fit more noise, and take longer.
        best, highest = number, score
    network = PrincipalComponents(network.mean, network.components[:, :best].clone())
    return slow_coordinates(network, outputs[:, :best], blocks, lag, dimension)


def _score(outputs: np.ndarray, splits: list[Split], lag: int, dimension: int) -> float:
    """Mean VAMP-2 score, on held-out blocks, of TICA with these components."""
    values = []
    for split in splits:
        model = slow_coordinates(nn.Identity(), outputs, split.train, lag, dimension)
        values.append(held_out_scores(model.project(outputs), split, lag).vamp2)
    return float(np.mean(values))
