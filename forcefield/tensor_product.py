"""Products of an atom's steerable features with each other: a higher body order.

Inner products see angles between two of an atom's features; a product that is itself steerable lets the
next layer see what three and more of them make together, as the products of MACE do (Batatia et al.,
NeurIPS 2022) and the tensor products of NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022).
"""

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from forcefield.basis import SphericalHarmonics, degree_of_component


class TensorProduct(nn.Module):
    """Couples the features of an atom to new ones, channel by channel.

        T_i^(l) = Σ w_(l1 l2 l) ⊙ [ a_i^(l1) ⊗ b_i^(l2) ]^(l)        l1 + l2 + l even

    with a number in w for each channel. Odd sums are left out: they would mix vectors and pseudovectors.

    Args:
        lmax: Highest degree of factors and product, at least 1.
        channels: Of each.
    """

    first: Tensor
    second: Tensor
    coupling: Tensor
    path: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        coupling, path, paths = couplings(lmax)
        m = coupling.shape[0]
        # Nine tenths of the couplings are zero: each component of the product gets a list of the others,
        # filled up to one length by terms that count nothing.
        terms = [coupling[:, :, k].nonzero() for k in range(m)]
        self.longest = max(len(term) for term in terms)
        index = torch.zeros(m, self.longest, 2, dtype=torch.int64)
        for k, term in enumerate(terms):
            index[k, : len(term)] = term
        first, second = index.view(-1, 2).unbind(1)
        component = torch.arange(m).repeat_interleave(self.longest)
        counts = torch.cat([torch.arange(self.longest) < len(term) for term in terms])
        # In rows of one: an optimizer for matrices would take (paths, c) for one.
        self.weights = nn.Parameter(torch.randn(paths, 1, channels))
        self.register_buffer("first", first.contiguous(), persistent=False)
        self.register_buffer("second", second.contiguous(), persistent=False)
        values = coupling[first, second, component] * counts
        self.register_buffer("coupling", values.view(-1, 1, 1), persistent=False)
        self.register_buffer("path", path[first, second, component], persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product (n, m, c) of two steerable features (n, m, c)."""
        weights = (self.weights.index_select(0, self.path) * self.coupling).squeeze(1)
        terms = a.index_select(1, self.first) * b.index_select(1, self.second) * weights
        return terms.view(a.shape[0], a.shape[1], self.longest, a.shape[2]).sum(2)


def couplings(lmax: int) -> tuple[Tensor, Tensor, int]:
    """How harmonics multiply: the integrals of Y_p Y_q Y_k over the sphere, those of even l1 + l2 + l.

    They are the Wigner 3j symbols of real harmonics, up to a factor for each path (l1, l2, l).

    Returns:
        The integrals (m, m, m), scaled so that factors of variance 1 give sums of variance 1; the number
        of the path that each belongs to, (m, m, m); and how many paths there are.
    """
    degrees = degree_of_component(lmax)
    m = len(degrees)
    at = {d: slice(degrees.index(d), degrees.index(d) + 2 * d + 1) for d in degrees}
    values = SphericalHarmonics(lmax).to(torch.float64)
    directions, weights = _sphere(3 * lmax)
    y = values(directions)
    integrals = torch.einsum("s,sp,sq,sk->pqk", weights, y, y, y)
    triples = product(at, at, at)
    paths = [(a, b, d) for a, b, d in triples if abs(a - b) <= d <= a + b and (a + b + d) % 2 == 0]
    coupling = torch.zeros(m, m, m, dtype=torch.float64)
    path = torch.zeros(m, m, m, dtype=torch.int64)
    for number, (a, b, d) in enumerate(paths):
        block = integrals[at[a], at[b], at[d]]
        alike = sum(end == d for _, _, end in paths)
        coupling[at[a], at[b], at[d]] = block / block.norm() * math.sqrt((2 * d + 1) / alike)
        path[at[a], at[b], at[d]] = number
    coupling[coupling.abs() < 1e-12] = 0.0
    return coupling, path, len(paths)


def _sphere(degree: int) -> tuple[Tensor, Tensor]:
    """Directions (s, 3) and weights (s,) whose sums are exact means of polynomials of that degree."""
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    angles = 2.0 * math.pi * np.arange(degree + 1) / (degree + 1)
    z, phi = np.meshgrid(nodes, angles, indexing="ij")
    s = np.sqrt(1.0 - z * z)
    directions = np.stack([s * np.cos(phi), s * np.sin(phi), z], axis=-1).reshape(-1, 3)
    each = np.repeat(weights / (2.0 * len(angles)), len(angles))
    return torch.from_numpy(directions), torch.from_numpy(each)
