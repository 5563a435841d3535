"""Slow coordinates and Markov models on processes whose timescales and scores are known exactly."""

from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from featurizers.analysis import AnalysisSettings, linear
from featurizers.analysis.frames import Frames, evaluate, join
from featurizers.analysis.importance import token_importance
from featurizers.analysis.lagged import (
    Block,
    cross_validation,
    frames_of,
    hold_out,
    lagged_pairs,
    whole_trajectories,
)
from featurizers.analysis.learning import TrainingOptions
from featurizers.analysis.linear import fit_linear
from featurizers.analysis.markov import (
    cluster,
    implied_timescales,
    markov_model,
    number_of_states,
)
from featurizers.analysis.metastable import (
    chapman_kolmogorov,
    clusters_as_states,
    metastable_states,
)
from featurizers.analysis.methods import Recipe, cross_validate, fit_coordinates
from featurizers.analysis.scores import held_out_scores, scores
from featurizers.analysis.slow import slow_coordinates
from featurizers.analysis.spib import BETA, Spib, train_spib
from featurizers.analysis.times import Clock
from featurizers.analysis.vampnet import train_vampnet
from featurizers.features import TrajectoryFeatures
from featurizers.mixers import build_network
from forcefield.errors import ConfigError, DataError

pytest.importorskip("deeptime")

CHAIN = np.array([[0.98, 0.02, 0.0], [0.01, 0.98, 0.01], [0.0, 0.03, 0.97]])
"""A reversible chain of three states."""
STATIONARY = np.array([3.0, 6.0, 2.0]) / 11.0
SWITCH = np.array([[0.98, 0.02], [0.02, 0.98]])
LAG = 2


def walk(matrix: np.ndarray, frames: int, seed: int) -> np.ndarray:
    """States of a Markov chain."""
    random = np.random.default_rng(seed)
    cumulative = [np.cumsum(row)[:-1].tolist() for row in matrix]
    states = [seed % len(matrix)]
    for number in random.random(frames - 1).tolist():
        states.append(bisect_right(cumulative[states[-1]], number))
    return np.array(states)


def walks(matrix: np.ndarray, trajectories: int, frames: int, seed: int = 0) -> list[np.ndarray]:
    return [walk(matrix, frames, seed + k) for k in range(trajectories)]


def exact_score(matrix: np.ndarray, lag: int) -> float:
    """VAMP-2 of the whole chain in equilibrium: eigenvalues of a reversible chain are singular values."""
    return float((np.linalg.eigvals(matrix).real ** (2 * lag)).sum())


def exact_timescales(matrix: np.ndarray) -> np.ndarray:
    return -1.0 / np.log(np.sort(np.linalg.eigvals(matrix).real)[::-1][1:])


def features(scalars: np.ndarray, vectors: np.ndarray | None = None) -> TrajectoryFeatures:
    frames, tokens = scalars.shape[:2]
    if vectors is None:
        vectors = np.zeros((frames, tokens, 3, 0))
    labels = tuple("ABCDEFGH"[:tokens])
    arrays = (scalars, vectors, np.zeros((frames, tokens, 3)))
    return TrajectoryFeatures(*(values.astype(np.float32) for values in arrays), labels)


def hidden_in_a_product(states: np.ndarray, seed: int) -> TrajectoryFeatures:
    """Token A is a random sign, token B the same times the sign of the state, token C is noise.

    No linear combination tells anything about the state: each is a random sign.
    """
    random = np.random.default_rng(seed)
    sign = random.choice([-1.0, 1.0], len(states))
    scalars = np.stack([sign, sign * (2.0 * states - 1.0), np.zeros(len(states))], axis=1)
    return features((scalars + 0.2 * random.normal(size=scalars.shape))[..., None])


def hidden_in_directions(states: np.ndarray, seed: int) -> TrajectoryFeatures:
    """Two vectors that are parallel or antiparallel, in frames that are turned at random."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=(len(states), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = np.stack([direction, (2.0 * states - 1.0)[:, None] * direction], axis=1)[..., None]
    scalars = random.normal(size=(len(states), 2, 1))
    return features(scalars, vectors + 0.1 * random.normal(size=vectors.shape))


def in_the_open(states: np.ndarray, seed: int) -> TrajectoryFeatures:
    """Hundreds of collinear channels that are linear in the state, and noise."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(3, 300))
    values = np.eye(3)[states] @ mixing + 0.3 * random.normal(size=(len(states), 5)) @ (
        np.random.default_rng(98).normal(size=(5, 300))
    )
    return features((values + 1e-4 * random.normal(size=values.shape)).reshape(-1, 3, 100))


def joined(kind, states: list[np.ndarray]) -> Frames:
    return join([kind(s, 100 + k) for k, s in enumerate(states)])


# Pairs and splits.


def test_pairs_stay_within_trajectories():
    blocks = whole_trajectories((0, 50, 50, 53, 100))
    assert blocks == (Block(0, 50), Block(50, 53), Block(53, 100))
    first = lagged_pairs(blocks, 5)
    trajectory = np.repeat([0, 1, 2], [50, 3, 47])
    assert np.array_equal(trajectory[first], trajectory[first + 5])
    assert len(first) == 45 + 42
    assert len(np.unique(first)) == len(first)


def test_whole_trajectories_are_folds_of_equal_size():
    bounds = (0, 100, 400, 500, 600, 700, 1000)
    splits = cross_validation(whole_trajectories(bounds), 5, 3)
    assert sorted(block for split in splits for block in split.test) == list(
        whole_trajectories(bounds)
    )
    for split in splits:
        assert sorted((*split.train, *split.test)) == list(whole_trajectories(bounds))
        assert 300 <= len(frames_of(split.test)) <= 400


@pytest.mark.parametrize("lengths", [(1000,), (500, 800), (301, 999, 400), (1, 1000), (900, 2)])
@pytest.mark.parametrize("lag", [1, 7, 20])
def test_blocks_in_time_are_further_apart_than_the_lag(lengths, lag):
    """No shuffled frames: a test frame has no training frame of its trajectory within the lag."""
    bounds = tuple(np.cumsum([0, *lengths]).tolist())
    trajectory = np.repeat(np.arange(len(lengths)), lengths)
    splits = cross_validation(whole_trajectories(bounds), lag, 4)
    tested = np.concatenate([frames_of(split.test) for split in splits])
    assert np.array_equal(np.sort(tested), np.arange(bounds[-1]))
    for split in splits:
        for one in (split, hold_out(split.train, lag)):
            train, test = frames_of(one.train), frames_of(one.test)
            for k in range(len(lengths)):
                a, b = train[trajectory[train] == k], test[trajectory[test] == k]
                if len(a) and len(b):
                    assert np.abs(a[:, None] - b[None, :]).min() > lag
            for block in (*one.train, *one.test):
                assert trajectory[block.start] == trajectory[block.stop - 1]
            # Contiguous: all that is cut off is at the edges of blocks.
            assert len(one.train) <= 3 * len(lengths) * 2
        inner = hold_out(split.train, lag)
        assert not set(frames_of((*inner.train, *inner.test))) & set(frames_of(split.test))


def test_a_lag_without_pairs_is_refused():
    with pytest.raises(DataError, match="choose a shorter lag"):
        cross_validation(whole_trajectories((0, 100, 200)), 60, 4)


def test_a_lag_too_long_for_the_validation_within_a_fold_is_told_as_that():
    split = cross_validation(whole_trajectories((0, 1001)), 100, 4)[1]
    sentence = "into 5 parts, one of them for validation: .* a shorter lag, longer traj.*, or fewer"
    with pytest.raises(DataError, match=sentence):
        hold_out(split.train, 100)


def test_features_that_are_not_finite_are_found():
    good = features(np.zeros((10, 2, 1)))
    bad = features(np.zeros((10, 2, 1)))
    bad.scalars[3, 1, 0] = np.nan
    with pytest.raises(DataError, match="trajectory 1, frame 3"):
        join([good, bad])
    with pytest.raises(DataError, match="different tokens"):
        join([good, features(np.zeros((10, 3, 1)))])
    with pytest.raises(DataError, match="no frames"):
        join([])


def test_frames_know_where_they_come_from():
    frames = join([features(np.zeros((n, 1, 1))) for n in (3, 0, 4)])
    assert [frames.origin(k) for k in (0, 2, 3, 6)] == [(0, 0), (0, 2), (2, 0), (2, 3)]
    assert [len(part) for part in frames.cut(np.zeros(7))] == [3, 0, 4]


# Scores.


def formula(x: np.ndarray, split, lag: int) -> tuple[float, float]:
    """Held-out VAMP-2 and VAMP-E written down once more, with numpy alone."""

    def moments(blocks):
        i = lagged_pairs(blocks, lag)
        a, b = x[i] - x[i].mean(axis=0), x[i + lag] - x[i + lag].mean(axis=0)
        return a.T @ a / len(i), a.T @ b / len(i), b.T @ b / len(i)

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**-0.5) @ vectors.T

    c00, c01, c11 = moments(split.train)
    left, s, right = np.linalg.svd(root(c00) @ c01 @ root(c11))
    u, v, s = root(c00) @ left, root(c11) @ right.T, np.diag(s)
    c00, c01, c11 = moments(split.test)
    measured = root(u.T @ c00 @ u) @ u.T @ c01 @ v @ root(v.T @ c11 @ v)
    error = 2 * s @ u.T @ c01 @ v - s @ u.T @ c00 @ u @ s @ v.T @ c11 @ v
    return 1 + (measured**2).sum(), 1 + np.trace(error)


def test_scores_are_those_of_the_formula():
    random = np.random.default_rng(1)
    x = np.cumsum(random.normal(size=(900, 3)), axis=0) * [1.0, 10.0, 0.1]
    split = cross_validation(whole_trajectories((0, 400, 900)), LAG, 2)[0]
    found = held_out_scores(x, split, LAG)
    assert (found.vamp2, found.vampe) == pytest.approx(formula(x, split, LAG), abs=1e-6)
    mixed = held_out_scores(x @ random.normal(size=(3, 3)) + 5.0, split, LAG)
    assert (mixed.vamp2, mixed.vampe) == pytest.approx((found.vamp2, found.vampe), abs=1e-6)


def test_scores_of_what_says_nothing_are_one():
    split = cross_validation(whole_trajectories((0, 5000, 10000)), LAG, 2)[0]
    noise = np.random.default_rng(0).normal(size=(10000, 2))
    assert held_out_scores(noise, split, LAG).vamp2 == pytest.approx(1.0, abs=0.01)
    assert held_out_scores(np.ones((10000, 1)), split, LAG).vamp2 == 1.0
    half = np.repeat([1.0, 0.0], 5000)[:, None] * noise  # Varies on one half of the frames alone.
    for one in cross_validation(whole_trajectories((0, 5000, 10000)), LAG, 2):
        assert held_out_scores(half[:, :1], one, LAG).vampe == pytest.approx(1.0, abs=0.01)


def test_held_out_scores_of_the_states_agree_with_the_exact_one():
    exact = exact_score(CHAIN, LAG)
    values = []
    for seed in range(3):
        states = walks(CHAIN, 4, 20_000, seed=10 * seed)
        x = np.eye(3)[np.concatenate(states)]
        blocks = whole_trajectories(range(0, 80_001, 20_000))
        values += [held_out_scores(x, split, LAG) for split in cross_validation(blocks, LAG, 4)]
    for kind in ("vamp2", "vampe"):
        found = np.array([getattr(value, kind) for value in values])
        error = found.std() / np.sqrt(len(found))
        assert found.mean() < exact + 3 * error
        assert found.mean() == pytest.approx(exact, abs=4 * error)
        assert error < 0.01
    assert max(value.vampe - value.vamp2 for value in values) <= 1e-9


# Coordinates.


@pytest.mark.parametrize("exact_channels", [3000, 100])
def test_linear_coordinates_of_collinear_channels(exact_channels, monkeypatch):
    """Exact principal components, and those of more channels by random projections."""
    monkeypatch.setattr(linear, "MAX_CHANNELS", exact_channels)
    states = walks(CHAIN, 4, 3000)
    frames = joined(in_the_open, states)
    blocks = whole_trajectories(frames.bounds)
    split = cross_validation(blocks, LAG, 4)[0]
    model = fit_linear(frames, split.train, LAG, 2)
    coordinates = evaluate(model, frames)
    exact = held_out_scores(np.eye(3)[np.concatenate(states)], split, LAG).vamp2
    assert held_out_scores(coordinates, split, LAG).vamp2 == pytest.approx(exact, rel=0.01)
    assert model.timescales == pytest.approx(exact_timescales(CHAIN), rel=0.3)
    first = lagged_pairs(split.train, LAG)
    both = np.concatenate([coordinates[first], coordinates[first + LAG]])
    assert np.cov(both.T) == pytest.approx(np.eye(2), abs=1e-3)
    assert (both**3).mean(axis=0).min() > 0


@pytest.mark.parametrize("kind", [hidden_in_a_product, hidden_in_directions])
def test_vampnet_recovers_what_linear_combinations_do_not(kind):
    frames = joined(kind, walks(SWITCH, 4, 1500))
    split = cross_validation(whole_trajectories(frames.bounds), LAG, 4)[0]
    combinations = evaluate(fit_linear(frames, split.train, LAG, 1), frames)
    assert held_out_scores(combinations, split, LAG).vamp2 < 1.05

    options = TrainingOptions(epochs=30, batch=300, learning_rate=1e-2, patience=10)
    recipe = Recipe("vampnet", 1, LAG, width=32, training=options)
    fit = fit_coordinates(frames, split.train, recipe)
    found = held_out_scores(evaluate(fit.coordinates, frames), split, LAG)
    states = np.eye(2)[np.concatenate(walks(SWITCH, 4, 1500))]
    possible = held_out_scores(states, split, LAG).vamp2
    assert possible == pytest.approx(exact_score(SWITCH, LAG), abs=0.1)
    assert found.vamp2 == pytest.approx(possible, abs=0.03)
    assert fit.coordinates.timescales[0] == pytest.approx(exact_timescales(SWITCH)[0], rel=0.3)


def test_training_is_repeatable_and_ends_in_time():
    frames = joined(hidden_in_a_product, walks(SWITCH, 2, 400))
    blocks = whole_trajectories(frames.bounds)

    def train(**changes):
        torch.manual_seed(0)
        network = build_network("mlp", 1, 0, 3, 3, width=8)
        options = TrainingOptions(**{"epochs": 6, "batch": 100, **changes})
        return network, train_vampnet(network, frames, blocks, LAG, 1, options)

    network, history = train()
    again, same = train()
    assert history == same
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert train(seed=1)[1] != history
    assert len(train(epochs=10_000, patience=10_000, seconds=0.3)[1]) < 200
    assert len(train(epochs=500, patience=2)[1]) < 500


def test_the_best_weights_are_kept():
    """Noise is learned by heart, so that the last weights are not the best."""
    random = np.random.default_rng(0)
    frames = join([features(random.normal(size=(150, 4, 10))) for _ in range(4)])
    blocks = whole_trajectories(frames.bounds)
    torch.manual_seed(0)
    network = build_network("mlp", 10, 0, 4, 2, width=16)
    options = TrainingOptions(epochs=12, batch=100, learning_rate=1e-2, patience=99)
    valid = [e.valid for e in train_vampnet(network, frames, blocks, LAG, 1, options)]
    assert len(valid) == 12
    assert max(valid) > valid[-1] + 1e-3
    split = hold_out(blocks, LAG)
    outputs = evaluate(network, frames)
    model = slow_coordinates(network, outputs, split.train, LAG, 1)
    kept = held_out_scores(model.project(outputs), split, LAG).vamp2
    assert kept == pytest.approx(max(valid), abs=1e-6)


def test_a_training_that_diverges_says_so():
    frames = joined(hidden_in_a_product, walks(SWITCH, 2, 400))
    network = build_network("mlp", 1, 0, 3, 3, width=8)
    options = TrainingOptions(epochs=20, batch=50, learning_rate=1e30)
    with pytest.raises(DataError, match="diverged in epoch"):
        train_vampnet(network, frames, whole_trajectories(frames.bounds), LAG, 1, options)


def test_vampnet_never_looks_at_frames_of_other_blocks():
    frames = joined(hidden_in_a_product, walks(SWITCH, 4, 200))
    split = cross_validation(whole_trajectories(frames.bounds), LAG, 4)[0]
    other = replace(frames, scalars=frames.scalars.clone())
    other.scalars[torch.as_tensor(frames_of(split.test))] = 1e6
    histories = []
    for data in (frames, other):
        torch.manual_seed(0)
        network = build_network("mlp", 1, 0, 3, 3, width=8)
        histories.append(
            train_vampnet(network, data, split.train, LAG, 1, TrainingOptions(epochs=2))
        )
    assert histories[0] == histories[1]


def test_cross_validation_of_noise_is_not_above_one():
    """Networks fit noise: their score on the training frames is high, that on others is not."""
    random = np.random.default_rng(0)
    frames = join([features(random.normal(size=(150, 4, 10))) for _ in range(4)])
    blocks = whole_trajectories(frames.bounds)
    options = TrainingOptions(epochs=10, batch=100, learning_rate=1e-2)
    told = []
    found = cross_validate(
        frames,
        blocks,
        4,
        Recipe("vampnet", 1, LAG, width=32, training=options),
        lambda fold, share, state: told.append((fold, share)),
    )
    assert np.mean([fold.vamp2 for fold in found]) < 1.05
    assert told == sorted(told)
    assert told[-1] == (3, 1.0)
    fit = fit_coordinates(
        frames, blocks, Recipe("vampnet", 1, LAG, width=32, training=replace(options, patience=99))
    )
    assert max(epoch.train for epoch in fit.history) > 1.3


def test_the_loss_of_spib_is_that_of_the_formula():
    """L = -ln p(y|z) + β (ln q(z|X) - ln Σ_k w_k q(z|X_k)), by torch's own distributions."""
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    random = np.random.default_rng(0)
    frames = join([features(random.normal(size=(20, 2, 3)))])
    torch.manual_seed(0)
    model = Spib(build_network("mlp", 3, 0, 2, 4, width=8), 2, 3).eval()
    model.representatives[:] = torch.tensor([3, 11, 17])
    model.alive[:] = torch.tensor([True, False, True])
    with torch.no_grad():
        model.weights[:] = torch.tensor([0.3, 9.0, -0.5])
        index, future = torch.tensor([1, 5, 8]), torch.tensor([0, 2, 2])
        noise = torch.randn(3, 2)
        found = model.loss(frames, index, future, noise)

        mean, log_variance = model.encode(*frames.at(index))
        spread = (0.5 * log_variance).exp()
        z = mean + noise * spread
        centers, log_variances = model.encode(*frames.at(torch.tensor([3, 17])))
        prior = MixtureSameFamily(
            Categorical(logits=torch.tensor([0.3, -0.5])),
            Independent(Normal(centers, (0.5 * log_variances).exp()), 1),
        )
        information = Independent(Normal(mean, spread), 1).log_prob(z) - prior.log_prob(z)
        prediction = model.predict(z)[torch.arange(3), future]
        assert information.abs().min() > 0.1
        assert torch.allclose(found, -prediction + BETA * information, atol=1e-6)
        assert prediction.exp().max() < 1


def test_spib_finds_the_states():
    states = walks(CHAIN, 4, 1500)
    true = np.concatenate(states)
    random = np.random.default_rng(5)
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.3, 1.0]])[true]
    values = points + 0.15 * random.normal(size=points.shape)
    frames = join([features(part[:, :, None]) for part in np.split(values, 4)])
    labels = cluster(values, 12, seed=0)
    torch.manual_seed(0)
    model = Spib(build_network("mlp", 1, 0, 2, 4, width=16), 2, 12)
    options = TrainingOptions(epochs=40, batch=300, learning_rate=5e-3)
    blocks = whole_trajectories(frames.bounds)
    result = train_spib(model, frames, labels, blocks, 10, options)
    assert result.changed[-1] < 0.02
    assert len(np.unique(result.states)) == 3
    # The most populated state is 0; each found state is one true state.
    table = np.zeros((3, 3))
    np.add.at(table, (result.states, true), 1)
    assert table.max(axis=1).sum() / len(true) > 0.99
    assert (np.diff(table.sum(axis=1)) <= 0).all()
    latent = evaluate(model, frames)
    assert latent.shape == (6000, 2)
    possible = scores(np.eye(3)[true], blocks, LAG).vamp2
    assert scores(np.eye(3)[result.states], blocks, LAG).vamp2 == pytest.approx(possible, rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["vampnet", "spib"])
def test_networks_are_trained_on_a_gpu(method):
    frames = joined(hidden_in_directions, walks(SWITCH, 4, 400))
    blocks = whole_trajectories(frames.bounds)
    values = []
    for device in ("cuda", "cpu"):
        options = TrainingOptions(epochs=3, batch=200, device=device)
        fit = fit_coordinates(frames, blocks, Recipe(method, 1, LAG, width=16, training=options))
        values.append(evaluate(fit.coordinates, frames))
    assert values[0].shape == values[1].shape == (1600, 1)
    assert np.abs(np.corrcoef(values[0][:, 0], values[1][:, 0])[0, 1]) > 0.9


# Markov models.


def test_markov_models_have_the_exact_timescales_populations_and_passage_times():
    from deeptime.markov.msm import MarkovStateModel

    states = walks(CHAIN, 4, 10_000)
    model = markov_model(states, LAG, seed=0)
    found = implied_timescales(states, [1, 2, 4, 20_000], 5, seed=0)
    assert found.lags.tolist() == [1, 2, 4]
    assert found.values.shape == (3, 2)
    exact = exact_timescales(CHAIN)
    assert (np.abs(found.values - exact) < 3.5 * found.errors).all()
    assert (found.errors < 0.15 * exact).all()

    assert number_of_states(model, 8) == 3
    metastable = metastable_states(model, 3)
    order = np.argsort(-STATIONARY)
    assert metastable.of_cluster.tolist() == np.argsort(order).tolist()
    errors = metastable.population_errors
    assert (np.abs(metastable.populations - STATIONARY[order]) < 3.5 * errors).all()
    times = MarkovStateModel(np.linalg.matrix_power(CHAIN, LAG), lagtime=LAG)
    exact_times = np.array(
        [[times.mfpt(int(a), int(b)) if a != b else 0 for b in order] for a in order]
    )
    off = ~np.eye(3, dtype=bool)
    difference = np.abs(metastable.passage - exact_times)
    assert (difference[off] < 3.5 * metastable.passage_errors[off]).all()
    assert np.array_equal(clusters_as_states(model).populations, metastable.populations)
    assert model.weights().sum() == pytest.approx(1.0)

    test = chapman_kolmogorov(model, states, metastable, seed=0)
    assert test.lags.tolist() == [0, 2, 4, 6, 8, 10]
    powers = [np.diag(np.linalg.matrix_power(CHAIN, int(lag)))[order] for lag in test.lags]
    assert test.predicted == pytest.approx(np.array(powers), abs=0.02)
    assert (np.abs(test.observed - test.predicted) <= 4 * test.predicted_errors + 1e-9).all()


def test_errors_of_markov_models_are_repeatable():
    states = walks(CHAIN, 2, 500)
    one, same, other = (markov_model(states, LAG, seed, samples=3) for seed in (0, 0, 1))
    first = [model.posterior.samples[-1].transition_matrix for model in (one, same, other)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_finer_clusters_have_the_same_metastable_states():
    random = np.random.default_rng(3)
    states = walks(CHAIN, 4, 3000)
    fine = [4 * part + random.integers(0, 4, len(part)) for part in states]
    model = markov_model(fine, LAG, seed=0)
    assert number_of_states(model, 8) == 3
    metastable = metastable_states(model, 3)
    found = metastable.of_frames(model.clusters)
    true = np.argsort(np.argsort(-np.bincount(np.concatenate(states))))[np.concatenate(states)]
    assert (found == true).mean() == 1.0


def test_clusters_that_are_not_connected_are_left_out():
    """A trajectory that stays by itself, and a cluster that is never left again."""
    states = [walk(SWITCH, 2000, 0), np.full(300, 2), np.r_[walk(SWITCH, 500, 1), np.full(200, 3)]]
    model = markov_model(states, LAG, seed=0)
    assert model.kept.tolist() == [0, 1]
    assert model.share == pytest.approx(2500 / 3000)
    assert np.array_equal(model.clusters < 0, np.concatenate(states) > 1)
    metastable = metastable_states(model, 2)
    assert set(metastable.of_frames(model.clusters)) == {-1, 0, 1}
    assert model.weights()[model.clusters < 0].sum() == 0
    test = chapman_kolmogorov(model, states, metastable, seed=0)
    assert test.predicted == pytest.approx(test.observed, abs=0.05)
    with pytest.raises(DataError, match="back and forth"):
        markov_model([np.repeat([0, 1, 2], 100)], LAG, seed=0)
    with pytest.raises(DataError, match="at most 10 frames"):
        markov_model([np.arange(10)], 10, seed=0)


def test_importance_is_where_the_information_is():
    frames = joined(hidden_in_a_product, walks(SWITCH, 4, 500))

    class Product(nn.Module):
        def forward(self, scalars, vectors, positions):
            return scalars[:, :1, 0] * scalars[:, 1:2, 0]

    blocks = whole_trajectories(frames.bounds)
    losses = token_importance(Product(), frames, blocks, LAG, seed=0)
    assert losses[:2] == pytest.approx([100, 100], abs=5)
    assert losses[2] == 0


# Settings and times.


def test_lags_are_times_or_frames():
    assert AnalysisSettings("10ps").lag_frames(0.5) == 20
    assert AnalysisSettings("0.1 ns").lag_frames(10.0) == 10
    assert AnalysisSettings("7").lag_frames(None) == 7
    assert AnalysisSettings(3).lag_frames(2.0) == 3
    for lag, frame_time, message in (
        ("10ps", None, "do not say the time"),
        ("15ps", 10.0, "multiple of 10 ps"),
        ("1ps", 10.0, "multiple of 10 ps"),
        ("0", 1.0, "starts at 1 frame"),
        ("-3", 1.0, "starts at 1 frame"),
        ("10 parsec", 1.0, "neither a time"),
        ("long", 1.0, "neither a time"),
    ):
        with pytest.raises(ConfigError, match=message):
            AnalysisSettings(lag).lag_frames(frame_time)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pca"}, "known are linear, vampnet, spib"),
        ({"mixer": "blender"}, "unknown mixer 'blender'"),
        ({"coordinates": 0}, "coordinates starts at 1"),
        ({"states": 1}, "states starts at 2"),
        ({"folds": 1}, "folds starts at 2"),
        ({"minutes": 0.0}, "above 0"),
        ({"method": "spib", "states": 3}, "spib finds"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AnalysisSettings("10ps", **changes)


def test_times_are_written_as_people_read_them():
    clock = Clock(2.0)
    assert clock.text(10) == "20 ps"
    assert clock.text(114.3, 7.61) == "229 ± 15 ps"
    assert clock.text(1500) == "3 ns"
    assert clock.text(float("nan")) == "–"
    assert Clock(None).text(12345.0) == "12,345 frames"
    assert clock.picoseconds(3) == 6.0
    assert Clock(None).picoseconds(3) is None


def test_times_do_not_depend_on_the_lags_unit():
    values = [AnalysisSettings(text).lag_frames(1.0) for text in ("2000fs", "2ps", "0.002ns")]
    assert all(a == b == 2 for a, b in pairwise(values))


def test_a_short_trajectory_is_not_all_there_is_to_validate_on():
    blocks = whole_trajectories((0, 1000, 2000, 3000, 4000, 4040))
    split = hold_out(blocks, 10)
    assert sum(block.length for block in split.test) == pytest.approx(4040 / 5, rel=0.01)
    for part in cross_validation(blocks, 10, 5):
        assert sum(block.length for block in part.test) == pytest.approx(4040 / 5, rel=0.01)
    # Of about the same length they stay whole.
    blocks = whole_trajectories((0, 1000, 1900, 3000, 4000, 5000))
    assert {len(part.test) for part in cross_validation(blocks, 10, 5)} == {1}
