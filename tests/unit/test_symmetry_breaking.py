"""Symmetry-breaking encodings: their law turns with the structure, and they tell symmetric atoms apart."""

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.core.element import carbon, hydrogen
from scipy.spatial.transform import Rotation

from featurizers import TrajectoryFeatures, TrajectoryFeaturizer
from featurizers.mixers import build_network
from featurizers.symmetry_breaking import break_symmetry, sample_frames
from forcefield.errors import ConfigError, DataError

DRAWS = 4000


def benzene() -> np.ndarray:
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], axis=1)
    return np.concatenate([1.39 * ring, 2.48 * ring])


def methane() -> np.ndarray:
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return np.concatenate([np.zeros((1, 3)), 0.63 * corners])


STRUCTURES = {
    "no symmetry": np.array([[0.0, 0, 0], [1.5, 0, 0], [1.9, 1.3, 0], [1.2, 2.0, 1.1]]),
    "water": np.array([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]]),
    "benzene": benzene(),
    "methane": methane(),
    "linear": np.array([[-1.16, 0, 0], [0.0, 0, 0], [1.16, 0, 0]]),
    "atom": np.zeros((1, 3)),
}
"""One with each kind of stabiliser, Å."""

TURN = Rotation.from_rotvec([0.4, -1.7, 0.9]).as_matrix()


def draw(positions: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Many frames of one structure."""
    many = np.broadcast_to(positions, (draws, *positions.shape))
    weights = np.ones(many.shape[:2])
    return sample_frames(many, weights, 1e-3, np.random.default_rng(seed))


def eigenvectors(positions: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """What is often done instead: the eigenvectors and signs that the algorithm happens to return."""
    r = positions - positions.mean(0)
    frame = np.linalg.eigh(r.T @ r)[1][:, ::-1]
    return np.broadcast_to(frame, (draws, 3, 3))


def deviation(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of moments up to the third of two samples (n, 3, 3), in standard errors."""
    a, b = (x.reshape(len(x), 9).astype(np.float64) for x in (one, other))
    i, j, k = (index.ravel() for index in np.indices((9, 9, 9)))
    worst = 0.0
    for moments in (
        lambda x: x,
        lambda x: x[:, i[::9]] * x[:, j[::9]],
        lambda x: x[:, i] * x[:, j] * x[:, k],
    ):
        p, q = moments(a), moments(b)
        # A moment that does not vary at all may still differ by rounding to float32.
        error = np.sqrt(p.var(0) / len(p) + q.var(0) / len(q)) + 1e-6
        worst = max(worst, float(np.max(np.abs(p.mean(0) - q.mean(0)) / error)))
    return worst


def energy_distance(one: np.ndarray, other: np.ndarray) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of two samples, 0 only for equal laws."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x[:1000].reshape(-1, 9))) for x in (one, other))
    n = len(a)
    within = torch.cdist(a, a).sum() + torch.cdist(b, b).sum()
    return float(2 * torch.cdist(a, b).mean() - within / (n * (n - 1)))


BOUND = 5.0
"""Standard errors. Among the 800 moments compared, a normal deviate that large is one in two thousand."""


@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize("name", STRUCTURES)
def test_frames_turn_with_the_structure_in_distribution(name, mirror):
    turn, positions = mirror * TURN, STRUCTURES[name]
    of_turned = draw(positions @ turn.T + 3.0, seed=0)
    turned = turn @ draw(positions, seed=1)
    assert deviation(of_turned, turned) < BOUND
    assert abs(energy_distance(of_turned, turned)) < 0.02


@pytest.mark.parametrize("name", ["no symmetry", "benzene", "methane"])
def test_the_same_test_refuses_eigenvectors_as_they_come(name):
    """Negative control: with one turn or another, a fixed convention for signs does not turn."""
    positions = STRUCTURES[name]
    found = []
    for seed in range(4):
        turn = Rotation.random(random_state=seed).as_matrix()
        of_turned, turned = eigenvectors(positions @ turn.T), turn @ eigenvectors(positions)
        found.append(
            deviation(of_turned, turned) > BOUND and energy_distance(of_turned, turned) > 0.2
        )
    assert any(found)


@pytest.mark.parametrize("name", STRUCTURES)
def test_frames_are_eigenframes_of_either_handedness(name):
    positions = STRUCTURES[name] @ TURN.T
    frames = draw(positions, seed=2)
    np.testing.assert_allclose(
        frames.transpose(0, 2, 1) @ frames, np.broadcast_to(np.eye(3), frames.shape), atol=1e-12
    )
    r = positions - positions.mean(0)
    diagonal = frames.transpose(0, 2, 1) @ (r.T @ r) @ frames
    expected = np.diag(np.linalg.eigvalsh(r.T @ r)[::-1])
    np.testing.assert_allclose(diagonal, np.broadcast_to(expected, diagonal.shape), atol=1e-10)
    assert abs(np.linalg.det(frames).mean()) < BOUND / np.sqrt(DRAWS)


def test_laws_are_uniform_on_the_stabiliser():
    # Eight choices of signs, each in an eighth of the draws.
    frames = draw(STRUCTURES["no symmetry"], seed=3)
    signs = np.sign(np.einsum("fxk,xk->fk", frames, frames[0]))
    np.testing.assert_allclose(np.abs(np.einsum("fxk,xk->fk", frames, frames[0])), 1.0, atol=1e-9)
    counts = np.bincount(((signs > 0) @ [1, 2, 4]), minlength=8)
    assert ((counts - DRAWS / 8) ** 2 / (DRAWS / 8)).sum() < 30.0  # χ² of 7 degrees of freedom

    # Benzene: the third axis is its normal up to the sign, the first has any direction in the plane.
    frames = draw(STRUCTURES["benzene"], seed=4)
    np.testing.assert_allclose(np.abs(frames[:, 2, 2]), 1.0, atol=1e-9)
    assert uniform(np.arctan2(frames[:, 1, 0], frames[:, 0, 0]) / (2 * np.pi) % 1.0)
    # A linear molecule: the first axis is its own.
    frames = draw(STRUCTURES["linear"], seed=5)
    np.testing.assert_allclose(np.abs(frames[:, 0, 0]), 1.0, atol=1e-9)
    assert uniform(np.arctan2(frames[:, 2, 1], frames[:, 1, 1]) / (2 * np.pi) % 1.0)
    # Methane and an atom: components of uniform unit vectors are uniform between -1 and 1.
    for name in ("methane", "atom"):
        frames = draw(STRUCTURES[name], seed=6)
        assert all(uniform((1.0 + frames[:, x, k]) / 2.0) for x in range(3) for k in range(3))


def uniform(sample: np.ndarray) -> bool:
    """Kolmogorov and Smirnov: whether a sample may be uniform between 0 and 1, at one in a million."""
    n = len(sample)
    steps = np.arange(n + 1) / n
    ordered = np.sort(sample)
    return max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])) < 2.7 / np.sqrt(n)


def test_eigenvalues_equal_within_the_tolerance():
    stretched = STRUCTURES["benzene"] * np.array([1.001, 1.0, 1.0])
    many = np.broadcast_to(stretched, (200, *stretched.shape))
    weights = np.ones(many.shape[:2])
    rng = np.random.default_rng(0)
    along = sample_frames(many, weights, 1e-4, rng)[:, 0, 0]
    np.testing.assert_allclose(np.abs(along), 1.0, atol=1e-6)
    assert np.abs(sample_frames(many, weights, 1e-2, rng)[:, 0, 0]).std() > 0.2


def features_of(positions: np.ndarray, frames: int, turn: np.ndarray | None = None):
    """Features that do turn with the structure: positions times invariant weights as vectors."""
    r = positions - positions.mean(0)
    if turn is not None:
        r = r @ turn.T
    n = len(r)
    distances = np.linalg.norm(r, axis=1)
    scalars = np.stack([np.ones(n), distances], axis=1)
    vectors = r[:, :, None] * np.array([1.0, 0.5])
    return TrajectoryFeatures(
        *(np.repeat(x[None], frames, axis=0).astype(np.float32) for x in (scalars, vectors, r)),
        tuple(str(i) for i in range(n)),
    )


@pytest.mark.parametrize("name", ["no symmetry", "benzene", "methane"])
def test_encodings_turn_and_projections_do_not_change_in_distribution(name):
    plain, turned = (features_of(STRUCTURES[name], DRAWS, turn) for turn in (None, TURN))
    one = break_symmetry(plain, seed=0).vectors[:, 0, :, 2:]
    other = break_symmetry(turned, seed=1).vectors[:, 0, :, 2:]
    assert deviation(other, TURN @ one) < BOUND
    one, other = (
        break_symmetry(features, "projections", seed=seed).scalars[:, -3:, 2:]
        for features, seed in ((plain, 2), (turned, 3))
    )
    assert deviation(other, one) < BOUND
    assert one.std(0).max() > 0.3


def test_shapes_and_what_stays():
    features = features_of(STRUCTURES["water"], 7)
    coefficients = np.array([[1.0, 0, 0, 1], [0, 2.0, 0, 1], [0, 0, 3.0, 1]])
    broken = break_symmetry(features, coefficients=coefficients, seed=5)
    assert broken.vectors.shape == (7, 3, 3, 2 + 4)
    assert broken.vectors.dtype == np.float32
    np.testing.assert_array_equal(broken.vectors[..., :2], features.vectors)
    np.testing.assert_array_equal(broken.scalars, features.scalars)
    np.testing.assert_array_equal(broken.positions, features.positions)
    assert broken.labels == features.labels
    frame = break_symmetry(features, seed=5).vectors[..., 2:]
    np.testing.assert_allclose(broken.vectors[..., 2:], frame @ coefficients, atol=1e-6)

    projected = break_symmetry(features, "projections", coefficients=coefficients, seed=5)
    assert projected.scalars.shape == (7, 3, 2 + 4)
    assert projected.scalars.dtype == np.float32
    # Weighted by distance, the oxygen counts less than in the mean.
    w = np.sqrt((1.0 + features.scalars[0, :, 1] ** 2) / 2.0)
    r = features.positions[0] - (w[:, None] * features.positions[0]).sum(0) / w.sum()
    expected = r @ frame[0, 0] @ coefficients
    np.testing.assert_allclose(projected.scalars[0, :, 2:], expected, atol=1e-5)


def test_seeds_and_independent_frames():
    features = features_of(STRUCTURES["methane"], 50)
    once, again = (break_symmetry(features, seed=3).vectors for _ in range(2))
    np.testing.assert_array_equal(once, again)
    generator = np.random.default_rng(3)
    np.testing.assert_array_equal(break_symmetry(features, seed=generator).vectors, once)
    assert np.abs(break_symmetry(features, seed=generator).vectors - once).max() > 0.1
    assert np.abs(np.diff(once[:, 0, :, 2:], axis=0)).max(axis=(1, 2)).min() > 1e-3


def test_weights_decide_on_the_axes():
    square = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1.0, 0], [0, -1, 0]])
    features = features_of(square, 100)
    heavy = break_symmetry(features, weights=np.array([2.0, 2.0, 1.0, 1.0])).vectors[..., 2:]
    np.testing.assert_allclose(np.abs(heavy[:, 0, 0, 0]), 1.0, atol=1e-6)
    same = break_symmetry(features, weights=np.ones((100, 4))).vectors[..., 2:]
    assert np.abs(same[:, 0, 0, 0]).std() > 0.2
    nothing = break_symmetry(features, weights=np.zeros(4)).vectors[..., 2:]
    assert np.isfinite(nothing).all()


def test_impossible_encodings():
    features = features_of(STRUCTURES["water"], 2)
    with pytest.raises(
        ConfigError, match="unknown encoding 'axes'; known are vectors, projections"
    ):
        break_symmetry(features, "axes")
    with pytest.raises(ConfigError, match=r"shape \(3, 2\) .* rank 3"):
        break_symmetry(features, coefficients=np.eye(3)[:, :2])
    with pytest.raises(ConfigError, match="rank 3"):
        break_symmetry(features, coefficients=np.ones((3, 4)))
    with pytest.raises(DataError, match=r"shape \(2,\) do not fit 3 tokens of 2 frames"):
        break_symmetry(features, weights=np.ones(2))
    with pytest.raises(DataError, match="negative"):
        break_symmetry(features, weights=np.array([1.0, -1.0, 1.0]))
    features.positions[1, 0, 0] = np.nan
    with pytest.raises(DataError, match="frame 1: a position is not finite"):
        break_symmetry(features)


# With the weights that ship with the package.


@pytest.fixture(scope="module")
def benzene_features() -> TrajectoryFeatures:
    topology = mdtraj.Topology()
    residue = topology.add_residue("BNZ", topology.add_chain())
    for index in range(12):
        element = carbon if index < 6 else hydrogen
        topology.add_atom(f"{element.symbol}{index}", element, residue)
    trajectory = mdtraj.Trajectory((benzene() @ TURN.T)[None] / 10.0, topology)
    features = TrajectoryFeaturizer.pretrained(dtype=torch.float64).transform(trajectory)
    assert features.positions.shape == (1, 12, 3)
    return features


def invariants(features: TrajectoryFeatures) -> np.ndarray:
    """Scalars of each token, and all inner products of its vectors: (tokens, invariants)."""
    products = np.einsum("txa,txb->tab", features.vectors[0], features.vectors[0])
    return np.concatenate([features.scalars[0], products.reshape(len(products), -1)], axis=1)


def least_difference(values: np.ndarray) -> float:
    """Between any two of the tokens, in the invariant that differs most."""
    differences = np.abs(values[:, None] - values[None]).max(-1)
    return float(differences[np.triu_indices(len(values), 1)].min())


def test_carbons_of_benzene_are_told_apart(benzene_features):
    plain = invariants(benzene_features)
    carbons, hydrogens = plain[:6], plain[6:]
    assert np.abs(carbons - carbons[0]).max() < 1e-3 * np.abs(carbons).max()
    assert np.abs(hydrogens - hydrogens[0]).max() < 1e-3 * np.abs(hydrogens).max()
    for encoding in ("vectors", "projections"):
        broken = invariants(break_symmetry(benzene_features, encoding, seed=1))
        assert least_difference(broken[:6]) > 100 * np.abs(carbons - carbons[0]).max()
        assert least_difference(broken[:6]) > 0.02


def test_a_network_tells_the_carbons_apart_only_with_broken_symmetry(benzene_features):
    """An equivariant network that sees all of the molecule at once, and its tokens' identity not."""
    spread = {}
    for name, features in (
        ("plain", benzene_features),
        ("broken", break_symmetry(benzene_features, seed=1)),
    ):
        torch.manual_seed(0)
        network = build_network(
            "attention", 64, features.vectors.shape[3], 12, 2, token_identity=False, chiral=False
        )
        network.standardize(features.scalars, features.vectors)
        arrays = (features.scalars, features.vectors, features.positions)
        scalars, _ = network.tokens(*(torch.from_numpy(array) for array in arrays))
        spread[name] = least_difference(scalars[0, :6].detach().numpy())
    assert spread["plain"] < 1e-3
    assert spread["broken"] > 0.05
