"""A whole training step as one compiled function: loss, its parts, and the gradients of all weights.

Forces are a derivative of the energy, and their loss is differentiated once more; ``torch.compile``
cannot follow a second derivative through its own. So the step is first unrolled by tracing into one
flat graph without any derivative left in it (``make_fx``), and that graph is what torch compiles:
some thousand small operations become some dozens of fused loops. Numbers of atoms, pairs and
structures stay free, so that one compilation serves every batch; torch keeps it on disk for the
next run of the same architecture.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.func import functional_call
from torch.fx import GraphModule

from forcefield import AtomicGraph
from forcefield.errors import ForceFieldError
from forcefield.unrolled import trace
from training.graphs import LabelledGraph, inputs_of

Losses = Callable[[dict[str, Tensor], LabelledGraph], tuple[Tensor, Tensor]]
"""From a potential's output and the labels to the loss and to sums that are only reported."""

FREE_AXES = (0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
"""The axis of each of a batch's tensors whose length differs from batch to batch. Not all have the last
one, the stress."""

TABLES_OF_ELEMENTS = (
    "embedding.weight",
    "initial_species.weight",
    "scale",
    "reference_energies",
    "each_species",
)
"""Weights and constants with a row for each element; their number stays free, too."""


class CompilationError(ForceFieldError):
    """The training step could not be compiled."""


class CompiledStep:
    """Evaluates a loss and leaves its gradients to ``backward``, all in one compiled function.

    Args:
        potential: A potential, or another network on the same graphs; its parameters are read at
            every call.
        losses: What to compute from the potential's output.
        backend: Of ``torch.compile``.
        with_stress: Whether the batches have stresses: all of them, or none.
    """

    def __init__(
        self,
        potential: nn.Module,
        losses: Losses,
        backend: str = "inductor",
        with_stress: bool = False,
    ) -> None:
        self.parameters = dict(potential.named_parameters())
        self.buffers = dict(potential.named_buffers())
        step = flat_step(potential, losses)
        graph = _unroll(step, self.parameters, self.buffers, with_stress)
        self.compiled = torch.compile(graph, fullgraph=True, backend=backend)

    def __call__(self, batch: LabelledGraph) -> tuple[Tensor, Tensor]:
        """Loss, ready for ``backward``, and the reported sums.

        Args:
            batch: At least two structures: torch compiles anew for a single one.

        Raises:
            CompilationError: torch could not compile it.
        """
        data = as_tensors(batch)
        weights = [p.detach() for p in self.parameters.values()]
        constants = list(self.buffers.values())
        for tensor, axis in zip(data, FREE_AXES[: len(data)], strict=True):
            torch._dynamo.mark_dynamic(tensor, axis)
        for name, tensor in zip(
            [*self.parameters, *self.buffers], [*weights, *constants], strict=True
        ):
            if name.endswith(TABLES_OF_ELEMENTS):
                torch._dynamo.mark_dynamic(tensor, 0)
        try:
            with torch.no_grad():
                loss, sums, *gradients = self.compiled(weights, constants, data)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            if _remove_truncated_library(reason):
                torch._dynamo.reset()
                return self(batch)
            raise CompilationError(
                f"the training step could not be compiled: {reason}. It takes a C++ compiler and "
                "Python's header files; hardware.compile=false does without"
            ) from error
        return _KnownGradients.apply(loss, gradients, *self.parameters.values()), sums


def flat_step(potential: nn.Module, losses: Losses) -> Callable[..., list[Tensor]]:
    """A step as a function of nothing but tensors, to be traced; puts the potential into training mode.

    Args:
        potential: Its parameters and buffers become arguments.
        losses: What to compute from the potential's output.

    Returns:
        A function (parameters, buffers, :func:`as_tensors`) -> [loss, sums, gradient of each parameter].
    """
    parameter_names = [name for name, _ in potential.named_parameters()]
    buffer_names = [name for name, _ in potential.named_buffers()]

    def step(parameters: list[Tensor], buffers: list[Tensor], data: list[Tensor]) -> list[Tensor]:
        batch = as_batch(data)
        state = dict(zip(parameter_names, parameters, strict=True))
        state |= dict(zip(buffer_names, buffers, strict=True))
        output = functional_call(potential, state, inputs_of(batch))
        loss, sums = losses(output, batch)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return [loss.detach(), sums, *gradients]

    potential.train()
    return step


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor | None, ...]:
        factor = scale[0]
        return None, None, *torch._foreach_mul(ctx.gradients, factor.to(ctx.gradients[0].dtype))


def as_tensors(batch: LabelledGraph) -> list[Tensor]:
    """A batch's tensors, in the order of :data:`FREE_AXES`."""
    tensors = [*batch.graph.tensors(), batch.energy, batch.forces, batch.num_atoms]
    return tensors if batch.stress is None else [*tensors, batch.stress]


def as_batch(tensors: Sequence[Tensor]) -> LabelledGraph:
    """The batch of :func:`as_tensors`."""
    return LabelledGraph(AtomicGraph(*tensors[:6]), *tensors[6:])


def _remove_truncated_library(reason: str) -> bool:
    """Remove a library that a compilation left half-written on the disk when it was interrupted."""
    found = re.search(r"ImportError: (\S+\.so): file too short", reason)
    if not found or not Path(found[1]).is_file():
        return False
    Path(found[1]).unlink()
    return True


def _unroll(
    step: Callable[..., list[Tensor]],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    with_stress: bool,
) -> GraphModule:
    """Trace a step on placeholders: weights of fixed shape, data of free length."""
    atoms, pairs, structures = 7, 11, 3
    device = next(iter(parameters.values())).device
    double: dict[str, Any] = {"dtype": torch.float64, "device": device}
    index: dict[str, Any] = {"dtype": torch.int64, "device": device}
    data = [
        torch.ones(atoms, 3, **double),
        torch.ones(atoms, **index),
        torch.zeros(2, pairs, **index),
        torch.zeros(pairs, 3, **double),
        torch.zeros(structures, 3, 3, **double),
        torch.zeros(atoms, **index),
        torch.zeros(structures, **double),
        torch.zeros(atoms, 3, **double),
        torch.ones(structures, **double),
    ]
    if with_stress:
        data.append(torch.zeros(structures, 3, 3, **double))

    def table(name: str) -> int | None:
        return 0 if name.endswith(TABLES_OF_ELEMENTS) else None

    return trace(
        step,
        (
            [p.detach().requires_grad_(True) for p in parameters.values()],
            list(buffers.values()),
            data,
        ),
        ([table(n) for n in parameters], [table(n) for n in buffers], FREE_AXES[: len(data)]),
    )
