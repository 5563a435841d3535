"""A potential as one flat function: energies and their derivatives, without any differentiation left.

Where a model is only evaluated, the derivative of its energy need not be found anew at every step.
It is traced once, together with the energy, into a graph of plain tensor operations; what depends on
the weights alone is computed there and then. Nothing is recorded while such a graph runs, and it is
what TorchScript interprets fastest and what a compiler can fuse.

Shapes: atoms ``n``, edges ``e``; both stay free.
"""

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.graph import CodeGen
from torch.fx.node import map_arg
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from forcefield.potential import Potential

ATOMS, PAIRS = 7, 11
"""Sizes of the placeholders: different from each other, and not 0 or 1, which are special."""

LIKE_ANOTHER = (
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
)


def trace(
    function: Callable[..., Any],
    arguments: Sequence[Sequence[Tensor] | Tensor],
    free_axes: Sequence[Sequence[int | None] | int | None],
) -> GraphModule:
    """Trace a function, and the derivatives it takes, into a graph that does not depend on lengths.

    Args:
        function: Of tensors, or of lists of tensors.
        arguments: Examples.
        free_axes: For each tensor the axis whose length may differ from call to call, or None.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)

    def placeholder(tensor: Tensor, free_axis: int | None) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.ndim
        if free_axis is not None:
            sizes[free_axis] = DimDynamic.DYNAMIC
        return mode.from_tensor(
            tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)
        )

    def placeholders(argument: Any, axis: Any) -> Any:
        if isinstance(argument, Tensor):
            return placeholder(argument, axis)
        return [placeholder(t, a) for t, a in zip(argument, axis, strict=True)]

    examples = [placeholders(t, axis) for t, axis in zip(arguments, free_axes, strict=True)]
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*examples)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def unroll(potential: Potential) -> GraphModule:
    """Trace a potential's energies and derivatives.

    Args:
        potential: In evaluation mode, its parameters not requiring gradients.

    Returns:
        A module (species index (n,), edge_index (2, e), vectors (e, 3)) -> energies relative to the
        isolated atoms (n,), eV, and their sum's derivative with respect to the vectors (e, 3), eV/Å;
        all floating-point numbers have the type of the potential's parameters.
    """
    module = _Derivatives(potential)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    key = (
        json.dumps(potential.architecture),
        len(potential.species),
        potential.readout.scale.dtype,
    )
    traced = _TRACED.get(key)
    if traced is None:
        traced = _trace_derivatives(module, tensors)
        if potential.architecture:  # Without it different models would have the same key.
            _TRACED[key] = traced
    graph = copy.deepcopy(traced)
    _bind(graph, tensors)
    _fold_constants(graph)
    simplified = CSEPass()(graph)
    return graph if simplified is None else simplified.graph_module


def flatten(
    module: nn.Module, examples: Sequence[Tensor], free_axes: Sequence[int | None]
) -> GraphModule:
    """Trace a module, and the derivatives it takes, with its weights as constants.

    Args:
        module: Its parameters do not require gradients. It may change its arguments in place.
        examples: Arguments.
        free_axes: For each argument the axis whose length may differ from call to call, or None.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    graph = _trace_module(module, tensors, examples, free_axes)
    _bind(graph, tensors)
    _fold_constants(graph)
    return graph


_TRACED: dict[tuple[str, int, torch.dtype], GraphModule] = {}
"""Graphs by architecture: tracing takes seconds, and a program often has several potentials of one."""


class _Derivatives(nn.Module):
    """What is traced; its parameters and buffers are arguments then."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.representation = potential.representation
        self.readout = potential.readout
        self.register_buffer("each_species", potential.each_species)

    def forward(
        self, species: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        isolated, _ = self.representation(
            self.each_species, edge_index.new_zeros((2, 0)), vectors.new_zeros((0, 3))
        )
        points = vectors.detach().requires_grad_(True)
        features, _ = self.representation(species, edge_index, points)
        energies = self.readout.interaction(features, isolated, species)
        return energies.detach(), torch.autograd.grad(energies.sum(), points)[0]


def _trace_derivatives(module: nn.Module, tensors: Mapping[str, Tensor]) -> GraphModule:
    """A graph of (parameters and buffers, species, edge_index, vectors)."""
    some = next(module.parameters())
    examples = (
        torch.zeros(ATOMS, dtype=torch.int64, device=some.device),
        torch.zeros(2, PAIRS, dtype=torch.int64, device=some.device),
        some.new_ones((PAIRS, 3)),
    )
    graph = _trace_module(module, tensors, examples, (0, 1, 0))
    _free_types_and_devices(graph)
    return graph


def _trace_module(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    examples: Sequence[Tensor],
    free_axes: Sequence[int | None],
) -> GraphModule:
    """A graph of (parameters and buffers, arguments)."""

    def function(weights: Sequence[Tensor], *inputs: Tensor) -> Any:
        return functional_call(module, dict(zip(tensors, weights, strict=True)), inputs)

    return trace(function, (list(tensors.values()), *examples), ([None] * len(tensors), *free_axes))


def _bind(module: GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Turn the first arguments of a graph into constants of the module."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, (name, tensor) in zip(placeholders, tensors.items(), strict=False):
        constant_name = f"weight_{name.replace('.', '_')}"
        module.register_buffer(constant_name, tensor.detach())
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(constant_name)
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)
    # The arguments came as a list and three tensors; three tensors are left.
    module.graph.set_codegen(CodeGen())


def _free_types_and_devices(module: GraphModule) -> None:
    """Tensors made like another one follow it: the graph may be converted and moved as a whole."""
    for node in module.graph.nodes:
        if node.target in LIKE_ANOTHER:
            node.kwargs = {}


def _fold_constants(module: GraphModule) -> None:
    """Compute at once what depends on constants alone, and drop what only matters to autograd."""
    graph = module.graph
    constants: dict[Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            constants[node] = getattr(module, node.target)
        elif node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function" and _known(node.all_input_nodes, constants):
            arguments = map_arg(node.args, constants.__getitem__)
            options = map_arg(node.kwargs, constants.__getitem__)
            constants[node] = node.target(*arguments, **options)
    for node, value in constants.items():
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        if _known(node.users, constants):
            continue
        name = f"constant_{node.name}"
        module.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name not in used]:
        delattr(module, name)
    module.recompile()


def _known(nodes: Collection[Node], constants: Mapping[Node, Any]) -> bool:
    return len(nodes) > 0 and all(node in constants for node in nodes)


def for_torchscript(module: GraphModule) -> nn.Module:
    """The same graph in the words that TorchScript knows: operators without the names of overloads."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif node.target is torch.ops.aten.sym_numel.default:
            node.op, node.target = "call_method", "numel"
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
    module.recompile()
    return module
