"""Gated multi-hop aggregation over the contacts of tokens: GAMMA.

"GAMMA: Gated multi-hop message passing for homophily-agnostic node representation in GNNs", with the
routing by agreement of S. Sabour, N. Frosst, G. E. Hinton, arXiv 1710.09829. Made for graphs whose
neighbours may be unlike: each node chooses how much of what it hears over 0, 1 and 2 hops it believes,
by how well these agree with one another.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``, hops ``p``.
"""

import torch
from torch import Tensor, nn

from featurizers.mixers.vectors import TokenUpdate, normalize_vectors
from forcefield.basis import PolynomialEnvelope

HOPS = (0, 1, 2)


class GammaBlock(nn.Module):
    """Routing by agreement among hops, followed by :class:`TokenUpdate`.

    Contacts are A_ij = u(r_ij), the polynomial envelope, which is 1 for a token with itself and falls
    smoothly to 0 at the cutoff, so that the result is smooth as contacts form and break. With
    ŝ = LayerNorm(s) and b_ip = 0 at first, R times:

        H^(p) = A^p (ŝ W) ⊙ γ_p,   Ĥ^(p) = LayerNorm(H^(p))
        α_i = softmax_p(b_i),   v_i = squash(Σ_p α_ip Ĥ_i^(p)),   b_ip += <Ĥ_i^(p), v_i>

        s_i += O √w v_i,   V_i += Σ_p α_ip N(A^p V P ⊙ δ_p)_i

    with squash(x) = |x|² / (1 + |x|²) x / |x|; √w makes the components of v_i of order one again. The
    vectors, which are our addition, take the same α, and N normalises them. Where R = 1 all α are
    equal, so R is at least 2. Reflections change nothing without ``chiral``.

    Args:
        width: Scalar channels w.
        channels: Vector channels v, which may be 0.
        cutoff: Å.
        routing: R.
        chiral: Whether triple products of vectors enter the scalars.
    """

    def __init__(
        self, width: int, channels: int, cutoff: float, routing: int, chiral: bool
    ) -> None:
        super().__init__()
        self.routing = routing
        self.envelope = PolynomialEnvelope(cutoff)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(1.0 + 0.1 * torch.randn(len(HOPS), 1, 1, width))
        self.hop_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)
        self.vector_linear: nn.Linear | None = None
        if channels:
            self.vector_linear = nn.Linear(channels, channels, bias=False)
            self.vector_scale = nn.Parameter(1.0 + 0.1 * torch.randn(len(HOPS), 1, 1, 1, channels))
        self.update = TokenUpdate(width, channels, chiral)

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, w), vectors (b, t, 3, v), positions (b, t, 3) to new (s, V)."""
        contacts = self.contacts(positions)
        hops = _hops(contacts, self.linear(self.norm(scalars)))  # (p, b, t, w)
        hops = self.hop_norm(hops * self.scale)
        agreement = hops.new_zeros(*hops.shape[:3], 1)
        for _ in range(self.routing):
            gates = torch.softmax(agreement, dim=0)
            believed = _squash((gates * hops).sum(0))
            agreement = agreement + (hops * believed).sum(-1, keepdim=True)
        scalars = scalars + self.output(believed * believed.shape[-1] ** 0.5)
        if self.vector_linear is not None:
            moved = _hops(contacts, self.vector_linear(vectors).flatten(2)).unflatten(3, (3, -1))
            moved = normalize_vectors(moved * self.vector_scale)  # (p, b, t, 3, v)
            vectors = vectors + (gates.unsqueeze(-1) * moved).sum(0)
        return self.update(scalars, vectors)

    def contacts(self, positions: Tensor) -> Tensor:
        """Contacts (b, t, t) between 0 and 1 of tokens at positions (b, t, 3) in Å."""
        difference = positions.unsqueeze(1) - positions.unsqueeze(2)
        # The small constant keeps the derivative finite for a token's distance to itself.
        return self.envelope((difference.square().sum(-1) + 1e-12).sqrt())


def _hops(contacts: Tensor, features: Tensor) -> Tensor:
    """Features (b, t, w) after 0, 1 and 2 hops, (p, b, t, w)."""
    hops = [features]
    for _ in HOPS[1:]:
        hops.append(contacts @ hops[-1])
    return torch.stack(hops)


def _squash(x: Tensor) -> Tensor:
    """|x|² / (1 + |x|²) x / |x| of vectors (..., w)."""
    squared = x.square().sum(-1, keepdim=True)
    return x * (squared + 1e-12).sqrt() / (1.0 + squared)
