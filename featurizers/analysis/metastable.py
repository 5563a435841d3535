"""Metastable states of a Markov model: populations, passage times, and whether the model keeps its word.

Errors are standard deviations over samples of the model's posterior.

Shapes: frames ``f``, clusters ``n``, lags ``l``, metastable states ``s``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurizers.analysis.markov import MarkovModel, count_transitions, sample_posterior
from forcefield.errors import DataError


@dataclass(frozen=True)
class Metastable:
    """Metastable states of a Markov model, the most populated first.

    Attributes:
        of_cluster: State of each cluster, (n,).
        populations: (s,).
        population_errors: (s,).
        passage: Mean first passage times from state to state, frames, (s, s), 0 on the diagonal.
        passage_errors: (s, s).
    """

    of_cluster: np.ndarray
    populations: np.ndarray
    population_errors: np.ndarray
    passage: np.ndarray
    passage_errors: np.ndarray

    def of_frames(self, clusters: np.ndarray) -> np.ndarray:
        """States of frames by their clusters (f,), -1 where that is -1."""
        return np.where(clusters >= 0, self.of_cluster[clusters], -1)


@dataclass(frozen=True)
class ChapmanKolmogorov:
    """Probabilities of staying in a metastable state, predicted and observed.

    Attributes:
        lags: Frames, (l,), beginning with 0.
        predicted: By powers of the model, (l, s).
        predicted_errors: (l, s).
        observed: By models of longer lags, (l, s).
    """

    lags: np.ndarray
    predicted: np.ndarray
    predicted_errors: np.ndarray
    observed: np.ndarray


def metastable_states(model: MarkovModel, number: int) -> Metastable:
    """Metastable states by PCCA+ (S. Röblitz, M. Weber, Adv. Data Anal. Classif. 7, 147 (2013)).

    Each cluster belongs to the state in which its membership is largest. There are fewer states where
    one would get no cluster.
    """
    prior = model.posterior.prior
    for tried in range(min(number, prior.n_states), 1, -1):
        of_cluster = prior.pcca(tried).assignments
        if len(np.unique(of_cluster)) == tried:
            return _metastable(model, of_cluster)
    return _metastable(model, np.zeros(prior.n_states, dtype=np.int64))


def clusters_as_states(model: MarkovModel) -> Metastable:
    """Each cluster as a metastable state, for clusters that are states already."""
    return _metastable(model, np.arange(len(model.kept)))


def chapman_kolmogorov(
    model: MarkovModel,
    trajectories: Sequence[np.ndarray],
    states: Metastable,
    seed: int,
    multiples: Sequence[int] = (1, 2, 3, 4, 5),
) -> ChapmanKolmogorov:
    """Compare powers of the model with models of longer lags.

    Args:
        model: What is tested.
        trajectories: As for :func:`markov_model`.
        states: Metastable states of the model.
        seed: Of the samples.
        multiples: Of the lag; those without enough transitions are left out.
    """
    from deeptime.markov._observables import MembershipsObservable
    from deeptime.util.validation import ck_test

    models = []
    for multiple in multiples:
        try:
            counts = count_transitions(trajectories, multiple * model.lag, model.kept)
            models.append(sample_posterior(counts, seed, samples=2))
        except DataError:
            break
    memberships = np.eye(states.of_cluster.max() + 1)[states.of_cluster]
    observable = MembershipsObservable(model.posterior, memberships)
    test = ck_test(models, observable, test_model=model.posterior)
    diagonal = np.arange(memberships.shape[1])
    predicted, observed = (
        np.asarray(values)[:, diagonal, diagonal].real
        for values in (test.predictions, test.estimates)
    )
    samples = np.asarray(test.predictions_samples)[:, :, diagonal, diagonal].real
    return ChapmanKolmogorov(np.asarray(test.lagtimes), predicted, samples.std(axis=1), observed)


def _metastable(model: MarkovModel, of_cluster: np.ndarray) -> Metastable:
    """Populations and passage times of states, which are numbered by population."""
    models = (model.posterior.prior, *model.posterior.samples)
    populations = np.stack([np.bincount(of_cluster, m.stationary_distribution) for m in models])
    order = np.argsort(-populations[0], kind="stable")
    of_cluster = np.argsort(order)[of_cluster]
    passage = np.stack([_passage_times(m, of_cluster) for m in models])
    return Metastable(
        of_cluster,
        populations[0, order],
        populations[1:, order].std(axis=0),
        passage[0],
        passage[1:].std(axis=0),
    )


def _passage_times(model: Any, of_cluster: np.ndarray) -> np.ndarray:
    """Mean first passage times between states, frames, (s, s)."""
    sets = [np.flatnonzero(of_cluster == state) for state in range(of_cluster.max() + 1)]
    times = np.zeros((len(sets), len(sets)))
    for a, start in enumerate(sets):
        for b, target in enumerate(sets):
            if a != b:
                times[a, b] = model.mfpt(start, target)
    return times
