"""Equivariant self-attention on scalars and vectors.

In the manner of geom2vec's equivariant mixer (Z. Pengmei, C. Lorpaiboon, S. C. Guo, J. Weare, A. R.
Dinner, arXiv 2409.19838) and of the equivariant transformer TorchMD-ET (P. Thölke, G. De Fabritiis,
arXiv 2202.02541): attention comes from invariants and moves scalars and vectors alike.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``, heads ``h``.
"""

import torch
from torch import Tensor, nn

from featurizers.mixers.sphere import SphericalNonlinearity
from featurizers.mixers.vectors import TokenUpdate, directions, normalize_vectors

RANGES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Å; from bonded neighbours to the ends of a protein."""


class EquivariantAttention(nn.Module):
    """Self-attention among tokens, followed by :class:`TokenUpdate`.

    For each head, with ŝ = LayerNorm(s), V̂ the normalised vectors, r_ij = r_j - r_i:

        α_ij = softmax_j( q(ŝ_i) · k(ŝ_j) / √d + <V̂_i Q, V̂_j K> / √(3m) + B n_ij )
        s_i += O Σ_j α_ij [ a(ŝ_j), n_ij ]
        V_i += P Σ_j α_ij V̂_j A + D Σ_j α_ij u_ij

        n_ij = [ 1 / (1 + r_ij² / ℓ²) ]_ℓ,   u_ij = r_ij / (1 Å² + r_ij²)^½

    with d scalar and m vector channels in a head and lengths ℓ of 2 to 32 Å. Directions between tokens
    make vectors of their own, so this mixer has an orientation to work with even for features without
    vectors. Rotations turn V and leave s unchanged; so do reflections without ``chiral``. With it,
    scalars take up triple products and tell mirror images apart.

    Args:
        width: Scalar channels w, a multiple of the number of heads.
        channels: Vector channels v, a multiple of the number of heads.
        heads: h.
        chiral: Whether triple products of vectors enter the scalars.
        sphere: Gauss-Legendre order of a :class:`SphericalNonlinearity` on the vectors, 0 for none.
    """

    ranges: Tensor

    def __init__(self, width: int, channels: int, heads: int, chiral: bool, sphere: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.vector_queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.register_buffer("ranges", torch.tensor(RANGES), persistent=False)
        self.distance_bias = nn.Linear(len(RANGES), heads, bias=False)
        self.output = nn.Linear(width + heads * len(RANGES), width)
        self.vector_output = nn.Linear(channels, channels, bias=False)
        self.direction_output = nn.Linear(heads, channels, bias=False)
        self.update = TokenUpdate(width, channels, chiral)
        self.sphere = SphericalNonlinearity(width, channels, sphere) if sphere else None

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, w), vectors (b, t, 3, v), positions (b, t, 3) to new (s, V)."""
        u, squared = directions(positions)
        near = 1.0 / (1.0 + squared.unsqueeze(-1) / self.ranges.square())
        bias = self.distance_bias(near).permute(0, 3, 1, 2)

        qkv = self.queries_keys_values(self.norm(scalars))
        q, k, a = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        qkv = self.vector_queries_keys_values(normalize_vectors(vectors))
        qkv = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        qv, kv, av = qkv.flatten(4)  # (b, h, t, 3 m) each
        logits = (q * q.shape[-1] ** -0.5) @ k.mT + (qv * qv.shape[-1] ** -0.5) @ kv.mT
        attention = torch.softmax(logits + bias, dim=-1)  # (b, h, t, t)

        moved = (attention @ a).transpose(1, 2).flatten(2)
        pairs = attention.transpose(1, 2) @ torch.cat([u, near], dim=-1)  # (b, t, h, 3 + ℓ)
        pointed, near = pairs.split([3, len(RANGES)], dim=-1)
        scalars = scalars + self.output(torch.cat([moved, near.flatten(2)], dim=-1))
        moved = (attention @ av).unflatten(-1, (3, -1)).permute(0, 2, 3, 1, 4).flatten(3)
        vectors = vectors + self.vector_output(moved) + self.direction_output(pointed.mT)
        if self.sphere is not None:
            scalars, vectors = self.sphere(scalars, vectors)
        return self.update(scalars, vectors)
