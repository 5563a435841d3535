"""Ctrl-C: finish the step, leave a usable model."""

from typing import Any

import lightning.pytorch as pl

from forcefield import interrupt


class Interrupted(BaseException):
    """Training was asked to stop, and has, between two steps."""


class StopRequest(interrupt.StopRequest, pl.Callback):
    """Ends training after the current step once SIGINT or SIGTERM has arrived."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop here if asked to; all processes of a parallel run at the same step."""
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            raise Interrupted
