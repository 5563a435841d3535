"""A whole optimizer step as one recording: loss, sums, gradients, clipping and the update of the weights.

With small molecules a GPU computes faster than Python can tell it what to. Batches have one shape
(:mod:`training.packed`), so that the step is told once: it is traced and compiled for that shape
(:mod:`training.compiled`), and all that it and the optimizer start on the device is recorded
(:mod:`forcefield.recording`). From then on a step is three things to tell: the batch, the learning rate,
and to replay.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from forcefield.unrolled import trace
from training.compiled import CompilationError, Losses, as_batch, as_tensors, flat_step
from training.graphs import LabelledGraph

Action = Callable[[], None]


class RecordedStep:
    """Steps on batches of one shape.

    Args:
        potential: A potential, or another network on the same graphs, on the device; its parameters and
            buffers stay where they are in memory as long as steps are taken.
        losses: What to compute from the potential's output.
        optimizer: Of the potential's parameters, one learning rate for all; capturable: it reads nothing
            from the device, and takes the learning rate as a tensor.
        clip: Largest norm of the gradient; 0: no limit.
        batch: The first batch: all others have its numbers of structures, atoms and pairs.
        sums: Receives the sums that ``losses`` returns, added up.
        record: Such as :func:`forcefield.recording.record`: turns an action into one that does the same
            faster; may run it before, as weights, state of the optimizer and sums are put back.

    Raises:
        CompilationError: The step could not be compiled or recorded.
    """

    def __init__(
        self,
        potential: nn.Module,
        losses: Losses,
        optimizer: torch.optim.Optimizer,
        clip: float,
        batch: LabelledGraph,
        sums: Tensor,
        record: Callable[[Action], Action],
    ) -> None:
        self.optimizer = optimizer
        self.clip = clip
        self.sums = sums
        self.parameters = list(potential.parameters())
        self._batch = as_batch([tensor.clone() for tensor in as_tensors(batch)])
        self._rate = torch.zeros((), dtype=torch.float32, device=sums.device)
        self._weights = [p.detach() for p in self.parameters]
        self._buffers = list(potential.buffers())
        try:
            with self._unchanged():
                self._compute = self._compile(potential, losses)
                self._replay = record(self._act)
        except Exception as error:  # Of dynamo, of Triton, of CUDA: there is no common class.
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise CompilationError(
                f"the training step could not be recorded: {reason}. It takes Triton and a C compiler; "
                "hardware.compile=false does without"
            ) from error
        finally:
            optimizer.zero_grad()

    def __call__(self, batch: LabelledGraph) -> None:
        """Take a step with the optimizer's current learning rate.

        Args:
            batch: Of the shape of the first one.
        """
        torch._foreach_copy_(as_tensors(self._batch), as_tensors(batch))
        self._rate.fill_(self.optimizer.param_groups[0]["lr"])
        self._replay()

    def _compile(self, potential: nn.Module, losses: Losses) -> Callable[..., list[Tensor]]:
        step = flat_step(potential, losses)

        def laid_out(*arguments: list[Tensor]) -> list[Tensor]:
            # Fused optimizers want gradients to lie in memory as their parameters do.
            return [value.contiguous() for value in step(*arguments)]

        weights = [w.clone().requires_grad_(True) for w in self._weights]
        examples = (weights, self._buffers, as_tensors(self._batch))
        # Backward threads of their own would not know that they are being traced.
        with torch.autograd.set_multithreading_enabled(False):
            graph = trace(laid_out, examples, [[None] * len(part) for part in examples])
        return torch.compile(graph, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def _act(self) -> None:
        _, sums, *gradients = self._compute(self._weights, self._buffers, as_tensors(self._batch))
        self.sums += sums
        if self.clip:
            gradients = clipped(gradients, self.clip)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        with self._rate_on_device():
            self.optimizer.step()

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """The optimizer reads its learning rate where each step finds the current one.

        Outside, its groups say what they say without a recording, and so do checkpoints.
        """
        before = [dict(group) for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
            if "capturable" in group:  # torch's own optimizers ask for this when they are recorded.
                group["capturable"] = (
                    self._rate.is_cuda and torch.cuda.is_current_stream_capturing()
                )
        try:
            yield
        finally:
            for group, old in zip(self.optimizer.param_groups, before, strict=True):
                group.update(old)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put weights, optimizer and sums back, in the same places; a new optimizer's state is zero."""
        weights = [w.clone() for w in self._weights]
        sums = self.sums.clone()
        states = self.optimizer.state
        before = {p: {key: value.clone() for key, value in states[p].items()} for p in states}
        try:
            yield
        finally:
            torch._foreach_copy_([*self._weights, self.sums], [*weights, sums])
            for parameter, state in states.items():
                for key, value in state.items():
                    if parameter in before and key in before[parameter]:
                        value.copy_(before[parameter][key])
                    else:
                        value.zero_()


def clipped(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Gradients scaled down to a norm of ``largest`` if theirs is larger, as torch clips them."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return list(torch._foreach_mul(gradients, factor))
