"""Markov models of clustered coordinates, with deeptime: counts, samples, implied timescales.

Transitions are counted at the lag within trajectories. For the posterior of transition matrices, which the
errors come from, counts are effective ones (uncorrelated transitions): deeptime's
``TransitionCountEstimator`` says how. Models are reversible. Errors are standard deviations over samples
of the posterior; they know of the finite number of transitions, and nothing of clusters that are too
large or of regions that were not visited.

Shapes: frames ``f``, clusters ``n``, lags ``l``, processes ``p``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forcefield.errors import DataError

if TYPE_CHECKING:
    from deeptime.markov import BayesianMSMPosterior

SAMPLES = 50
"""Transition matrices drawn from the posterior."""


@dataclass(frozen=True)
class MarkovModel:
    """A Markov model with samples of its posterior, on the largest set of connected clusters.

    Attributes:
        posterior: From deeptime; its states are the clusters of ``kept``.
        lag: Frames.
        kept: Connected clusters, ascending, (n,).
        clusters: Clusters of frames (f,), counted in ``kept``, -1 for those not connected.
    """

    posterior: "BayesianMSMPosterior"
    lag: int
    kept: np.ndarray
    clusters: np.ndarray

    @property
    def share(self) -> float:
        """Share of the frames that are in connected clusters."""
        return float((self.clusters >= 0).mean())

    @property
    def stationary(self) -> np.ndarray:
        """Stationary probability of each cluster, (n,)."""
        return self.posterior.prior.stationary_distribution

    def weights(self) -> np.ndarray:
        """Weight of each frame in equilibrium, (f,): that of its cluster, shared among its frames."""
        inside = self.clusters >= 0
        number = np.bincount(self.clusters[inside], minlength=len(self.kept))
        weights = np.zeros(len(self.clusters))
        weights[inside] = (self.stationary / number)[self.clusters[inside]]
        return weights


@dataclass(frozen=True)
class Timescales:
    """Implied timescales over lags, in frames.

    Attributes:
        lags: (l,).
        values: (l, p), the slowest first; NaN where a model has no such process.
        errors: (l, p).
    """

    lags: np.ndarray
    values: np.ndarray
    errors: np.ndarray


def cluster(
    coordinates: np.ndarray, number: int, seed: int, train: np.ndarray | None = None
) -> np.ndarray:
    """k-means clusters (f,) of coordinates (f, k).

    Args:
        coordinates: Coordinates of equal importance.
        number: Number of clusters; no more than a tenth of the frames.
        seed: Of the first centres.
        train: Frames that centres are made from; None for all.
    """
    from deeptime.clustering import KMeans

    values = coordinates if train is None else coordinates[train]
    number = max(2, min(number, len(values) // 10))
    # One thread: with more the result depends on which is faster.
    model = KMeans(number, max_iter=200, fixed_seed=int(seed), n_jobs=1).fit_fetch(values)
    return model.transform(coordinates, n_jobs=1).astype(np.int64)


def markov_model(
    trajectories: Sequence[np.ndarray], lag: int, seed: int, samples: int = SAMPLES
) -> MarkovModel:
    """Estimate a Markov model.

    Args:
        trajectories: Cluster of every frame, an array for each trajectory.
        lag: Frames.
        seed: Of the samples.
        samples: Number of transition matrices drawn.

    Raises:
        DataError: No trajectory is longer than the lag, or no two clusters are connected.
    """
    posterior = sample_posterior(count_transitions(trajectories, lag), seed, samples)
    kept = posterior.prior.count_model.state_symbols
    numbers = np.full(1 + max(int(t.max(initial=0)) for t in trajectories), -1)
    numbers[kept] = np.arange(len(kept))
    return MarkovModel(posterior, lag, kept, numbers[np.concatenate(trajectories)])


def implied_timescales(
    trajectories: Sequence[np.ndarray], lags: Sequence[int], processes: int, seed: int
) -> Timescales:
    """Relaxation times of Markov models of several lags; lags without transitions are left out."""
    rows = []
    for lag in lags:
        try:
            rows.append((lag, *_timescales(markov_model(trajectories, lag, seed), processes)))
        except DataError:
            continue
    found, values, errors = zip(*rows, strict=True)
    known = np.isfinite(values).any(axis=0)
    return Timescales(np.array(found), np.stack(values)[:, known], np.stack(errors)[:, known])


def _timescales(model: MarkovModel, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Timescales of a model and their errors, NaN for processes that it does not have, (p,) each."""
    values, errors = np.full((2, processes), np.nan)
    number = min(processes, len(model.kept) - 1)
    values[:number] = model.posterior.prior.timescales(number)
    samples = np.stack([sample.timescales(number) for sample in model.posterior.samples])
    errors[:number] = samples.std(axis=0)
    return values, errors


def number_of_states(model: MarkovModel, most: int) -> int:
    """Number of metastable states by the spectral gap.

    The gap is that between neighbouring eigenvalues of the transition matrix, 1 = λ_1 > λ_2 > ...: of 2 to
    ``most`` states the number m with the largest λ_m - λ_(m+1).
    """
    number = min(most + 1, len(model.kept))
    eigenvalues = np.sort(model.posterior.prior.eigenvalues(number).real)[::-1]
    # Models of fewer clusters have no further eigenvalues, as if these were 0.
    eigenvalues = np.append(eigenvalues, np.zeros(most + 1 - number))
    return 2 + int((eigenvalues[1:-1] - eigenvalues[2:]).argmax())


def count_transitions(
    trajectories: Sequence[np.ndarray], lag: int, within: np.ndarray | None = None
) -> Any:
    """Effective counts on the largest set of connected clusters, all of them in ``within``."""
    from deeptime.markov import TransitionCountEstimator

    long = [np.ascontiguousarray(t, dtype=np.int32) for t in trajectories if len(t) > lag]
    if not long:
        longest = max(map(len, trajectories))
        raise DataError(
            f"a lag of {lag} frames is too long for trajectories of at most {longest} frames"
        )
    states = 1 + max(int(t.max(initial=0)) for t in trajectories)
    counts = (
        TransitionCountEstimator(lag, "effective", n_states=states)
        .fit(long, n_jobs=1)
        .fetch_model()
    )
    if within is not None:
        counts = counts.submodel(within)
    counts = counts.submodel_largest()
    if counts.n_states < 2:
        raise DataError(
            f"no two clusters are visited back and forth at a lag of {lag} frames: the trajectories are "
            "too short for a Markov model, or there are too many clusters"
        )
    return counts


def sample_posterior(counts: Any, seed: int, samples: int) -> "BayesianMSMPosterior":
    """Maximum-likelihood model and samples of its posterior.

    What deeptime's ``BayesianMSM`` does, which has no seed.
    """
    from deeptime.markov import BayesianMSMPosterior
    from deeptime.markov.msm import MarkovStateModel, MaximumLikelihoodMSM
    from deeptime.markov.tools.estimation.dense.tmat_sampling.sampler_rev import SamplerRev

    prior = MaximumLikelihoodMSM(reversible=True).fit(counts).fetch_model()
    sampler = SamplerRev(counts.count_matrix, P0=prior.transition_matrix, seed=int(seed))
    steps = max(1, int(np.sqrt(counts.n_states_full)))
    drawn = [sampler.sample(steps, return_statdist=True) for _ in range(samples)]
    models = [
        MarkovStateModel(matrix, stationary_distribution=p, reversible=True, count_model=counts)
        for matrix, p in drawn
    ]
    return BayesianMSMPosterior(prior=prior, samples=models)
