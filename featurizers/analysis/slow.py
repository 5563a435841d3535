"""Slow coordinates: what a network makes of a frame, turned so that the slowest motion comes first.

TICA (deeptime) finds the linear combinations of the outputs with the largest autocorrelations λ at the
lag, under the assumption of reversible dynamics in equilibrium; their relaxation times are
t = -lag / ln λ. They are uncorrelated and have a variance of 1.

Shapes: frames ``f``, outputs of the network ``n``, coordinates ``k``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from featurizers.analysis.frames import device_of
from featurizers.analysis.lagged import Block, lagged_pairs
from featurizers.analysis.scores import EPSILON, covariances
from forcefield.errors import DataError


class SlowCoordinates(nn.Module):
    """A network and the linear map to slow coordinates, slowest first.

    Args:
        network: Takes scalars, vectors and positions of frames, gives n outputs.
        mean: Of the outputs, (n,).
        projection: (n, k).
        eigenvalues: Autocorrelations of the coordinates at the lag, (k,).
        lag: Frames.
    """

    mean: Tensor
    projection: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: np.ndarray,
        projection: np.ndarray,
        eigenvalues: np.ndarray,
        lag: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.eigenvalues = eigenvalues
        self.lag = lag
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("projection", torch.as_tensor(projection, dtype=torch.float64))

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> Tensor:
        """Coordinates (b, k), float64, of scalars (b, t, c), vectors (b, t, 3, cv), positions (b, t, 3)."""
        outputs = self.network(scalars, vectors, positions).double()
        return (outputs - self.mean) @ self.projection

    def project(self, outputs: np.ndarray) -> np.ndarray:
        """Coordinates (f, k) of the network's outputs (f, n)."""
        return (outputs - self.mean.cpu().numpy()) @ self.projection.cpu().numpy()

    @property
    def timescales(self) -> np.ndarray:
        """Relaxation times in frames, (k,); NaN where the autocorrelation is not positive."""
        positive = np.where(self.eigenvalues > 0, self.eigenvalues, np.nan)
        with np.errstate(divide="ignore"):
            return -self.lag / np.log(np.minimum(positive, 1.0))


def slow_coordinates(
    network: nn.Module, outputs: np.ndarray, blocks: Sequence[Block], lag: int, dimension: int
) -> SlowCoordinates:
    """Find the slow directions of a network's outputs.

    Signs are chosen so that the rarer side of a coordinate is the positive one.

    Args:
        network: The network.
        outputs: What it makes of all frames, (f, n).
        blocks: Frames to estimate the directions from.
        lag: Frames.
        dimension: Coordinates wanted; there are fewer if the outputs have no more directions.

    Raises:
        DataError: No output varies.
    """
    from deeptime.decomposition import TICA

    first = lagged_pairs(blocks, lag)
    values = outputs.astype(np.float64)
    mean, spread = values[first].mean(axis=0), values[first].std(axis=0)
    varies = spread > 1e-9 * (1.0 + np.abs(mean))
    if not varies.any():
        raise DataError("the features are the same in all frames: there is no motion to analyse")
    scaled = (values[:, varies] - mean[varies]) / spread[varies]
    tica = TICA(dim=dimension, epsilon=EPSILON, scaling=None)
    model = tica.fit(covariances(scaled, blocks, lag, reversible=True)).fetch_model()
    # Sorted by size in deeptime; a negative autocorrelation is no slow motion.
    order = np.argsort(-model.singular_values)[:dimension]
    directions = model.instantaneous_coefficients[:, order]
    center = model.mean_0
    coordinates = (scaled[first] - center) @ directions
    directions = directions * np.where((coordinates**3).mean(axis=0) < 0, -1.0, 1.0)

    projection = np.zeros((values.shape[1], directions.shape[1]))
    projection[varies] = directions / spread[varies, None]
    mean[varies] += center * spread[varies]
    found = SlowCoordinates(network, mean, projection, model.singular_values[order], lag)
    return found.to(device_of(network))
