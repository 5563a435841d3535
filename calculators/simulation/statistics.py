"""Means and slopes of correlated series, with honest errors."""

from dataclasses import dataclass

import numpy as np

MIN_BLOCKS = 8
"""Fewer blocks than this say too little about the scatter of their means."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; the error is NaN where there are too few points."""

    value: float
    error: float


def block_average(values: np.ndarray) -> Estimate:
    """Mean of a correlated series, with the standard error from block averages.

    Neighbours are merged into blocks of 2, 4, 8 ... points; the error of the mean grows with the
    blocks until they are longer than the memory of the series. The largest one counts.

    Reference: H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989).

    Args:
        values: (f,), equally spaced in time.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return Estimate(float("nan"), float("nan"))
    # Means of numbers of the size of total energies lose digits: work with what varies.
    origin = values[0]
    blocks = values - origin
    mean = float(origin + blocks.mean())
    errors = [float("nan")]
    while len(blocks) >= MIN_BLOCKS:
        errors.append(float(blocks.std(ddof=1) / np.sqrt(len(blocks))))
        blocks = 0.5 * (blocks[: len(blocks) // 2 * 2 : 2] + blocks[1::2])
    return Estimate(mean, max(errors[1:], default=float("nan")))


def linear_drift(times: np.ndarray, values: np.ndarray) -> Estimate:
    """Slope of a straight line through a series, with its standard error.

    The error of least squares supposes independent residuals; those of a simulation have a memory,
    so it is multiplied by what the memory does to the error of their mean (:func:`block_average`).

    Args:
        times: (f,), equally spaced.
        values: (f,).

    Returns:
        Units of ``values`` per unit of ``times``; NaN for fewer than two points.
    """
    times = np.asarray(times, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float("nan"), float("nan"))
    values = values - values[0]
    centred = times - times.mean()
    spread = float(centred @ centred)
    slope = float(centred @ values) / spread
    residuals = values - values.mean() - slope * centred
    if len(values) < MIN_BLOCKS:
        return Estimate(slope, float("nan"))
    naive = float(np.sqrt(residuals @ residuals / (len(values) - 2)))
    memory: float = 1.0
    if naive > 0.0:
        alone = float(residuals.std(ddof=1) / np.sqrt(len(values)))
        memory = max(1.0, block_average(residuals).error / alone)
    return Estimate(slope, float(memory * naive / np.sqrt(spread)))
