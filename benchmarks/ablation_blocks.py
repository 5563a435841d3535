"""Variants of the network for ``ablation.py``: what each of its blocks is worth, and what others would add.

Each changes one thing in the equations of :class:`forcefield.hegnn.HEGNN`, whose notation the names below
follow. Parameters that a variant has no use for are not there (without products at atoms nothing reads the
last layer's X: its ``gates`` and half of its ``project`` stay, and learn nothing). All others begin with
the random numbers that they have in the network as it is.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from forcefield import hegnn
from forcefield.hegnn import (
    HEGNNLayer,
    inner_products,
    per_component,
    per_degree_linear,
)

VARIANTS = {
    "no products of neighbours": "neighbor_products",
    "no products with directions": "direction_products",
    "no products at atoms": "atom_products",
    "directions once": "directions",
    "no carried features": "carrying",
    "no mixing of channels": "mixing",
    "mixing without gates": "mixing_gates",
    "cosine envelope": "cosine_envelope",
    "attention": "attention",
    "layer norm": "layer_norm",
}
"""The switch that each variant turns."""


def use(name: str) -> None:
    """Build the model ``hegnn`` as a variant from now on, in this process."""
    switch = VARIANTS[name]
    if switch == "cosine_envelope":
        hegnn.PolynomialEnvelope = CosineEnvelope
    else:
        turned = {switch: not getattr(BlocksLayer, switch)}
        hegnn.HEGNNLayer = type("VariantLayer", (BlocksLayer,), turned)


class BlocksLayer(HEGNNLayer):
    """:class:`HEGNNLayer` with a switch for each block; as they stand here, it computes the same.

    The layer norm is that of h before messages and update; the attention multiplies a message by
    σ(a e_ij + a').
    """

    last: Final[bool]
    neighbor_products: Final[bool] = True
    direction_products: Final[bool] = True
    atom_products: Final[bool] = True
    directions: Final[bool] = True
    carrying: Final[bool] = True
    mixing: Final[bool] = True
    mixing_gates: Final[bool] = True
    attention: Final[bool] = False
    layer_norm: Final[bool] = False

    def __init__(self, *arguments: Any, last: bool) -> None:
        super().__init__(*arguments, last=last)
        c, k = self.channels, self.lmax * self.channels
        if not self.neighbor_products:
            self.message_invariants.weight = _copy(self.message_invariants.weight[:, k:])
        if not self.direction_products:
            self.message_invariants.weight = _copy(self.message_invariants.weight[:, :k])
        if not self.atom_products:
            del self.pair_up, self.update_invariants
        if not self.directions:
            self.gates.weight = _copy(self.gates.weight[k:])
        if not self.carrying:
            self.gates.weight = _copy(self.gates.weight[:k])
            self.project = _copy(self.project[:, :, :c])
        if not self.last and not self.mixing:
            del self.mix
        if not self.last and not (self.mixing and self.mixing_gates):
            del self.channel_gates
        with torch.random.fork_rng(devices=[]):  # The layers to come start as without the variant.
            if self.attention:
                self.weigh = nn.Linear(self.features, 1)
            if self.layer_norm:
                self.normalize = nn.LayerNorm(self.features)

    def before(self, h: Tensor, x: Tensor, degree: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`HEGNNLayer`; X itself stands in for V X where nothing is carried."""
        if self.layer_norm:
            h = self.normalize(h)
        projected, carried, c = per_degree_linear(x, self.project, degree), x, self.channels
        if self.carrying:
            projected, carried = projected.split([c, c], dim=2)
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
        """See :class:`HEGNNLayer`."""
        f, c, k = self.features, self.channels, self.lmax * self.channels
        products = []
        if self.neighbor_products:
            products.append(inner_products(projected_i, projected_j, self.lmax))
        if self.direction_products:
            both = projected_j + parity * projected_i
            products.append(inner_products(both, harmonics, self.lmax))
        pair_invariants = self.message_invariants(torch.cat(products, dim=1))
        radial_in, radial_out = self.message_radial(radial).split([f, f], dim=1)
        message = functional.silu(atoms + radial_in + pair_invariants)
        message = functional.silu(self.message_hidden(message)) * radial_out
        if self.attention:
            message = message * torch.sigmoid(self.weigh(message))
        gates = self.gates(message)
        towards_i, towards_j = torch.zeros_like(carried_i), torch.zeros_like(carried_j)
        if self.directions:
            directions = per_component(gates[:, :k], c, self.lmax) * harmonics
            towards_i, towards_j = towards_i + directions, towards_j + parity * directions
        if self.carrying:
            carry = per_component(gates[:, -k:], c, self.lmax)
            towards_i, towards_j = towards_i + carry * carried_j, towards_j + carry * carried_i
        return message, towards_i, towards_j

    def after(
        self, h: Tensor, x: Tensor, collected: Tensor, sent: Tensor, degree: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`HEGNNLayer`."""
        c = self.channels
        x = x + sent * self.scale
        if self.product is not None:
            a, b = per_degree_linear(x, self.factors, degree).split([c, c], dim=2)
            x = x + self.product(a, b)
        seen = h
        if self.layer_norm:
            seen = self.normalize(h)
        update = self.update_scalars(torch.cat([seen, collected * self.scale], dim=1))
        if self.atom_products:
            left, right = per_degree_linear(x, self.pair_up, degree).split([c, c], dim=2)
            update = update + self.update_invariants(inner_products(left, right, self.lmax))
        h = h + self.update_out(functional.silu(update))
        if self.mixing and not self.last:
            mixed = per_degree_linear(x, self.mix, degree)
            if self.mixing_gates:
                mixed = per_component(self.channel_gates(h), c, self.lmax) * mixed
            x = x + mixed
        return h, x


class CosineEnvelope(nn.Module):
    """u(r) = (1 + cos(π r / cutoff)) / 2, and 0 beyond: its second derivative jumps there."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances (e, 1) in Å to weights (e, 1) between 0 and 1."""
        return 0.5 + 0.5 * torch.cos(math.pi * (distance / self.cutoff).clamp(max=1.0))


def _copy(weights: Tensor) -> nn.Parameter:
    return nn.Parameter(weights.detach().clone())
