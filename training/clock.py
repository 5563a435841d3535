"""The time that a run has taken, over all its sessions, and the end of a run that has been given a time."""

import time
from typing import Any

import lightning.pytorch as pl


class Clock(pl.Callback):
    """Measures training time, and ends a run of given length.

    It ends between two epochs where these are short, and within one where each is validated: an epoch of a
    large data set can be longer than the run.

    Args:
        minutes: Ends training and its last validation by then, as far as can be foreseen; None: never.
        every: Epochs between validations: a run ends with one.
    """

    def __init__(self, minutes: float | None, every: int) -> None:
        self.minutes = minutes
        self.every = every
        self.before = 0.0
        self._started: float | None = None
        self._marks: list[float] = []
        self._validation = 0.0
        self._validating = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier sessions included."""
        return self.before + (time.monotonic() - self._started if self._started else 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._started = time.monotonic()
        self._marks = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the epoch and the run here if the time is over; all processes of a parallel run at once."""
        if self.minutes is not None and self.every == 1:
            self._end_if(self.seconds + self._validation > 60.0 * self.minutes, trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure how long a validation takes."""
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See :meth:`on_validation_start`."""
        self._validation = time.monotonic() - self._validating

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run if what comes before the next validation, and that, would take it past its end."""
        if self.minutes is None or (trainer.current_epoch + 1) % self.every:
            return
        self._marks.append(self.seconds)
        ahead = self._validation
        if self.every > 1:
            # The first epochs may have taken a compilation, too, and say little about the next ones.
            ahead = self._marks[-1] - self._marks[-2] if len(self._marks) > 1 else 0.0
        self._end_if(self._marks[-1] + ahead > 60.0 * self.minutes, trainer)

    def _end_if(self, over: bool, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Training time so far and the time of a validation, seconds."""
        return {"seconds": self.seconds, "validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.before = state_dict["seconds"]
        self._validation = state_dict.get("validation", 0.0)  # Older checkpoints have none.
