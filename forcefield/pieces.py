"""Large systems piece by piece: time in proportion to the pairs, and memory for a few of them.

Whatever a layer computes for a pair is needed for two sums over the pairs of an atom, and again for
their derivative. Kept for all pairs of a box of water it takes gigabytes, and every operation has to
fetch it from memory. Here the pairs go through a layer in pieces that fit into a processor's cache,
and are computed a second time for the derivative, which costs less than to fetch them. What belongs to
atoms, a twentieth of the numbers, is differentiated by torch as usual.

Shapes: atoms ``n``, pairs ``e``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forcefield.export import ExportedPotential, rebuild
from forcefield.graph import edge_vectors
from forcefield.pair_sums import PairSums, PieceWise
from forcefield.potential import Potential
from forcefield.stages import InitialStage, LayerStage

PAIRS_PER_PIECE = {"cpu": 768, "cuda": 100_000}
"""By kind of device: what fits into a cache there, or fills the device."""

MANY_PAIRS = {"cpu": 4000, "cuda": 200_000}
"""Pairs from which on compiled pieces pay; interpreted ones, with more to start, from twice as many."""

ATOMS_PER_BLOCK = 1000
"""Atoms whose steerable features are multiplied at once."""


class PieceWisePotential(nn.Module):
    """A potential with HEGNN whose pairs are evaluated in pieces.

    Args:
        potential: In evaluation mode, its parameters not requiring gradients.
        stages: The initial stage and those of the layers.
        pairs_per_piece: None for what is fast on the device.
    """

    def __init__(
        self, potential: Potential, stages: Sequence[PieceWise], pairs_per_piece: int | None = None
    ) -> None:
        super().__init__()
        self.potential = potential
        self.stages = stages
        self.pairs_per_piece = pairs_per_piece

    def forward(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        edge_index: Tensor,
        cell_shifts: Tensor,
        cell: Tensor,
        batch: Tensor,
        compute_stress: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate; see :meth:`Potential.forward`. Nothing that it gives can be differentiated."""
        potential = self.potential
        vectors = edge_vectors(positions.detach(), edge_index, cell_shifts, cell.detach(), batch)
        vectors = vectors.to(potential.readout.scale.dtype).requires_grad_(True)
        size = self.pairs_per_piece or PAIRS_PER_PIECE[kind_of(vectors.device)]
        number = max(1, -(-edge_index.shape[1] // size))
        pieces = [piece.contiguous() for piece in edge_index.tensor_split(number, dim=1)]
        species = potential.species_index.index_select(0, atomic_numbers)
        with torch.enable_grad():
            energies = self._energies(species, pieces, vectors)
            gradient = torch.autograd.grad(energies.sum(), vectors)[0]
        return potential.collect(
            energies.detach(),
            gradient,
            vectors.detach(),
            positions.detach(),
            edge_index,
            cell.detach(),
            batch,
            compute_stress,
        )

    def _energies(self, species: Tensor, pieces: list[Tensor], vectors: Tensor) -> Tensor:
        potential = self.potential
        network: Any = potential.representation
        h, weight = network.embedding(species), network.initial_species(species)
        initial, *stages = self.stages
        (x,) = PairSums.apply(initial, pieces, vectors, weight)
        x = x * network.scale
        for layer, stage in zip(network.layers, stages, strict=True):
            nodes = [node.contiguous() for node in layer.before(h, x, network.degree)]
            sums = PairSums.apply(stage, pieces, vectors, *nodes)
            h, x = _after(layer, h, x, sums, network.degree)
        isolated, _ = network(
            potential.each_species, pieces[0].new_zeros((2, 0)), vectors.new_zeros((0, 3))
        )
        interaction = potential.readout.interaction(h, isolated, species)
        return interaction.to(torch.float64) + potential.readout.reference_energies.index_select(
            0, species
        )


def _after(
    layer: Any, h: Tensor, x: Tensor, sums: Sequence[Tensor], degree: Tensor
) -> tuple[Tensor, Tensor]:
    """The atoms' part of a layer; products, which take tens of kilobytes per atom, in blocks of them."""
    if layer.product is None:
        h, x = layer.after(h, x, *sums, degree)
        return h, x
    blocks = zip(*(tensor.split(ATOMS_PER_BLOCK) for tensor in (h, x, *sums)), strict=True)
    parts = [
        # There is nothing random: to keep the state of a GPU's generator is to wait for it.
        checkpoint(layer.after, *block, degree, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


class Interpreted:
    """An exported potential that is not compiled: in pieces where there are many pairs.

    Args:
        exported: Any potential; those without HEGNN have no pieces.
    """

    def __init__(self, exported: ExportedPotential) -> None:
        self.exported = exported
        self._pieces: PieceWisePotential | None = None

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Evaluate; see :meth:`Potential.forward`."""
        result: dict[str, Tensor]
        if not in_pieces(self.exported, inputs[2]):
            result = self.exported.module(*inputs)
            return result
        if self._pieces is None:
            self._pieces = piecewise(self.exported)
        result = self._pieces(*inputs)
        return result


def in_pieces(exported: ExportedPotential, edge_index: Tensor) -> bool:
    """Whether :class:`Interpreted` evaluates pairs (2, e) in pieces."""
    many = edge_index.shape[1] > 2 * MANY_PAIRS[kind_of(edge_index.device)]
    return many and has_pieces(exported)


def kind_of(device: torch.device) -> str:
    """The kind of a device, as :data:`MANY_PAIRS` has it."""
    return "cpu" if device.type == "cpu" else "cuda"


def has_pieces(exported: ExportedPotential) -> bool:
    """Whether a potential can be evaluated in pieces."""
    return bool(exported.metadata["architecture"]["name"] == "hegnn")


def piecewise(exported: ExportedPotential) -> PieceWisePotential:
    """An exported potential with HEGNN, interpreted in pieces."""
    potential = rebuild(exported)
    network: Any = potential.representation
    stages = [InitialStage(network), *(LayerStage(network, layer) for layer in network.layers)]
    return PieceWisePotential(potential, [PieceWise(stage) for stage in stages])
