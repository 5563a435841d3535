"""Large systems piece by piece: time in proportion to the pairs, and memory for a few of them.

Whatever a layer computes for a pair is needed for two sums over the pairs of an atom, and again for
their derivative. Kept for all pairs of a box of water it takes gigabytes, and every operation has to
fetch it from memory. Here the pairs go through a layer in pieces that fit into a processor's cache,
and are computed a second time for the derivative, which costs less than to fetch them. What belongs to
atoms, a twentieth of the numbers, is differentiated by torch as usual.

Shapes: atoms ``n``, pairs ``e``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from forcefield.export import ExportedPotential, rebuild
from forcefield.graph import edge_vectors
from forcefield.hegnn import HEGNN, HEGNNLayer
from forcefield.potential import Potential

PAIRS_PER_PIECE = {"cpu": 768, "cuda": 100_000}
"""By kind of device: what fits into a cache there, or fills the device."""

MANY_PAIRS = {"cpu": 4000, "cuda": 200_000}
"""Pairs from which on compiled pieces pay; interpreted ones, with more to start, from twice as many."""


class Stage(nn.Module):
    """What pairs say to their atoms, as a function of the vectors and of features of the atoms.

    Attributes:
        differentiate_nodes: Whether the features of the atoms depend on the positions.
        node_shapes: Shapes of the features of one atom.
        sum_shapes: Shapes of the sums for one atom.
    """

    differentiate_nodes: bool
    node_shapes: list[tuple[int, ...]]
    sum_shapes: list[tuple[int, ...]]

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What is added to the sums of atoms i and of atoms j, from the features of either."""
        raise NotImplementedError


class InitialStage(Stage):
    """Directions of the neighbours: from A_Z (n, L c) to the first steerable features (n, m, c)."""

    differentiate_nodes = False

    def __init__(self, network: HEGNN) -> None:
        super().__init__()
        self.network = network
        self.node_shapes = [(network.lmax * network.channels,)]
        self.sum_shapes = [_steerable(network)]

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See :class:`Stage`."""
        towards_i, towards_j = self.network.initial(
            nodes_i[0], nodes_j[0], *self.network.geometry(vectors)
        )
        return [towards_i], [towards_j]


class LayerStage(Stage):
    """Messages of a layer: from what ``before`` gives to the sums that ``after`` takes."""

    differentiate_nodes = True
    parity: Tensor

    def __init__(self, network: HEGNN, layer: HEGNNLayer) -> None:
        super().__init__()
        self.radial_basis, self.envelope = network.radial_basis, network.envelope
        self.harmonics = network.harmonics
        self.layer = layer
        self.node_shapes = [(network.features,), _steerable(network), _steerable(network)]
        self.sum_shapes = [(network.features,), _steerable(network)]
        self.register_buffer("parity", network.parity)

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See :class:`Stage`."""
        (atoms_i, projected_i, carried_i), (atoms_j, projected_j, carried_j) = nodes_i, nodes_j
        geometry = HEGNN.geometry(self, vectors)  # type: ignore[arg-type]
        message, towards_i, towards_j = self.layer.messages(
            atoms_i + atoms_j,
            projected_i,
            projected_j,
            carried_i,
            carried_j,
            *geometry,
            self.parity,
        )
        return [message, towards_i], [message, towards_j]


def _steerable(network: HEGNN) -> tuple[int, int]:
    return (network.lmax + 1) ** 2 - 1, network.channels


def add_messages(
    stage: Stage,
    edge_index: Tensor,
    vectors: Tensor,
    nodes: Sequence[Tensor],
    sums: Sequence[Tensor],
) -> None:
    """Add what pairs say to the sums over each atom's pairs, in place.

    Args:
        stage: What they say.
        edge_index: Atoms j and i of each pair, (2, e).
        vectors: (e, 3), Å.
        nodes: Features of the atoms, (n, ...) each.
        sums: (n, ...) each.
    """
    j, i = edge_index[0], edge_index[1]
    to_i, to_j = stage.messages(
        vectors, [x.index_select(0, i) for x in nodes], [x.index_select(0, j) for x in nodes]
    )
    for total, one, other in zip(sums, to_i, to_j, strict=True):
        total.index_add_(0, i, one).index_add_(0, j, other)


def add_gradients(
    stage: Stage,
    edge_index: Tensor,
    vectors: Tensor,
    nodes: Sequence[Tensor],
    of_sums: Sequence[Tensor],
    of_nodes: Sequence[Tensor],
) -> Tensor:
    """The derivative of :func:`add_messages`.

    Args:
        stage: and the next three as there.
        edge_index: see above.
        vectors: see above.
        nodes: see above.
        of_sums: Gradients of the sums.
        of_nodes: Gradients of the features, to which theirs are added in place; empty if none are
            wanted.

    Returns:
        Gradients of the vectors, (e, 3).
    """
    j, i = edge_index[0], edge_index[1]
    with torch.enable_grad():
        points = vectors.detach().requires_grad_(True)
        leaves = [
            x.detach().index_select(0, k).requires_grad_(stage.differentiate_nodes)
            for k in (i, j)
            for x in nodes
        ]
        to_i, to_j = stage.messages(points, leaves[: len(nodes)], leaves[len(nodes) :])
        gradients = torch.autograd.grad(
            [*to_i, *to_j],
            [points, *leaves] if stage.differentiate_nodes else [points],
            [x.index_select(0, k) for k in (i, j) for x in of_sums],
        )
    of_points, *of_leaves = gradients
    for total, one, other in zip(
        of_nodes, of_leaves[: len(of_nodes)], of_leaves[len(of_nodes) :], strict=True
    ):
        total.index_add_(0, i, one).index_add_(0, j, other)
    return of_points


class PairSums(torch.autograd.Function):
    """Sums over each atom's pairs, pieces of pairs one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        stage: "PieceWise",
        pieces: list[Tensor],
        vectors: Tensor,
        *nodes: Tensor,
    ) -> tuple[Tensor, ...]:
        """The sums; ``pieces`` are the pairs' edge indices, in the order of the vectors."""
        sums = [vectors.new_zeros((len(nodes[0]), *shape)) for shape in stage.stage.sum_shapes]
        start = 0
        for edge_index in pieces:
            part = slice(start, start + edge_index.shape[1])
            stage.messages(edge_index, vectors[part], nodes, sums)
            start = part.stop
        ctx.stage, ctx.pieces = stage, pieces
        ctx.save_for_backward(vectors, *nodes)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_sums: Tensor) -> tuple[Any, ...]:
        """Gradients of the vectors and of the nodes."""
        vectors, *nodes = ctx.saved_tensors
        stage: PieceWise = ctx.stage
        of_nodes = [torch.zeros_like(x) for x in nodes] if stage.stage.differentiate_nodes else []
        of_sums = tuple(x.contiguous() for x in of_sums)
        of_vectors = torch.empty_like(vectors)
        start = 0
        for edge_index in ctx.pieces:
            part = slice(start, start + edge_index.shape[1])
            of_vectors[part] = stage.gradients(edge_index, vectors[part], nodes, of_sums, of_nodes)
            start = part.stop
        none = [None] * (0 if of_nodes else len(nodes))
        return None, None, of_vectors, *of_nodes, *none


class PieceWise:
    """A stage with the two functions that do its work.

    Args:
        stage: What pairs say.
        messages: (edge_index, vectors, nodes, sums); None for :func:`add_messages`.
        gradients: (edge_index, vectors, nodes, of_sums, of_nodes); None for :func:`add_gradients`.
    """

    def __init__(
        self,
        stage: Stage,
        messages: Callable[..., None] | None = None,
        gradients: Callable[..., Tensor] | None = None,
    ) -> None:
        self.stage = stage
        self.messages = messages or partial(add_messages, stage)
        self.gradients = gradients or partial(add_gradients, stage)


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
            h, x = layer.after(h, x, *sums, network.degree)
        isolated, _ = network(
            potential.each_species, pieces[0].new_zeros((2, 0)), vectors.new_zeros((0, 3))
        )
        interaction = potential.readout.interaction(h, isolated, species)
        return interaction.to(torch.float64) + potential.readout.reference_energies.index_select(
            0, species
        )


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
