"""The pieces of large systems (:mod:`forcefield.pieces`) compiled to libraries.

Two for the initial features, and two that all layers share: what pairs say, and its derivative.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from forcefield.export import ExportedPotential
from forcefield.libraries import Shelf, Source, example_pairs
from forcefield.pair_sums import PieceWise, add_gradients, add_messages
from forcefield.pieces import PieceWisePotential, piecewise

log = logging.getLogger(__name__)


def compile_pieces(
    exported: ExportedPotential, shelf: Shelf
) -> tuple[PieceWisePotential, PieceWisePotential]:
    """Compile a potential for many pairs, or take its libraries from the shelf.

    Args:
        exported: With HEGNN, not compiled.
        shelf: Its own.

    Returns:
        The potential in pieces, compiled and interpreted.

    Raises:
        CompilationError: There is no C++ compiler, or torch cannot compile it.
    """
    if shelf.device.type == "cpu" and not shelf.has("messages-layer"):
        log.warning(
            "compiling the potential for large systems: a minute, once for its architecture (kept "
            "in %s)",
            shelf.folder,
        )
    interpreted = piecewise(exported)
    compiled = [
        _compiled_stage(stage, shelf, number) for number, stage in enumerate(interpreted.stages)
    ]
    return PieceWisePotential(interpreted.potential, compiled), interpreted


def _compiled_stage(stage: PieceWise, shelf: Shelf, number: int) -> PieceWise:
    """A stage whose functions are libraries, which all layers share."""
    kind = "layer" if number else "initial"
    messages, gradients = (
        shelf.take(f"{part}-{kind}", f"{part}-{number}", partial(_part, stage, part, shelf.device))
        for part in ("messages", "gradients")
    )

    def run_messages(
        edge_index: Tensor, vectors: Tensor, nodes: Sequence[Tensor], sums: Sequence[Tensor]
    ) -> None:
        messages(edge_index, vectors, *nodes, *sums)

    def run_gradients(
        edge_index: Tensor,
        vectors: Tensor,
        nodes: Sequence[Tensor],
        of_sums: Sequence[Tensor],
        of_nodes: Sequence[Tensor],
    ) -> Tensor:
        return gradients(edge_index, vectors, *nodes, *of_sums, *of_nodes)[0]

    return PieceWise(stage.stage, run_messages, run_gradients)


class _Part(nn.Module):
    """One of a stage's functions, of tensors one by one."""

    def __init__(self, stage: PieceWise, part: str) -> None:
        super().__init__()
        self.stage = stage.stage
        self.part = part

    def forward(self, edge_index: Tensor, vectors: Tensor, *arrays: Tensor) -> Tensor | None:
        nodes = arrays[: len(self.stage.node_shapes)]
        others = arrays[len(nodes) :]
        if self.part == "messages":
            add_messages(self.stage, edge_index, vectors, nodes, others)
            return None
        of_sums = others[: len(self.stage.sum_shapes)]
        of_nodes = others[len(of_sums) :]
        return add_gradients(self.stage, edge_index, vectors, nodes, of_sums, of_nodes)


def _part(stage: PieceWise, part: str, device: torch.device) -> Source:
    from forcefield.unrolled import flatten

    module = _Part(stage, part)
    some = next(module.parameters())
    n, e = 7, 11
    shapes = [*stage.stage.node_shapes, *stage.stage.sum_shapes]
    if part == "gradients" and stage.stage.differentiate_nodes:
        shapes += stage.stage.node_shapes
    arrays = [some.new_ones((n, *shape)) for shape in shapes]
    examples = [example_pairs(n, e).to(device), some.new_ones((e, 3)), *arrays]
    axes = [(1, "pairs"), (0, "pairs"), *((0, "atoms") for _ in arrays)]
    graph = flatten(module, examples, [axis for axis, _ in axes])
    return Source(graph, examples, axes, {})
