"""What a person sees while something runs for long: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where something stands.

    Attributes:
        share: Share that is done, 0 to 1; None if nobody knows how much there is.
        place: Where it is, in words: "epoch 3/10".
        state: How it goes, in words: errors, temperature, speed.
        seconds_left: Estimate; None before there is one.
    """

    share: float | None
    place: str
    state: str
    seconds_left: float | None = None

    def time_left(self) -> str:
        """Time left in words."""
        return "" if self.seconds_left is None else f"{clock(self.seconds_left)} left"


class Display(Protocol):
    """Something that shows progress."""

    interval: float
    """Seconds between updates that are worth making."""

    def update(self, progress: Progress) -> None:
        """Show this."""

    def close(self) -> None:
        """Leave the screen in order."""


class BarDisplay:
    """A progress bar on a terminal."""

    interval = 0.5

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # Drawn when told to: a drawing thread would take turns with the computation.
        self._bar = Bar(
            TextColumn("[bold]{task.fields[place]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            TextColumn("[cyan]{task.fields[left]}"),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=1.0, place="starting ...", state="", left="")
        self._bar.start()

    def update(self, progress: Progress) -> None:
        """Redraw the bar."""
        self._bar.update(
            self._task,
            total=None if progress.share is None else 1.0,
            completed=progress.share or 0.0,
            place=progress.place,
            state=progress.state,
            left=progress.time_left(),
            refresh=True,
        )

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.stop()


class LineDisplay:
    """Plain lines, every few seconds at most.

    Args:
        interval: Seconds between updates worth making.
    """

    shortest = 5.0
    """Seconds between lines; the last one always comes."""

    def __init__(self, interval: float = 30.0) -> None:
        self.interval = interval
        self._last = -float("inf")

    def update(self, progress: Progress) -> None:
        """Print a line unless the last one is very recent."""
        now = time.monotonic()
        done = progress.share is not None and progress.share >= 1.0
        if now - self._last < self.shortest and not done:
            return
        self._last = now
        share = "" if progress.share is None else f"{progress.share:4.0%}"
        parts = [share, progress.place, progress.state, progress.time_left()]
        print("  ".join(part for part in parts if part), flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def make_display(interval: float = 30.0) -> Display:
    """A bar if the output is a terminal, else lines.

    Args:
        interval: Seconds between lines.
    """
    return BarDisplay() if sys.stdout.isatty() else LineDisplay(interval)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
