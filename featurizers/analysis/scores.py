"""How much of the slow motion coordinates hold: VAMP-2 and VAMP-E on frames they were not made from.

The Koopman operator of the dynamics at a lag has singular values 1 = s_0 ≥ s_1 ≥ ...; for dynamics in
equilibrium they are exp(-lag / t_i) with the relaxation times t_i. Of k coordinates the model of VAMP
estimates s_1, ..., s_k and their singular functions from training frames. With covariances C of the test
frames, U and V the coefficients of the singular functions and S = diag(s),

    VAMP-2 = 1 + ‖(U'C₀₀U)^-½ U'C₀₁V (V'C₁₁V)^-½‖²
    VAMP-E = 1 + tr(2 S U'C₀₁V - S U'C₀₀U S V'C₁₁V)

(H. Wu, F. Noé, J. Nonlinear Sci. 30, 23 (2020), equations 33 and 30.)

The 1 belongs to the constant function, as in deeptime, whose functions compute both: coordinates that
tell nothing about the future have a score of 1, and k coordinates never have more than 1 + k. Means are
taken from the frames that a covariance is taken from.

No k functions score more than the first k singular functions of the operator, but for the noise of the
test frames. VAMP-E counts errors of the estimated singular values too, and is lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurizers.analysis.lagged import Block, Split, lagged_pairs

if TYPE_CHECKING:
    from deeptime.covariance import CovarianceModel

EPSILON = 1e-6
"""Directions with less than this share of the variance of a coordinate are left out."""


@dataclass(frozen=True)
class Scores:
    """Scores of coordinates, the constant function counted.

    Attributes:
        vamp2: VAMP-2.
        vampe: VAMP-E.
    """

    vamp2: float
    vampe: float


def held_out_scores(coordinates: np.ndarray, split: Split, lag: int) -> Scores:
    """Estimate singular functions of coordinates on training frames, score them on test frames.

    Args:
        coordinates: Of all frames, (f, k).
        split: Division of the frames.
        lag: Frames.
    """
    return _scores(coordinates, split.train, split.test, lag)


def scores(coordinates: np.ndarray, blocks: Sequence[Block], lag: int) -> Scores:
    """Scores of coordinates (f, k) on the frames that the singular functions are estimated from."""
    return _scores(coordinates, blocks, blocks, lag)


def _scores(
    coordinates: np.ndarray, train: Sequence[Block], test: Sequence[Block], lag: int
) -> Scores:
    from deeptime.decomposition import VAMP
    from deeptime.decomposition import vamp_score as score
    from deeptime.numeric import ZeroRankError

    values = coordinates.reshape(len(coordinates), -1).astype(np.float64)
    spread = values[lagged_pairs(train, lag)].std(axis=0)
    # What does not vary on the training frames has no singular function; without anything that does
    # the constant function alone is left.
    values = values[:, spread > 0] / spread[spread > 0]
    if not values.shape[1]:
        return Scores(1.0, 1.0)
    model = VAMP(epsilon=EPSILON).fit(covariances(values, train, lag)).fetch_model()
    dimension = model.output_dimension
    measured = covariances(values, test, lag)
    try:
        vamp2, vampe = (
            float(score(model, kind, measured, dimension, EPSILON)) for kind in ("VAMP2", "VAMPE")
        )
    except ZeroRankError:  # The only coordinate does not vary on the test frames.
        return Scores(1.0, 1.0)
    return Scores(vamp2, vampe)


def covariances(
    values: np.ndarray, blocks: Sequence[Block], lag: int, reversible: bool = False
) -> "CovarianceModel":
    """Covariances C₀₀, C₀₁, C₁₁ of values (f, k) over the pairs of the blocks.

    Args:
        values: Of all frames.
        blocks: Frames that count.
        lag: Frames.
        reversible: Whether to count every pair in both directions, as TICA does.
    """
    from deeptime.decomposition import TICA, VAMP

    first = lagged_pairs(blocks, lag)
    estimator = (TICA if reversible else VAMP).covariance_estimator(lagtime=lag)
    # fit() would take the two arrays for two trajectories and make pairs within each.
    return estimator.partial_fit((values[first], values[first + lag])).fetch_model()
