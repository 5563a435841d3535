"""Sums over the pairs of each atom, pieces of pairs one after the other, and their derivative.

Nothing that belongs to a pair is kept: it is computed a second time for the derivative.

Shapes: atoms ``n``, pairs ``e``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcefield.stages import Stage


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
