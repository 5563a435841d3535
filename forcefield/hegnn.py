"""HEGNN: high-degree steerable features through the scalarization trick.

J. Cen, A. Li, N. Lin, Y. Ren, Z. Wang, W. Huang, "Are high-degree representations really unnecessary
in equivariant graph neural networks?", NeurIPS 2024, arXiv 2410.11443.

Shapes: atoms ``n``, edges ``e``, features ``f``, channels ``c``, degrees l = 1..L, components
``m = (L + 1)² - 1``. Node i has scalars h_i (f) and steerable features X_i^(l) (2l + 1, c); an edge
runs from sender j to receiver i with the vector r_ij = r_j - r_i, Y_ij^(l) = Y^(l)(r_ij / |r_ij|).
Nothing but inner products of equal degree couples degrees to scalars, so a layer costs O(e m c).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from forcefield.basis import (
    BesselBasis,
    PolynomialEnvelope,
    SphericalHarmonics,
    degree_of_component,
)


class HEGNN(nn.Module):
    """HEGNN as a force field.

    The published model carries one channel per degree and inserts directions once. This one carries
    many, mixes them linearly, takes inner products of projected features and inserts directions in
    every layer. With u(r) the envelope, s_l = 1/sqrt(2l + 1), N the average number of neighbours:

        X_i^(l) = 1/sqrt(N) Σ_j g_init,l(r_ij, z_i, z_j) u(r_ij) Y_ij^(l)                  (initial)
        z_ij    = s_l [ <Q_l X_i, K_l X_j>, <K_l X_j, Y_ij>, <Q_l X_i, Y_ij> ]_l           (invariants)
        m_ij    = φ(A h_j + B h_i + C b(r_ij) + D z_ij) ⊙ W b(r_ij) u(r_ij)                (message)
        X_i^(l) += 1/sqrt(N) Σ_j [ g_l(m_ij) Y_ij^(l) + g'_l(m_ij) V_l X_j^(l) ]
        h_i     += φ_h( 1/sqrt(N) Σ_j m_ij, [ <P_l X_i, R_l X_i> ]_l )
        X_i^(l) += γ_l(h_i) S_l X_i^(l)

    Args:
        num_species: Number of chemical elements.
        cutoff: Å.
        layers: Interaction layers.
        features: Scalars per atom.
        channels: Steerable channels per degree.
        lmax: Highest degree L, at least 1.
        radial: Radial basis functions.
        avg_neighbors: Average number of neighbours within the cutoff, for scaling sums.
    """

    cutoff: Final[float]

    def __init__(
        self,
        num_species: int,
        cutoff: float = 5.0,
        layers: int = 3,
        features: int = 64,
        channels: int = 16,
        lmax: int = 3,
        radial: int = 8,
        avg_neighbors: float = 10.0,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.features = features
        self.channels = channels
        self.lmax = lmax
        self.scale = float(avg_neighbors) ** -0.5
        self.radial_basis = BesselBasis(cutoff, radial)
        self.envelope = PolynomialEnvelope(cutoff)
        self.harmonics = SphericalHarmonics(lmax)
        self.embedding = nn.Embedding(num_species, features)
        self.initial_sender = nn.Embedding(num_species, lmax * channels)
        self.initial_radial = nn.Linear(radial, lmax * channels, bias=False)
        self.register_buffer(
            "degree", torch.tensor(degree_of_component(lmax)) - 1, persistent=False
        )
        self.layers = nn.ModuleList(
            [
                HEGNNLayer(features, channels, lmax, radial, self.scale, last=k == layers - 1)
                for k in range(layers)
            ]
        )

    def forward(
        self, species: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute node features.

        Args:
            species: Index of each atom's element, (n,).
            edge_index: Senders and receivers, (2, e).
            vectors: r_j - r_i, (e, 3), Å.

        Returns:
            Scalars (n, f) and steerable features (n, m, c).
        """
        sender, receiver = edge_index[0], edge_index[1]
        n = species.shape[0]
        distance = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        harmonics = self.harmonics(vectors / distance).unsqueeze(2)
        radial = self.radial_basis(distance) * self.envelope(distance)

        h = self.embedding(species)
        gate = self.initial_radial(radial) * self.initial_sender(species).index_select(0, sender)
        gate = gate.view(-1, self.lmax, self.channels).index_select(1, self.degree)
        x = torch.zeros(n, harmonics.shape[1], self.channels, dtype=h.dtype, device=h.device)
        x = x.index_add(0, receiver, gate * harmonics) * self.scale
        for layer in self.layers:
            h, x = layer(h, x, sender, receiver, radial, harmonics, self.degree)
        return h, x


class HEGNNLayer(nn.Module):
    """One interaction of :class:`HEGNN`, equations in its docstring."""

    def __init__(
        self, features: int, channels: int, lmax: int, radial: int, scale: float, last: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.lmax = lmax
        self.scale = scale
        self.last = last
        self.sizes = [2 * degree + 1 for degree in range(1, lmax + 1)]
        invariants = lmax * channels
        self.project = nn.Parameter(torch.randn(lmax, channels, 3 * channels) / channels**0.5)
        self.message_sender = nn.Linear(features, features)
        self.message_receiver = nn.Linear(features, features, bias=False)
        self.message_radial = nn.Linear(radial, 2 * features, bias=False)
        self.message_invariants = nn.Linear(3 * invariants, features, bias=False)
        self.message_hidden = nn.Linear(features, features)
        self.gates = nn.Linear(features, 2 * invariants)
        self.update_project = nn.Parameter(
            torch.randn(lmax, channels, 3 * channels) / channels**0.5
        )
        self.update_invariants = nn.Linear(invariants, features, bias=False)
        self.update_message = nn.Linear(features, features)
        self.update_out = nn.Linear(features, features)
        self.update_gate = nn.Linear(features, invariants)

    def degree_sum(self, product: Tensor) -> list[Tensor]:
        """Sum over the components of each degree, scaled by 1/sqrt(2l + 1): (·, m, c) to L times (·, c)."""
        return [part.sum(1) for part in product.split(self.sizes, 1)]

    def expand(self, gates: list[Tensor]) -> Tensor:
        """Repeat a weight per degree for its components: L times (., c) to (., m, c)."""
        return torch.cat(
            [gate.unsqueeze(1).expand(-1, self.sizes[k], -1) for k, gate in enumerate(gates)], 1
        )

    def forward(
        self,
        h: Tensor,
        x: Tensor,
        sender: Tensor,
        receiver: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        degree: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update scalars (n, f) and steerable features (n, m, c)."""
        c = self.channels
        weights = self.project.index_select(0, degree)
        q, k, v = torch.bmm(x.transpose(0, 1), weights).transpose(0, 1).split([c, c, c], 2)
        q_i = q.index_select(0, receiver)
        k_j = k.index_select(0, sender)
        v_j = v.index_select(0, sender)
        invariants = torch.cat(
            self.degree_sum(q_i * k_j)
            + self.degree_sum(k_j * harmonics)
            + self.degree_sum(q_i * harmonics),
            dim=1,
        )
        f = h.shape[1]
        filter_in, filter_out = self.message_radial(radial).split([f, f], 1)
        message = functional.silu(
            self.message_sender(h).index_select(0, sender)
            + self.message_receiver(h).index_select(0, receiver)
            + filter_in
            + self.message_invariants(invariants)
        )
        message = functional.silu(self.message_hidden(message)) * filter_out

        aggregated = torch.zeros_like(h).index_add(0, receiver, message) * self.scale
        gates = functional.linear(message, self.gates.weight).split(c, 1)
        g_y = self.expand(gates[: self.lmax])
        g_x = self.expand(gates[self.lmax :])
        x = x + torch.zeros_like(x).index_add(0, receiver, g_y * harmonics + g_x * v_j) * self.scale

        weights = self.update_project.index_select(0, degree)
        p, r, s = torch.bmm(x.transpose(0, 1), weights).transpose(0, 1).split([c, c, c], 2)
        products = torch.cat(self.degree_sum(p * r), 1)
        update = functional.silu(self.update_message(aggregated) + self.update_invariants(products))
        h = h + self.update_out(update)
        gate = self.expand(self.update_gate(h).split(c, 1))
        x = x + gate * s
        return h, x


class PublishedHEGNN(nn.Module):
    """HEGNN as published: one channel per degree, directions inserted once, no projections.

        v_i^(l) = 1/N Σ_j φ_init,l(m_ij) u(r_ij) Y_ij^(l),   m_ij = φ(h_i, h_j, b(r_ij))      (eqs. 4, 5)
        z_ij    = [ <v_i^(l), v_j^(l)> ]_l                                                    (eq. 6)
        m_ij    = φ_m(h_i, h_j, b(r_ij), z_ij) u(r_ij)                                        (eq. 7)
        h_i     += φ_h(h_i, 1/N Σ_j m_ij)
        v_i^(l) += 1/N Σ_j φ_v,l(m_ij) (v_i^(l) - v_j^(l))                                    (eq. 8)

    Harmonics have |Y_l| = 1 here, as in the paper. Three things differ, as a potential needs them:
    coordinates stay fixed; the radial basis b(r) and the envelope u(r) make messages smooth functions
    that vanish at the cutoff, for which the mean over neighbours becomes a sum over a constant N; and
    gradients flow through the harmonics (the authors' code detaches them, and then forces are not the
    derivative of the energy).

    Args:
        num_species: Number of chemical elements.
        cutoff: Å.
        layers: Interaction layers.
        features: Scalars per atom.
        lmax: Highest degree L, at least 1.
        radial: Radial basis functions.
        avg_neighbors: Average number of neighbours N within the cutoff.
    """

    cutoff: Final[float]

    def __init__(
        self,
        num_species: int,
        cutoff: float = 5.0,
        layers: int = 4,
        features: int = 64,
        lmax: int = 3,
        radial: int = 8,
        avg_neighbors: float = 10.0,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.features = features
        self.scale = 1.0 / float(avg_neighbors)
        self.radial_basis = BesselBasis(cutoff, radial)
        self.envelope = PolynomialEnvelope(cutoff)
        self.harmonics = SphericalHarmonics(lmax)
        degree = torch.tensor(degree_of_component(lmax))
        self.register_buffer("degree", degree - 1, persistent=False)
        unit_norm = (2.0 * degree.to(torch.float64) + 1.0).rsqrt()
        self.register_buffer("unit_norm", unit_norm, persistent=False)
        self.embedding = nn.Embedding(num_species, features)
        self.initial = nn.Sequential(
            nn.Linear(2 * features + radial, features), nn.SiLU(), nn.Linear(features, lmax)
        )
        self.layers = nn.ModuleList(
            [PublishedHEGNNLayer(features, lmax, radial, self.scale) for _ in range(layers)]
        )

    def forward(
        self, species: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute node features.

        Args:
            species: Index of each atom's element, (n,).
            edge_index: Senders and receivers, (2, e).
            vectors: r_j - r_i, (e, 3), Å.

        Returns:
            Scalars (n, f) and steerable features (n, m, 1).
        """
        sender, receiver = edge_index[0], edge_index[1]
        distance = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        envelope = self.envelope(distance)
        radial = self.radial_basis(distance) * envelope
        harmonics = self.harmonics(vectors / distance) * self.unit_norm

        h = self.embedding(species)
        pair = torch.cat([h.index_select(0, receiver), h.index_select(0, sender), radial], dim=1)
        gate = (self.initial(pair) * envelope).index_select(1, self.degree)
        v = torch.zeros(h.shape[0], harmonics.shape[1], dtype=h.dtype, device=h.device)
        v = v.index_add(0, receiver, gate * harmonics) * self.scale
        for layer in self.layers:
            h, v = layer(h, v, sender, receiver, radial, envelope, self.degree)
        return h, v.unsqueeze(2)


class PublishedHEGNNLayer(nn.Module):
    """One layer of :class:`PublishedHEGNN`, equations in its docstring."""

    def __init__(self, features: int, lmax: int, radial: int, scale: float) -> None:
        super().__init__()
        self.lmax = lmax
        self.scale = scale
        self.message = nn.Sequential(
            nn.Linear(2 * features + radial + lmax, features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.SiLU(),
        )
        self.update = nn.Sequential(
            nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, features)
        )
        self.gate = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, lmax)
        )

    def forward(
        self,
        h: Tensor,
        v: Tensor,
        sender: Tensor,
        receiver: Tensor,
        radial: Tensor,
        envelope: Tensor,
        degree: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update scalars (n, f) and steerable features (n, m)."""
        v_i, v_j = v.index_select(0, receiver), v.index_select(0, sender)
        inner = torch.zeros(v_i.shape[0], self.lmax, dtype=v.dtype, device=v.device)
        inner = inner.index_add(1, degree, v_i * v_j)
        message = self.message(
            torch.cat(
                [h.index_select(0, receiver), h.index_select(0, sender), radial, inner], dim=1
            )
        )
        aggregated = torch.zeros_like(h).index_add(0, receiver, message * envelope) * self.scale
        gate = (self.gate(message) * envelope).index_select(1, degree)
        v = v + torch.zeros_like(v).index_add(0, receiver, gate * (v_i - v_j)) * self.scale
        return h + self.update(torch.cat([h, aggregated], dim=1)), v
