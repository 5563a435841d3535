"""What a person sees while a simulation runs: a bar on a terminal, plain lines elsewhere."""

import sys
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where the simulation stands.

    Attributes:
        time: ps done.
        total: ps of the whole run.
        temperature: K, of the last frame.
        ns_per_day: Speed; None before there is one.
        seconds_left: Estimate; None before there is one.
    """

    time: float
    total: float
    temperature: float
    ns_per_day: float | None
    seconds_left: float | None

    def place(self) -> str:
        """The time in words."""
        return f"{self.time:.2f} of {self.total:g} ps"

    def speed(self) -> str:
        """Temperature and speed in words."""
        speed = "" if self.ns_per_day is None else f" · {self.ns_per_day:.3g} ns/day"
        return f"{self.temperature:.0f} K{speed}"

    def time_left(self) -> str:
        """Time left in words."""
        return "" if self.seconds_left is None else f"{clock(self.seconds_left)} left"


class Display(Protocol):
    """Something that shows progress."""

    interval: float
    """Seconds between updates."""

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

        # Drawn when told to: a drawing thread would take turns with the simulation.
        self._bar = Bar(
            TextColumn("[bold]{task.fields[place]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[cyan]{task.fields[left]}"),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=1.0, place="starting ...", speed="", left="")
        self._bar.start()

    def update(self, progress: Progress) -> None:
        """Redraw the bar."""
        self._bar.update(
            self._task,
            completed=progress.time / progress.total,
            place=progress.place(),
            speed=progress.speed(),
            left=progress.time_left(),
            refresh=True,
        )

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.stop()


class LineDisplay:
    """Plain lines, every few seconds."""

    interval = 10.0

    def update(self, progress: Progress) -> None:
        """Print a line."""
        line = f"{progress.time / progress.total:4.0%}  {progress.place()}  {progress.speed()}"
        left = progress.time_left()
        print(f"{line}  {left}" if left else line, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class Pace:
    """Speed of a run, over all its sessions, without the time of starting.

    Args:
        steps: Steps that earlier sessions timed.
        seconds: What they took.
    """

    def __init__(self, steps: int = 0, seconds: float = 0.0) -> None:
        self.steps = steps
        self.seconds = seconds

    @property
    def ms_per_step(self) -> float | None:
        """Milliseconds per step; None before there were any."""
        return 1000.0 * self.seconds / self.steps if self.steps else None

    def ns_per_day(self, time_step: float) -> float | None:
        """Simulated ns in a day of the clock, for a time step in ps."""
        if not self.steps:
            return None
        return 86400.0 / self.seconds * self.steps * time_step / 1000.0

    def measure(self, steps: int, seconds: float) -> None:
        """Add to it."""
        self.steps += steps
        self.seconds += seconds


def make_display() -> Display:
    """A bar if the output is a terminal, else lines."""
    return BarDisplay() if sys.stdout.isatty() else LineDisplay()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
