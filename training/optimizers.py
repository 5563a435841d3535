"""Muon: weight matrices move along orthogonalised momentum, everything else as AdamW says.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; scale of the updates
from J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, so that one learning rate
serves both kinds of parameters.

``torch.optim.Muon`` takes two-dimensional parameters one by one, in bfloat16. A force field has many
small matrices, some of them stacked (one per degree): here all matrices of a shape are orthogonalised
together, in their own precision, and stacked ones are treated as the matrices they are.
"""

from collections.abc import Callable, Iterable
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


class Muon(torch.optim.Optimizer):
    """Muon for the weight matrices of a network, AdamW with AMSGrad for all other parameters.

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

    def _step_matrices(self, parameters: list[nn.Parameter], lr: float, decay: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._state(p, "momentum")["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        # Nesterov's look ahead.
        directions = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        if decay:
            torch._foreach_mul_([p.data for p in parameters], 1.0 - lr * decay)
        by_shape: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape[-2:], []).append(index)
        for shape, indices in by_shape.items():
            stacked = torch.cat([directions[k].reshape(-1, *shape) for k in indices])
            updates = orthogonalize(stacked) * (0.2 * max(shape) ** 0.5)
            sizes = [parameters[k].numel() // shape.numel() for k in indices]
            for k, update in zip(indices, updates.split(sizes), strict=True):
                parameters[k].add_(update.view_as(parameters[k]), alpha=-lr)

    def _step_others(self, parameters: list[nn.Parameter], lr: float) -> None:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        states = [self._state(p, *names) for p in parameters]
        adamw(
            params=list(parameters),
            grads=[p.grad for p in parameters if p.grad is not None],
            exp_avgs=[state["exp_avg"] for state in states],
            exp_avg_sqs=[state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[state["max_exp_avg_sq"] for state in states],
            state_steps=[state["step"] for state in states],
            foreach=True,
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
            state["step"] = torch.zeros(())
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


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weight matrices of a network, and everything else: biases, embeddings, scales, thin matrices."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in module.parameters():
        is_matrix = parameter.ndim >= 2 and min(parameter.shape[-2:]) >= SMALLEST_MATRIX
        (matrices if is_matrix and id(parameter) not in embeddings else others).append(parameter)
    return matrices, others
