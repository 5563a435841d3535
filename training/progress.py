"""What a person sees while training runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        epoch: The running epoch, counted from 1.
        epochs: Epochs of the whole run; None if it ends after a time.
        share: Share of all steps that is done, 0 to 1.
        train_mae: Force MAE of the running epoch's training batches, meV/Å.
        valid_mae: Force MAE of the last validation, meV/Å; None before the first.
        seconds_left: Estimate; None before there is one.
    """

    epoch: int
    epochs: int | None
    share: float
    train_mae: float
    valid_mae: float | None
    seconds_left: float | None

    def place(self) -> str:
        """The epoch in words."""
        return f"{self.epoch:4d}" if self.epochs is None else f"{self.epoch:4d}/{self.epochs}"

    def errors(self) -> str:
        """Force errors in words."""
        valid = "" if self.valid_mae is None else f" · valid {self.valid_mae:.1f}"
        return f"force MAE train {self.train_mae:.1f}{valid} meV/Å"

    def time_left(self) -> str:
        """Time left in words."""
        return "" if self.seconds_left is None else f"{clock(self.seconds_left)} left"


class Display(Protocol):
    """Something that shows progress."""

    interval: float
    """Seconds between updates within an epoch."""

    def update(self, progress: Progress, epoch_done: bool) -> None:
        """Show this."""

    def close(self) -> None:
        """Leave the screen in order."""


class BarDisplay:
    """A progress bar on a terminal."""

    interval = 0.5

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        # Drawn when told to: a drawing thread would take turns with the training.
        self._bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[errors]}"),
            TextColumn("[cyan]{task.fields[left]}"),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=1.0, epoch="", errors="starting ...", left="")
        self._bar.start()

    def update(self, progress: Progress, epoch_done: bool) -> None:
        """Redraw the bar."""
        self._bar.update(
            self._task,
            completed=progress.share,
            epoch=progress.place().strip(),
            errors=progress.errors(),
            left=progress.time_left(),
            refresh=True,
        )

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.stop()


class LineDisplay:
    """Plain lines, every few seconds at most."""

    interval = 30.0
    shortest = 5.0

    def __init__(self) -> None:
        self._last = -float("inf")

    def update(self, progress: Progress, epoch_done: bool) -> None:
        """Print a line unless the last one is very recent."""
        now = time.monotonic()
        last_epoch = epoch_done and progress.share >= 1.0
        if now - self._last < self.shortest and not last_epoch:
            return
        self._last = now
        left = progress.time_left()
        line = f"{progress.share:4.0%}  epoch {progress.place()}  {progress.errors()}"
        print(f"{line}  {left}" if left else line, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def make_display() -> Display:
    """A bar if the output is a terminal, else lines."""
    return BarDisplay() if sys.stdout.isatty() else LineDisplay()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
