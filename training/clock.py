"""The time that a run has taken, over all its sessions, and the end of a run that has been given a time."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class Clock(pl.Callback):
    """Measures training time, and ends a run of given length.

    It ends within an epoch, which can be longer than the run, and with a validation.

    Args:
        minutes: Ends training and its last validation by then, as far as can be foreseen; None: never.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.before = 0.0
        self._started: float | None = None
        self._validation = 0.0
        self._validating = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier sessions included."""
        return self.before + (time.monotonic() - self._started if self._started else 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the epoch and the run here if the time is over; all processes of a parallel run at once."""
        if self.minutes is None:
            return
        over = self.seconds + self._validation > 60.0 * self.minutes
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.should_stop = True
            # Validations may lie several epochs apart; the last epoch has one, and is kept.
            trainer.check_val_every_n_epoch = 1
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback._every_n_epochs = 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure how long a validation takes."""
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See :meth:`on_validation_start`."""
        self._validation = time.monotonic() - self._validating

    def state_dict(self) -> dict[str, Any]:
        """Training time so far and the time of a validation, seconds."""
        return {"seconds": self.seconds, "validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.before = state_dict["seconds"]
        self._validation = state_dict.get("validation", 0.0)  # Older checkpoints have none.
