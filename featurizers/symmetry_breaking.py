"""Symmetry-breaking positional encodings: features that tell symmetric atoms apart.

H. Lawrence, V. Portilheiro, Y. Zhang, S.-O. Kaba, "Improving equivariant networks with probabilistic
symmetry breaking" (SymPE), ICLR 2025, arXiv 2503.21985; here for points in space and the group O(3).

An equivariant function f(R x) = R f(x) gives its result at least the symmetry of the structure x: if R
maps x on itself, R f(x) = f(x), and atoms that R exchanges have the same invariants. To choose one of
them, a function has to be random: equivariant in distribution, f(R x) ~ R f(x). SymPE makes any
network so by appending an encoding e = g v, where g is random and v fixed (or learnt), and the law of g
is the inversion kernel: uniform on the group elements that bring a canonical structure to x.

The frame. T = Σ_i w_i (r_i - r̄)(r_i - r̄)^T, with invariant weights and r̄ the weighted mean, turns
with the structure: T(R x) = R T(x) R^T. Its eigenframes

    𝓕(T) = { F in O(3) : F^T T F = diag(λ_1 ≥ λ_2 ≥ λ_3) } = F_0 Stab(Λ) = Stab(T) F_0

are a coset of the stabiliser of T. With F_0 any one of them and Q from the Haar measure of Stab(Λ), the
law of F = F_0 Q is the uniform one on 𝓕(T). What Stab(Λ) is depends on which eigenvalues are equal:

    all distinct            O(1)³           eight choices of signs
    two equal               O(2) × O(1)     symmetric tops, benzene, and all linear molecules
    all equal               O(3)            spherical tops such as methane, and single atoms

*Equivariance in distribution.* 𝓕(T(R x)) = R 𝓕(T(x)), and R carries the uniform law of one coset to
that of the other, as Haar measures are invariant. So F(R x) ~ R F(x), for reflections too, and for
permutations of atoms, of which T knows nothing. No choice of eigenvectors, signs or order is involved.

*Which stabiliser.* A symmetry of x is one of T: Stab(x) is a subgroup of Stab(T), often a proper one
(C_3v, or no symmetry at all, where eight frames are drawn from although one would do). As
the uniform law on Stab(T) F_0 does not change when it is multiplied by an element of Stab(x), it is a
mixture of laws that are uniform on cosets of Stab(x), one for each coset that Stab(T) F_0 is made
of: the inversion kernel of x itself for a canonical frame that is in turn random. All symmetry of x
is broken, with more randomness than the least possible. A frame with fewer choices would need signs,
from third moments say, and jump where these vanish; here the law of F jumps only where two
eigenvalues meet.

Nothing of this belongs into a potential: energies must be the same for all draws. Shapes: frames of a
trajectory ``f``, tokens ``t``, channels ``c``, encodings ``k``.
"""

from typing import Literal, get_args

import numpy as np

from featurizers.features import TrajectoryFeatures
from forcefield.errors import ConfigError, DataError

Encoding = Literal["vectors", "projections"]
"""As vector channels, or as the invariant components of token positions along them."""


def break_symmetry(
    features: TrajectoryFeatures,
    encoding: Encoding = "vectors",
    weights: np.ndarray | None = None,
    coefficients: np.ndarray | None = None,
    tolerance: float = 1e-3,
    seed: int | np.random.Generator = 0,
) -> TrajectoryFeatures:
    """Append a random frame of each structure to the features of its tokens.

    With ``vectors`` every token gets the columns of e = F v as further vector channels: turned
    structures have turned encodings, in distribution. A network that mixes vector channels linearly
    first, as all in :mod:`featurizers.mixers` do, learns v by itself. With ``projections`` every token
    gets the scalars (r_i - r̄) · e_k, in Å: the same in distribution however the structure is turned.

    Frames of a trajectory are drawn independently of one another, so the encodings of consecutive
    frames differ by signs even where the structure hardly changes.

    Args:
        features: Of f frames of t tokens.
        encoding: ``vectors`` or ``projections``.
        weights: Weight of each token in the tensor, (t,) or (f, t), not negative, and the same for
            equivalent tokens: atomic numbers or masses, say. None for the root mean square of each
            token's scalars.
        coefficients: v, (3, k) of rank 3; None for the frame itself.
        tolerance: Eigenvalues count as equal if they differ by less than this part of the largest.
            Coordinates with three decimals in Å break the symmetry of a molecule by some 1e-4.
        seed: Of the random numbers, or their generator.

    Returns:
        Features with k further vector or scalar channels behind those that were there.

    Raises:
        ConfigError: The encoding is unknown, or coefficients have another shape or a lower rank, so
            that some rotations would change nothing.
        DataError: Weights have another shape or are negative, or positions are not finite.
    """
    if encoding not in get_args(Encoding):
        raise ConfigError(
            f"unknown encoding {encoding!r}; known are {', '.join(get_args(Encoding))}"
        )
    v = np.eye(3) if coefficients is None else np.asarray(coefficients, dtype=np.float64)
    if v.ndim != 2 or len(v) != 3 or np.linalg.matrix_rank(v) < 3:
        raise ConfigError(
            f"coefficients of shape {v.shape} cannot tell all rotations apart: they have to be of "
            "shape (3, k) and of rank 3"
        )
    w = _weights(features, weights)
    frames = sample_frames(features.positions, w, tolerance, np.random.default_rng(seed))
    e = frames @ v  # (f, 3, k)
    num_frames, num_tokens = features.scalars.shape[:2]
    scalars, vectors = features.scalars, features.vectors
    if encoding == "vectors":
        shape = (num_frames, num_tokens, *e.shape[1:])
        same = np.broadcast_to(e[:, None].astype(np.float32), shape)
        vectors = np.concatenate([vectors, same], axis=3)
    else:
        components = _centred(features.positions, w) @ e
        scalars = np.concatenate([scalars, components.astype(np.float32)], axis=2)
    return TrajectoryFeatures(scalars, vectors, features.positions, features.labels)


def sample_frames(
    positions: np.ndarray, weights: np.ndarray, tolerance: float, generator: np.random.Generator
) -> np.ndarray:
    """Draw an eigenframe of each structure's tensor T, uniformly among all it has.

    Args:
        positions: (f, t, 3), Å.
        weights: (f, t), not negative.
        tolerance: Part of the largest eigenvalue below which two are equal.
        generator: Of random numbers.

    Returns:
        Orthogonal matrices F (f, 3, 3) of either handedness; columns belong to falling eigenvalues.

    Raises:
        DataError: A position is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))
    if len(bad):
        raise DataError(f"frame {bad[0]}: a position is not finite")
    centred = _centred(positions, weights)
    tensor = np.einsum("ft,ftx,fty->fxy", weights, centred, centred)
    eigenvalues, eigenvectors = np.linalg.eigh(tensor)
    eigenvalues, eigenvectors = eigenvalues[:, ::-1], eigenvectors[:, :, ::-1]
    gaps = -np.diff(eigenvalues, axis=1)
    equal = gaps <= tolerance * eigenvalues[:, :1]  # also if all of them are zero
    return eigenvectors @ _sample_stabilisers(equal, generator)


def _sample_stabilisers(equal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Haar-distributed elements (f, 3, 3) of the stabilisers of diagonal matrices.

    Args:
        equal: Whether the first and second, and the second and third eigenvalue are equal, (f, 2).
        generator: Of random numbers.
    """
    f = len(equal)
    # A uniform rotation in a plane after independent signs is the Haar measure of O(2) × O(1).
    signs = generator.choice([-1.0, 1.0], size=(f, 3))
    result = signs[:, :, None] * np.eye(3)
    angle = generator.uniform(0.0, 2.0 * np.pi, f)
    cos, sin = np.cos(angle), np.sin(angle)
    for first in (0, 1):
        plane = np.zeros((f, 3, 3))
        second, axis = first + 1, 2 - 2 * first
        plane[:, first, first] = plane[:, second, second] = cos
        plane[:, second, first], plane[:, first, second] = sin, -sin
        plane[:, axis, axis] = 1.0
        only = equal[:, first] & ~equal[:, 1 - first]
        result[only] = plane[only] @ result[only]
    everything = equal.all(axis=1)
    result[everything] = _sample_orthogonal(f, generator)[everything]
    return result


def _sample_orthogonal(number: int, generator: np.random.Generator) -> np.ndarray:
    """Haar-distributed elements of O(3), (number, 3, 3)."""
    q, r = np.linalg.qr(generator.normal(size=(number, 3, 3)))
    # The signs of the diagonal of R are conventions of the algorithm; without them Q is unique.
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


def _centred(positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Positions (f, t, 3) from the weighted mean, float64; from the mean if no token has weight."""
    r = positions.astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    share = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / r.shape[1])
    return r - np.einsum("ft,ftx->fx", share, r)[:, None]


def _weights(features: TrajectoryFeatures, weights: np.ndarray | None) -> np.ndarray:
    """Weights of tokens, (f, t), float64."""
    shape = features.scalars.shape[:2]
    if weights is None:
        return np.sqrt(np.mean(features.scalars.astype(np.float64) ** 2, axis=2))
    w = np.asarray(weights, dtype=np.float64)
    if w.shape not in (shape, shape[1:]):
        raise DataError(
            f"weights of shape {w.shape} do not fit {shape[1]} tokens of {shape[0]} frames: they have "
            f"to be of shape {shape[1:]} or {shape}"
        )
    if not (w >= 0).all():
        raise DataError("a weight is negative or not a number")
    return np.broadcast_to(w, shape)
