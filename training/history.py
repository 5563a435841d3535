"""The record of a run: log.csv, TensorBoard, and the progress shown on the screen."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from forcefield.display import Display, Progress
from forcefield.errors import ConfigError
from forcefield.files import write_text
from training.clock import Clock
from training.module import ForceFieldModule

COLUMNS = ("epoch", "step", "seconds", "learning_rate")
"""First columns of log.csv; the others are those of the module, empty in epochs without validation."""

Row = dict[str, float]


def read_history(path: Path) -> list[Row]:
    """Rows of log.csv, without the empty cells."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [{key: float(value) for key, value in row.items() if value} for row in rows]


class History(pl.Callback):
    """Writes a line of log.csv per epoch, and keeps the screen up to date.

    Only rank 0 writes and shows. The device is read once per epoch, and as often as the display asks.

    Args:
        path: log.csv.
        epochs: Epochs of the whole run; None if its time is given instead.
        clock: Knows how long the run has taken.
        display: Where to show progress; None for nowhere.
    """

    def __init__(
        self, path: Path, epochs: int | None, clock: Clock, display: Display | None
    ) -> None:
        self.path = path
        self.epochs = epochs
        self.clock = clock
        self.display = display
        self.valid: dict[str, float] = {}
        self._validated = -1
        self._shown = self._seconds_before = 0.0
        self._first_step = 0
        self._columns: tuple[str, ...] = COLUMNS

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """On resume drop the rows of epochs that will be repeated."""
        self._shown = time.monotonic()
        self._seconds_before = self.clock.seconds
        self._first_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        kept = [row for row in read_history(self.path) if row["epoch"] <= trainer.current_epoch]
        assert isinstance(pl_module, ForceFieldModule)
        self._columns = (*COLUMNS, *pl_module.columns)
        lines = [",".join(self._columns), *(self._line(row) for row in kept)]
        write_text(self.path, "\n".join(lines) + "\n")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show progress if it is time to."""
        if self.display is None:
            return
        now = time.monotonic()
        if now - self._shown < self.display.interval or trainer.world_size > 1:
            return  # Errors of parallel processes are collected at the end of an epoch only.
        assert isinstance(pl_module, ForceFieldModule)
        train = pl_module.errors(pl_module.train_sums)
        self._show(trainer, pl_module.describe(train, self.valid))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the errors of the validation."""
        assert isinstance(pl_module, ForceFieldModule)
        self.valid = pl_module.errors(pl_module.valid_sums)
        self._validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row.

        Raises:
            ConfigError: The loss is no longer a number.
        """
        assert isinstance(pl_module, ForceFieldModule)
        seconds = self.clock.seconds
        train = pl_module.errors(pl_module.train_sums)
        if not math.isfinite(train["loss"]):
            raise ConfigError(
                f"training diverged in epoch {trainer.current_epoch + 1}: the loss is {train['loss']}. "
                "Lower training.learning_rate, or set training.gradient_clip; export-potential gives the "
                "best potential before, if an epoch was validated"
            )
        step = trainer.global_step
        values = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(step),
            "seconds": round(seconds, 2),
            "learning_rate": pl_module.learning_rate.at(max(0, step - 1), seconds),
            **{f"train_{key}": value for key, value in train.items()},
        }
        if self._validated == trainer.current_epoch:
            values |= {f"valid_{key}": value for key, value in self.valid.items()}
        row = {key: values[key] for key in self._columns if key in values}
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
        if not trainer.is_global_zero:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(row) + "\n")
        self._show(trainer, pl_module.describe(train, self.valid))

    def _show(self, trainer: pl.Trainer, errors: str) -> None:
        if self.display is None:
            return
        self._shown = time.monotonic()
        seconds = self.clock.seconds
        if self.clock.minutes is not None:
            share = min(1.0, seconds / (60.0 * self.clock.minutes))
            left: float | None = max(0.0, 60.0 * self.clock.minutes - seconds)
        else:
            total = (self.epochs or 1) * int(trainer.num_training_batches)
            done = trainer.global_step - self._first_step
            share = trainer.global_step / total
            rate = (seconds - self._seconds_before) / max(1, done)
            left = rate * (total - trainer.global_step) if done else None
        epoch = f"{trainer.current_epoch + 1:4d}"
        place = epoch if self.epochs is None else f"{epoch}/{self.epochs}"
        self.display.update(Progress(share, f"epoch {place}", errors, left))

    def state_dict(self) -> dict[str, Any]:
        """The last validation."""
        return {"valid": self.valid}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.valid = state_dict["valid"]

    def _line(self, row: Row) -> str:
        return ",".join(f"{row[key]:.8g}" if key in row else "" for key in self._columns)
