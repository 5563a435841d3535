"""Muon: weight matrices move along orthogonalised momentum, everything else as AdamW says.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; scale of the updates
from J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, so that one learning rate
serves both kinds of parameters.

``torch.optim.Muon`` takes two-dimensional parameters one by one, in bfloat16. A force field has many
small matrices, some of them stacked (one per degree): here all matrices of a shape are orthogonalised
together, in bfloat16 only where that is faster, and stacked ones are treated as the matrices they are. On
a GPU, where the number of operations counts and not their size, matrices of all shapes are padded to one.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic that drives singular values towards 1 (Jordan et al.)."""

MOMENTUM = 0.95
BETAS = (0.9, 0.999)
EPSILON = 1e-8

SMALLEST_MATRIX = 5
"""Rows or columns below which a parameter counts as a set of vectors."""

BFLOAT16_FROM = 96
"""Rows and columns from which a processor with bfloat16 instructions multiplies in it: less than half of
the time, and singular values need not be closer to 1 than a fifth anyway."""


class Muon(torch.optim.Optimizer):
    """Muon for the weight matrices of a network, AdamW with AMSGrad for all other parameters.

    A step waits for nothing on a GPU and can be recorded in a CUDA graph; the learning rate of a group
    may be a tensor (), float32, on the parameters' device then.

    Args:
        matrices: Parameters (..., rows, columns); leading dimensions count stacked matrices.
        others: Parameters of any shape.
        lr: Learning rate of both; an update of a matrix has the root mean square 0.2 lr, about what
            AdamW's has.
        weight_decay: Decay of the matrices; the others do not decay.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(matrices), "matrices": True, "weight_decay": weight_decay},
            {"params": list(others), "matrices": False, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; a closure, if given, evaluates the gradients before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["matrices"]:
                self._step_matrices(parameters, group["lr"], group["weight_decay"])
            else:
                self._step_others(parameters, group["lr"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, also one that was saved on another device."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            # The only tensor that torch leaves where it was.
            state["step"] = state["step"].to(parameter.device)

    def _step_matrices(
        self, parameters: list[nn.Parameter], lr: float | Tensor, decay: float
    ) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._state(p, "momentum")["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        # Nesterov's look ahead.
        directions = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        if decay:
            torch._foreach_mul_([p.data for p in parameters], 1.0 - lr * decay)
        together = _padded if parameters[0].is_cuda else _shape_by_shape
        updates = together(directions)
        targets: list[Tensor] = list(parameters)
        if isinstance(lr, Tensor):
            torch._foreach_mul_(updates, lr)
            torch._foreach_sub_(targets, updates)
        else:
            torch._foreach_add_(targets, updates, alpha=-lr)

    def _step_others(self, parameters: list[nn.Parameter], lr: float | Tensor) -> None:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        states = [self._state(p, *names) for p in parameters]
        # One operation on a GPU; on a CPU the other implementation takes no learning rate in a tensor.
        fused = parameters[0].is_cuda or isinstance(lr, Tensor)
        adamw(
            params=list(parameters),
            grads=[p.grad for p in parameters if p.grad is not None],
            exp_avgs=[state["exp_avg"] for state in states],
            exp_avg_sqs=[state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[state["max_exp_avg_sq"] for state in states],
            state_steps=[state["step"] for state in states],
            foreach=not fused,
            fused=fused,
            amsgrad=True,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def _state(self, parameter: nn.Parameter, *names: str) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for name in names:
                state[name] = torch.zeros_like(parameter)
        return state


def orthogonalize(matrices: Tensor) -> Tensor:
    """Replace the singular values of matrices (k, rows, columns) by values between about 0.7 and 1.2."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-12)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x if wide else x.transpose(1, 2)


def _shape_by_shape(directions: Sequence[Tensor]) -> list[Tensor]:
    """Updates of matrices (..., rows, columns) for a learning rate of 1."""
    updates = list(directions)
    by_shape: dict[torch.Size, list[int]] = {}
    for index, direction in enumerate(directions):
        by_shape.setdefault(direction.shape[-2:], []).append(index)
    for shape, indices in by_shape.items():
        stacked = torch.cat([directions[k].reshape(-1, *shape) for k in indices])
        moves = orthogonalize(stacked.to(_precision(stacked))).to(stacked.dtype) * _size(shape)
        sizes = [directions[k].numel() // shape.numel() for k in indices]
        for k, move in zip(indices, moves.split(sizes), strict=True):
            updates[k] = move.view_as(directions[k])
    return updates


def _precision(matrices: Tensor) -> torch.dtype:
    """What matrices (k, rows, columns) are orthogonalised in."""
    fast = matrices.dtype == torch.float32 and matrices.device.type == "cpu"
    large = min(matrices.shape[1:]) >= BFLOAT16_FROM
    return torch.bfloat16 if fast and large and _has_bfloat16() else matrices.dtype


@cache
def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; torch has no public function that tells."""
    tell = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return tell is not None and tell()


def _padded(directions: Sequence[Tensor]) -> list[Tensor]:
    """The same in two dozen operations: rows and columns of zeros stay zero and change nothing else."""
    first = directions[0]
    shapes = tuple(direction.shape for direction in directions)
    pad, unpad, sizes = _padding(shapes, first.device, first.dtype)
    flat = torch.cat([*(d.reshape(-1) for d in directions), first.new_zeros(1)])
    stacked = flat.index_select(0, pad.view(-1)).view(pad.shape)
    moves = orthogonalize(stacked).view(-1).index_select(0, unpad) * sizes
    parts = moves.split([direction.numel() for direction in directions])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@cache
def _padding(
    shapes: tuple[torch.Size, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the elements of matrices lie in a stack of padded ones.

    Returns:
        The element at each place of the stack (k, rows, columns), tall matrices transposed; what pads has
        the number of elements. The place of each element. The size of its matrix's update.
    """
    total = sum(shape.numel() for shape in shapes)
    count = sum(shape[:-2].numel() for shape in shapes)
    rows = max(min(shape[-2:]) for shape in shapes)
    columns = max(max(shape[-2:]) for shape in shapes)
    pad = torch.full((count, rows, columns), total)
    sizes = torch.empty(total, dtype=dtype)
    element = matrix = 0
    for shape in shapes:
        end = element + shape.numel()
        block = torch.arange(element, end).view(-1, *shape[-2:])
        wide = block if shape[-2] <= shape[-1] else block.transpose(1, 2)
        pad[matrix : matrix + len(wide), : wide.shape[1], : wide.shape[2]] = wide
        sizes[element:end] = _size(shape[-2:])
        element, matrix = end, matrix + len(wide)
    unpad = pad.view(-1).argsort()[:total]
    return pad.to(device), unpad.to(device), sizes.to(device)


def _size(shape: torch.Size) -> float:
    """Factor that gives an orthogonal matrix the root mean square of 0.2."""
    return float(0.2 * max(shape) ** 0.5)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weight matrices of a network, and everything else: biases, embeddings, scales, thin matrices."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in module.parameters():
        is_matrix = parameter.ndim >= 2 and min(parameter.shape[-2:]) >= SMALLEST_MATRIX
        (matrices if is_matrix and id(parameter) not in embeddings else others).append(parameter)
    return matrices, others
