"""How fast a simulation runs."""


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
