"""Poolings for baselines: all tokens side by side, and means over tokens.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``, invariants ``p``.
"""

import torch
from torch import Tensor, nn

from featurizers.mixers.vectors import VectorInvariants


class Flatten(nn.Module):
    """All scalars of all tokens, the norms of all vectors, and products of vectors of all tokens.

    The input of a plain VAMPNet. Every token has its place, so permuted tokens give other results.

    Args:
        scalar_channels: w.
        vector_channels: v.
        tokens: t.
        products: Inner products (and triple products) of linear combinations of all t v vectors.
        chiral: Whether to have triple products, without which mirror images are the same.
    """

    def __init__(
        self, scalar_channels: int, vector_channels: int, tokens: int, products: int, chiral: bool
    ) -> None:
        super().__init__()
        vectors = tokens * vector_channels
        self.invariants = VectorInvariants(vectors, products, chiral) if vectors else None
        self.size = tokens * scalar_channels + vectors
        if self.invariants is not None:
            self.size += self.invariants.size

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to invariants (b, size)."""
        parts = [scalars.flatten(1)]
        if self.invariants is not None:
            # The small constant keeps the derivative of a norm finite where a vector vanishes.
            norms = (vectors.square().sum(2) + 1e-6).sqrt()
            parts += [norms.flatten(1), self.invariants(vectors.transpose(1, 2).flatten(2))]
        return torch.cat(parts, dim=1)


class VectorPooling(nn.Module):
    """Inner and triple products of pooled vectors, mean_i g(s_i) ⊙ V_i with a linear gate g.

    Args:
        width: Scalar channels w.
        channels: Vector channels v.
        gated: Whether the scalars weight the vectors.
        chiral: Whether to have triple products, without which mirror images are the same.
    """

    def __init__(self, width: int, channels: int, gated: bool, chiral: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, channels) if gated else None
        self.invariants = VectorInvariants(channels, channels, chiral)
        self.size = self.invariants.size

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to invariants (b, size)."""
        if self.gate is not None:
            vectors = (1.0 + self.gate(scalars)).unsqueeze(2) * vectors
        return self.invariants(vectors.mean(1))


class MeanPooling(nn.Module):
    """Mean of the scalars and products of pooled vectors.

    Args:
        width: Scalar channels w.
        channels: Vector channels v, which may be 0.
        gated: Whether the scalars weight the vectors.
        chiral: See :class:`VectorPooling`.
    """

    def __init__(self, width: int, channels: int, gated: bool, chiral: bool) -> None:
        super().__init__()
        self.vectors = VectorPooling(width, channels, gated, chiral) if channels else None
        self.size = width + (self.vectors.size if self.vectors is not None else 0)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to invariants (b, size)."""
        mean = scalars.mean(1)
        if self.vectors is None:
            return mean
        return torch.cat([mean, self.vectors(scalars, vectors)], dim=1)
