"""First parts of every network: features are standardised and embedded in a common width.

Shapes: frames ``f`` or ``b``, tokens ``t``, channels ``c`` of scalars and ``cv`` of vectors, widths
``w`` and ``v``.
"""

import numpy as np
import torch
from torch import Tensor, nn

from featurizers.mixers.vectors import VectorInvariants
from forcefield.errors import DataError

LEAST_SPREAD = 1e-3
"""Of the average spread: channels that vary less than this are not blown up to the size of others."""


class Standardizer(nn.Module):
    """Scalars of zero mean and unit spread, vectors with components of unit size.

    Statistics belong to each token and channel, or to each channel alone where tokens are not to be
    told apart. Vectors are only scaled, so that they still turn with the frame.

    Args:
        scalar_channels: c.
        vector_channels: cv.
        tokens: t for statistics of each token, 1 for common ones.
    """

    scalar_mean: Tensor
    scalar_spread: Tensor
    vector_scale: Tensor

    def __init__(self, scalar_channels: int, vector_channels: int, tokens: int) -> None:
        super().__init__()
        self.register_buffer("scalar_mean", torch.zeros(tokens, scalar_channels))
        self.register_buffer("scalar_spread", torch.ones(tokens, scalar_channels))
        self.register_buffer("vector_scale", torch.ones(tokens, 1, vector_channels))

    def fit(self, scalars: Tensor | np.ndarray, vectors: Tensor | np.ndarray) -> None:
        """Take the statistics of training data.

        Args:
            scalars: (f, t, c).
            vectors: (f, t, 3, cv).

        Raises:
            DataError: There are no frames, or a feature is not finite.
        """
        s, x = torch.as_tensor(scalars), torch.as_tensor(vectors)
        if len(s) == 0:
            raise DataError("there are no frames to take means and spreads of features from")
        over = (0,) if len(self.scalar_mean) > 1 else (0, 1)
        variance, mean = torch.var_mean(s, dim=over, correction=0)
        # The norm over an axis makes no copy of features that may fill half of the memory.
        size = torch.linalg.vector_norm(x, dim=(*over, 2))
        components = 3 * len(x) * (x.shape[1] if len(over) == 2 else 1)
        for statistics, name in ((variance, "scalar"), (size, "vector")):
            if not torch.isfinite(statistics).all():
                raise DataError(f"a {name} feature of the training data is not finite")
        self.scalar_mean.copy_(mean.view_as(self.scalar_mean))
        self.scalar_spread.copy_(_spread(variance.sqrt()).view_as(self.scalar_spread))
        scale = _spread(size / components**0.5)
        self.vector_scale.copy_(scale.view_as(self.vector_scale))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, c) and vectors (b, t, 3, cv) to the same shapes."""
        return (scalars - self.scalar_mean) / self.scalar_spread, vectors / self.vector_scale


def _spread(spread: Tensor) -> Tensor:
    """What to divide by: the spread, unless that is next to nothing."""
    if spread.numel() == 0 or not spread.any():
        return torch.ones_like(spread)
    return spread.clamp_min(LEAST_SPREAD * float(spread.square().mean().sqrt()))


class Embedding(nn.Module):
    """Linear maps of standardised features to the width of the blocks.

        s_i = α_i ⊙ (W ŝ_i + U [invariants of V̂_i] + b) + τ_i,   V_i = β_i ⊙ (V̂_i P)

    Inner and triple products of a token's own vectors enter here, so that mixers of scalars know the
    shape and the handedness of its surroundings. Tokens of a molecule have a place in the chain and
    keep it in all frames: scales α, β and shifts τ of their own (``token_identity``) tell them apart.
    Without them permuted tokens give permuted results.

    Args:
        scalar_channels: c.
        vector_channels: cv.
        tokens: t.
        width: w.
        vector_width: v, which may be 0. Where there are no vectors (cv = 0) they start as zeros.
        chiral: Whether triple products are among the invariants.
        token_identity: Whether tokens are told apart.
    """

    def __init__(
        self,
        scalar_channels: int,
        vector_channels: int,
        tokens: int,
        width: int,
        vector_width: int,
        chiral: bool,
        token_identity: bool,
    ) -> None:
        super().__init__()
        self.vector_width = vector_width
        self.scalars = nn.Linear(scalar_channels, width)
        self.vectors: nn.Linear | None = None
        self.invariants: VectorInvariants | None = None
        self.from_invariants: nn.Linear | None = None
        if vector_channels and vector_width:
            self.vectors = nn.Linear(vector_channels, vector_width, bias=False)
            self.invariants = VectorInvariants(vector_channels, vector_width, chiral)
            self.from_invariants = nn.Linear(self.invariants.size, width, bias=False)
        self.token_identity = token_identity
        if token_identity:
            self.scalar_scale = nn.Parameter(1.0 + 0.1 * torch.randn(tokens, width))
            self.scalar_shift = nn.Parameter(0.5 * torch.randn(tokens, width))
            if self.vectors is not None:
                self.vector_scale = nn.Parameter(1.0 + 0.1 * torch.randn(tokens, 1, vector_width))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, c) and vectors (b, t, 3, cv) to (b, t, w) and (b, t, 3, v)."""
        s = self.scalars(scalars)
        if self.vectors is None or self.invariants is None or self.from_invariants is None:
            x = scalars.new_zeros(*scalars.shape[:2], 3, self.vector_width)
        else:
            s = s + self.from_invariants(self.invariants(vectors))
            x = self.vectors(vectors)
            if self.token_identity:
                x = self.vector_scale * x
        if self.token_identity:
            s = self.scalar_scale * s + self.scalar_shift
        return s, x
