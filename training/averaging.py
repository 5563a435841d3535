"""Running average of the weights, the ones that are validated, tested and exported."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging


class RunningAverage(WeightAveraging):
    """Exponential moving average, updated in one fused call per step.

    Lightning's own ``EMAWeightAveraging`` walks over the parameters in Python and, on a GPU, waits for
    the device at every step. Here the average also forgets the random initial weights sooner: after t
    steps its memory is min(decay, (1 + t) / (10 + t)).

    Validation runs on the average (Lightning swaps the weights), checkpoints hold both, and training
    ends with the average in the module.

    Args:
        decay: Memory in the long run, 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the average towards the current weights."""
        assert self._average_model is not None
        step = trainer.global_step
        if step <= self._latest_update_step:
            return
        memory = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._current, 1.0 - memory)
        self._latest_update_step = step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the parameters once."""
        assert self._average_model is not None
        self._averaged: list[torch.Tensor] = list(self._average_model.module.parameters())
        self._current: list[torch.Tensor] = list(pl_module.parameters())

    def average_state(self) -> dict[str, torch.Tensor] | None:
        """State of the averaged module, or None before training has begun."""
        return None if self._average_model is None else self._average_model.module.state_dict()
