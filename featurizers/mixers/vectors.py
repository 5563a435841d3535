"""What may be done with vector channels: norms, inner products, triple products, gates.

Vectors (..., 3, v) turn with the frame. Linear maps over channels, factors that are invariant, and
sums over tokens keep them vectors; inner products make them scalars that rotations and reflections
leave alone, and triple products a · (b × c) pseudo-scalars, which change sign with a reflection. Only
these tell a structure from its mirror image.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``.
"""

import torch
from torch import Tensor, nn


class VectorInvariants(nn.Module):
    """Inner and triple products of learned projections A, B, C of the vector channels.

        x_k = a_k · b_k,   y_k = a_k · (b_k × c_k),   a = s(X A), b = s(X B), c = s(X C)

    s(x) = x / (1 + |x|²)^½ keeps directions and makes products of vectors no larger than 1, so that
    no frame with unusually large vectors dominates a batch.

    Args:
        channels: Vector channels v.
        size: Number of inner products, and of triple products.
        chiral: Whether to have the triple products; without them nothing here changes in a mirror.
    """

    def __init__(self, channels: int, size: int, chiral: bool) -> None:
        super().__init__()
        self.chiral = chiral
        self.size = 2 * size if chiral else size
        self.project = nn.Linear(channels, (3 if chiral else 2) * size, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., 3, v) to invariants (..., size), of which triple products come last."""
        projected = self.project(vectors)
        projected = projected * torch.rsqrt(1.0 + projected.square().sum(-2, keepdim=True))
        if not self.chiral:
            a, b = projected.chunk(2, dim=-1)
            return (a * b).sum(-2)
        a, b, c = projected.chunk(3, dim=-1)
        triple = (torch.linalg.cross(a, b, dim=-2) * c).sum(-2)
        return torch.cat([(a * b).sum(-2), triple], dim=-1)


def normalize_vectors(vectors: Tensor) -> Tensor:
    """Divide vectors (..., 3, v) by their root mean square over components and channels.

    The layer normalisation of vectors. Vectors that vanish by symmetry stay small: rounding errors
    are not made large.
    """
    return vectors * torch.rsqrt(vectors.square().mean((-2, -1), keepdim=True) + 1e-3)


class TokenUpdate(nn.Module):
    """Feed-forward part of a block, for each token by itself, with gates on its vectors.

        m, g = MLP( LayerNorm(s), invariants of V̂ ),   s += m,   V += sigmoid(g) ⊙ V̂ W

    V̂ are the normalised vectors. Without vector channels it is that of a transformer.

    Args:
        width: Scalar channels w.
        channels: Vector channels v, which may be 0.
        chiral: Whether triple products are among the invariants.
    """

    def __init__(self, width: int, channels: int, chiral: bool) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.invariants = VectorInvariants(channels, channels, chiral) if channels else None
        self.mix = nn.Linear(channels, channels, bias=False) if channels else None
        inputs = width + (self.invariants.size if self.invariants is not None else 0)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.SiLU(), nn.Linear(2 * width, width + channels)
        )

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to the same shapes."""
        inputs = self.norm(scalars)
        if self.invariants is None or self.mix is None:
            return scalars + self.mlp(inputs), vectors
        normalized = normalize_vectors(vectors)
        inputs = torch.cat([inputs, self.invariants(normalized)], dim=-1)
        message, gate = self.mlp(inputs).split([self.width, vectors.shape[-1]], dim=-1)
        gate = torch.sigmoid(gate).unsqueeze(-2)
        return scalars + message, vectors + gate * self.mix(normalized)


def directions(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors u_ij = r_ij / (1 Å² + |r_ij|²)^½ with r_ij = r_j - r_i, and squared distances.

    Args:
        positions: (b, t, 3), Å.

    Returns:
        u (b, t, t, 3), nearly unit vectors but smooth where two tokens meet, and |r_ij|²
        (b, t, t), Å².
    """
    difference = positions.unsqueeze(1) - positions.unsqueeze(2)
    squared = difference.square().sum(-1)
    return difference * torch.rsqrt(1.0 + squared).unsqueeze(-1), squared
