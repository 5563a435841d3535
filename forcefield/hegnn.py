"""HEGNN: high-degree steerable features through the scalarization trick.

J. Cen, A. Li, N. Lin, Y. Ren, Z. Wang, W. Huang, "Are high-degree representations really unnecessary
in equivariant graph neural networks?", NeurIPS 2024, arXiv 2410.11443.

Shapes: atoms ``n``, edges ``e`` (each pair of neighbours once), features ``f``, channels ``c``,
degrees l = 1..L, components ``m = (L + 1)² - 1``. Node i has scalars h_i (f) and steerable features
X_i^(l) (2l + 1, c); r_ij = r_j - r_i and Y_ij^(l) = Y^(l)(r_ij / |r_ij|), so that
Y_ji^(l) = (-1)^l Y_ij^(l). Nothing but inner products of equal degree turns directions into scalars,
so a layer costs O(e m c).
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
from forcefield.errors import ConfigError
from forcefield.graph import both_directions
from forcefield.tensor_product import TensorProduct


class HEGNN(nn.Module):
    """HEGNN as a force field.

    The published model carries one channel per degree and inserts directions once. This one carries
    many, mixes them linearly, takes inner products of projected features and inserts directions in
    every layer. Messages are symmetric, e_ij = e_ji: every pair is computed once and serves both of
    its atoms. b(r) are radial functions times the envelope, N the average number
    of neighbours, linear maps of steerable features act on channels, one for each degree:

        X_i^(l) = N^-1/2 Σ_j [ A_Zj ⊙ B b(r_ij) ]_l Y_ij^(l)                              (initial)
        z_ij    = [ <P_l X_i^(l), P_l X_j^(l)>,
                    <P_l X_j^(l), Y_ij^(l)> + <P_l X_i^(l), Y_ji^(l)> ]_l                 (invariants)
        e_ij    = φ( C (h_i + h_j) + D b(r_ij) + E z_ij ) ⊙ F b(r_ij)                     (message)
        X_i^(l) += N^-1/2 Σ_j [ G_l e_ij ⊙ Y_ij^(l) + G'_l e_ij ⊙ V_l X_j^(l) ]
        X_i^(l) += T_l( A X_i, B X_i )                                      (if asked for, not last)
        h_i     += φ_h( h_i, N^-1/2 Σ_j e_ij, [ <Q_l X_i^(l), R_l X_i^(l)> ]_l )
        X_i^(l) += γ_l(h_i) ⊙ S_l X_i^(l)                                                 (not last)

    Every path from atom to atom passes through b(r_ij), which ends smoothly at the cutoff. T is
    :class:`forcefield.tensor_product.TensorProduct`.

    Args:
        num_species: Number of chemical elements.
        cutoff: Å.
        layers: Interaction layers.
        features: Scalars per atom.
        channels: Steerable channels per degree.
        lmax: Highest degree L, at least 1.
        radial: Radial basis functions.
        tensor_product: Whether atoms multiply their steerable features; takes degrees up to 2 or more.
        avg_neighbors: Average number of neighbours N within the cutoff.

    Raises:
        ConfigError: ``tensor_product`` with ``lmax`` 1.
    """

    cutoff: Final[float]
    degree: Tensor
    parity: Tensor

    def __init__(
        self,
        num_species: int,
        cutoff: float = 5.0,
        layers: int = 2,
        features: int = 64,
        channels: int = 16,
        lmax: int = 3,
        radial: int = 8,
        tensor_product: bool = False,
        avg_neighbors: float = 10.0,
    ) -> None:
        super().__init__()
        if tensor_product and lmax < 2:
            raise ConfigError(
                "tensor_product takes lmax=2 or more: products of vectors have degree 2"
            )
        self.cutoff = float(cutoff)
        self.features = features
        self.channels = channels
        self.lmax = lmax
        self.scale = float(avg_neighbors) ** -0.5
        self.radial_basis = BesselBasis(cutoff, radial)
        self.envelope = PolynomialEnvelope(cutoff)
        self.harmonics = SphericalHarmonics(lmax)
        self.embedding = nn.Embedding(num_species, features)
        self.initial_species = nn.Embedding(num_species, lmax * channels)
        self.initial_radial = nn.Linear(radial, lmax * channels, bias=False)
        degree = torch.tensor(degree_of_component(lmax))
        parity = (1.0 - 2.0 * (degree % 2)).to(torch.float64).view(1, -1, 1)
        self.register_buffer("degree", degree - 1, persistent=False)
        self.register_buffer("parity", parity, persistent=False)
        self.layers = nn.ModuleList(
            [
                HEGNNLayer(
                    features,
                    channels,
                    lmax,
                    radial,
                    self.scale,
                    tensor_product,
                    last=k == layers - 1,
                )
                for k in range(layers)
            ]
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
            Scalars (n, f) and steerable features (n, m, c).
        """
        j, i = edge_index[0], edge_index[1]
        radial, harmonics = self.geometry(vectors)
        h, weight = self.embedding(species), self.initial_species(species)
        towards_i, towards_j = self.initial(
            weight.index_select(0, i), weight.index_select(0, j), radial, harmonics
        )
        zero = harmonics.new_zeros((h.shape[0], harmonics.shape[1], self.channels))
        x = zero.index_add(0, i, towards_i).index_add(0, j, towards_j) * self.scale
        for layer in self.layers:
            h, x = layer(h, x, i, j, radial, harmonics, self.degree, self.parity)
        return h, x

    def geometry(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions times the envelope (e, k) and harmonics (e, m, 1) of pairs."""
        distance = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        radial = self.radial_basis(distance) * self.envelope(distance)
        return radial, self.harmonics(vectors / distance).unsqueeze(2)

    def initial(
        self, weight_i: Tensor, weight_j: Tensor, radial: Tensor, harmonics: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What pairs add to the initial X of atoms i and j, (e, m, c), from their A_Z (e, L c)."""
        gate = self.initial_radial(radial)
        towards_i = per_component(gate * weight_j, self.channels, self.lmax) * harmonics
        towards_j = per_component(gate * weight_i, self.channels, self.lmax) * harmonics
        return towards_i, self.parity * towards_j


class HEGNNLayer(nn.Module):
    """One interaction of :class:`HEGNN`, equations in its docstring."""

    last: Final[bool]

    def __init__(
        self,
        features: int,
        channels: int,
        lmax: int,
        radial: int,
        scale: float,
        tensor_product: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.features = features
        self.channels = channels
        self.lmax = lmax
        self.scale = scale
        self.last = last
        invariants = lmax * channels
        self.project = stacked_weights(lmax, channels, 2 * channels)
        self.message_atoms = nn.Linear(features, features)
        self.message_radial = nn.Linear(radial, 2 * features, bias=False)
        self.message_invariants = nn.Linear(2 * invariants, features, bias=False)
        self.message_hidden = nn.Linear(features, features)
        self.gates = nn.Linear(features, 2 * invariants, bias=False)
        self.pair_up = stacked_weights(lmax, channels, 2 * channels)
        self.update_scalars = nn.Linear(2 * features, features)
        self.update_invariants = nn.Linear(invariants, features, bias=False)
        self.update_out = nn.Linear(features, features)
        if not last:  # No energy depends on what would come out of these.
            self.channel_gates = nn.Linear(features, invariants)
            self.mix = stacked_weights(lmax, channels, channels)
        self.product = None
        if tensor_product and not last:
            self.factors = stacked_weights(lmax, channels, 2 * channels)
            self.product = TensorProduct(lmax, channels)

    def forward(
        self,
        h: Tensor,
        x: Tensor,
        i: Tensor,
        j: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        degree: Tensor,
        parity: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update scalars (n, f) and steerable features (n, m, c)."""
        atoms, projected, carried = self.before(h, x, degree)
        message, towards_i, towards_j = self.messages(
            atoms.index_select(0, i) + atoms.index_select(0, j),
            projected.index_select(0, i),
            projected.index_select(0, j),
            carried.index_select(0, i),
            carried.index_select(0, j),
            radial,
            harmonics,
            parity,
        )
        collected = torch.zeros_like(h).index_add(0, i, message).index_add(0, j, message)
        sent = torch.zeros_like(x).index_add(0, i, towards_i).index_add(0, j, towards_j)
        return self.after(h, x, collected, sent, degree)

    def before(self, h: Tensor, x: Tensor, degree: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What atoms bring into their pairs: C h_i (n, f), P_l X_i and V_l X_i (n, m, c)."""
        c = self.channels
        projected, carried = per_degree_linear(x, self.project, degree).split([c, c], dim=2)
        return self.message_atoms(h), projected, carried

    def messages(
        self,
        atoms: Tensor,
        projected_i: Tensor,
        projected_j: Tensor,
        carried_i: Tensor,
        carried_j: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        parity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Messages of pairs.

        Args:
            atoms: C (h_i + h_j), (e, f).
            projected_i: and the next three: P_l X and V_l X of either atom, (e, m, c).
            projected_j: see above.
            carried_i: see above.
            carried_j: see above.
            radial: (e, k).
            harmonics: (e, m, 1).
            parity: (-1)^l of each component, (1, m, 1).

        Returns:
            e_ij (e, f), and what the pair adds to the steerable features of i and of j, (e, m, c).
        """
        f, c, invariants = self.features, self.channels, self.lmax * self.channels
        pair_invariants = torch.cat(
            [
                inner_products(projected_i, projected_j, self.lmax),
                inner_products(projected_j + parity * projected_i, harmonics, self.lmax),
            ],
            dim=1,
        )
        radial_in, radial_out = self.message_radial(radial).split([f, f], dim=1)
        message = functional.silu(atoms + radial_in + self.message_invariants(pair_invariants))
        message = functional.silu(self.message_hidden(message)) * radial_out
        gates, carry_gates = self.gates(message).split([invariants, invariants], dim=1)
        directions = per_component(gates, c, self.lmax) * harmonics
        carry = per_component(carry_gates, c, self.lmax)
        return message, directions + carry * carried_j, parity * directions + carry * carried_i

    def after(
        self, h: Tensor, x: Tensor, collected: Tensor, sent: Tensor, degree: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update an atom's features by the sums of what its pairs say."""
        c, collected = self.channels, collected * self.scale
        x = x + sent * self.scale
        if self.product is not None:
            a, b = per_degree_linear(x, self.factors, degree).split([c, c], dim=2)
            x = x + self.product(a, b)
        left, right = per_degree_linear(x, self.pair_up, degree).split([c, c], dim=2)
        update = functional.silu(
            self.update_scalars(torch.cat([h, collected], dim=1))
            + self.update_invariants(inner_products(left, right, self.lmax))
        )
        h = h + self.update_out(update)
        if not self.last:
            gate = per_component(self.channel_gates(h), c, self.lmax)
            x = x + gate * per_degree_linear(x, self.mix, degree)
        return h, x


def stacked_weights(lmax: int, channels_in: int, channels_out: int) -> nn.Parameter:
    """Random matrices (L, c, d), one per degree, that keep the variance of what they multiply."""
    return nn.Parameter(torch.randn(lmax, channels_in, channels_out) * channels_in**-0.5)


def per_degree_linear(x: Tensor, weights: Tensor, degree: Tensor) -> Tensor:
    """Mix channels, with one matrix for each degree.

    Args:
        x: (n, m, c).
        weights: (L, c, d).
        degree: Index of the degree of each component, (m,).

    Returns:
        (n, m, d).
    """
    return torch.bmm(x.transpose(0, 1), weights.index_select(0, degree)).transpose(0, 1)


def inner_products(a: Tensor, b: Tensor, lmax: int) -> Tensor:
    """Inner product of each degree and channel: (·, m, c) and (·, m, c) to (·, L c)."""
    parts = (a * b).split([2 * degree + 1 for degree in range(1, lmax + 1)], dim=1)
    return torch.cat([part.sum(1) for part in parts], dim=1)


def per_component(gates: Tensor, channels: int, lmax: int) -> Tensor:
    """Repeat the gates of each degree for its components: (·, L c) to (·, m, c)."""
    parts = gates.split(channels, dim=1)
    return torch.cat([parts[k].unsqueeze(1).expand(-1, 2 * k + 3, -1) for k in range(lmax)], dim=1)


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
            edge_index: Atoms j and i of each pair, (2, e).
            vectors: r_j - r_i, (e, 3), Å.

        Returns:
            Scalars (n, f) and steerable features (n, m, 1).
        """
        sender, receiver, vectors = both_directions(edge_index, vectors)
        distance = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        envelope = self.envelope(distance)
        radial = self.radial_basis(distance) * envelope
        harmonics = self.harmonics(vectors / distance) * self.unit_norm

        h = self.embedding(species)
        pair = torch.cat([h.index_select(0, receiver), h.index_select(0, sender), radial], dim=1)
        gate = (self.initial(pair) * envelope).index_select(1, self.degree)
        v = h.new_zeros((h.shape[0], harmonics.shape[1]))
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
        inner = v.new_zeros((v_i.shape[0], self.lmax)).index_add(1, degree, v_i * v_j)
        message = self.message(
            torch.cat(
                [h.index_select(0, receiver), h.index_select(0, sender), radial, inner], dim=1
            )
        )
        aggregated = torch.zeros_like(h).index_add(0, receiver, message * envelope) * self.scale
        gate = (self.gate(message) * envelope).index_select(1, degree)
        v = v + torch.zeros_like(v).index_add(0, receiver, gate * (v_i - v_j)) * self.scale
        return h + self.update(torch.cat([h, aggregated], dim=1)), v
