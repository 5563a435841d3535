"""EGNN as a potential: messages from distances, coordinates fixed.

V. G. Satorras, E. Hoogeboom, M. Welling, "E(n) equivariant graph neural networks", ICML 2021,
arXiv 2102.09844, eqs. 3, 5 and 6. Its coordinate update (eq. 4) is left out: a potential is a function
of the coordinates it is given.

Shapes: atoms ``n``, edges ``e`` (each pair of neighbours once), features ``f``, radial functions ``k``.
"""

from typing import Final

import torch
from torch import Tensor, nn

from forcefield.basis import BesselBasis, PolynomialEnvelope
from forcefield.graph import both_directions


class EGNN(nn.Module):
    """EGNN with fixed coordinates.

        m_ij = φ_e(h_i, h_j, r_ij², b(r_ij)) u(r_ij)
        h_i += φ_h(h_i, 1/sqrt(N) Σ_j m_ij)

    Two things are added to the paper, as a potential needs them: the radial basis b(r) as edge
    attribute, and the envelope u(r), which takes every message smoothly to zero at the cutoff.
    Interatomic distances alone cannot tell all structures apart (arXiv 2201.07136); this model is the
    baseline that shows what directions add.

    Args:
        num_species: Number of chemical elements.
        cutoff: Å.
        layers: Interaction layers.
        features: Scalars per atom.
        radial: Radial basis functions.
        avg_neighbors: Average number of neighbours N within the cutoff, for scaling sums.
    """

    cutoff: Final[float]

    def __init__(
        self,
        num_species: int,
        cutoff: float = 5.0,
        layers: int = 4,
        features: int = 64,
        radial: int = 8,
        avg_neighbors: float = 10.0,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.features = features
        self.radial_basis = BesselBasis(cutoff, radial)
        self.envelope = PolynomialEnvelope(cutoff)
        self.embedding = nn.Embedding(num_species, features)
        self.layers = nn.ModuleList(
            [EGNNLayer(features, radial + 1, float(avg_neighbors) ** -0.5) for _ in range(layers)]
        )

    def forward(
        self, species: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute node features.

        Args:
            species: Index of each atom's element, (n,).
            edge_index: Atoms j and i of each pair, (2, e).
            vectors: r_j - r_i, (e, 3), Å.

        Returns:
            Scalars (n, f), and steerable features (n, 0, 0): EGNN has none.
        """
        sender, receiver, vectors = both_directions(edge_index, vectors)
        distance = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        envelope = self.envelope(distance)
        edge_features = torch.cat(
            [(distance / self.cutoff).square() * envelope, self.radial_basis(distance) * envelope],
            dim=1,
        )
        h = self.embedding(species)
        for layer in self.layers:
            h = layer(h, sender, receiver, edge_features, envelope)
        return h, h.new_zeros((h.shape[0], 0, 0))


class EGNNLayer(nn.Module):
    """One message passing step of :class:`EGNN`, equations in its docstring."""

    def __init__(self, features: int, edge_features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # φ_e's first linear map, taken per node where its input is per node.
        self.message_sender = nn.Linear(features, features)
        self.message_receiver = nn.Linear(features, features, bias=False)
        self.message_edge = nn.Linear(edge_features, features, bias=False)
        self.message_hidden = nn.Sequential(nn.SiLU(), nn.Linear(features, features), nn.SiLU())
        self.update = nn.Sequential(
            nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(
        self, h: Tensor, sender: Tensor, receiver: Tensor, edge_features: Tensor, envelope: Tensor
    ) -> Tensor:
        """Update scalars (n, f)."""
        message = (
            self.message_sender(h).index_select(0, sender)
            + self.message_receiver(h).index_select(0, receiver)
            + self.message_edge(edge_features)
        )
        message = self.message_hidden(message) * envelope
        aggregated = torch.zeros_like(h).index_add(0, receiver, message) * self.scale
        return h + self.update(torch.cat([h, aggregated], dim=1))
