"""What a person sees while an analysis runs."""

import time

from forcefield.display import Display, Progress

TRAINING_SHARE = 0.8
"""Of the time of an analysis, spent on finding coordinates."""


class Meter:
    """Shows what is being done and estimates the time left.

    Args:
        display: Where to; None for nowhere.
        folds: Trainings before the last one.
    """

    def __init__(self, display: Display | None, folds: int) -> None:
        self.display = display
        self.folds = folds
        self._start = time.monotonic()
        self._shown = -float("inf")

    def fold(self, fold: int, share: float, state: str) -> None:
        """A training of the cross-validation."""
        done = TRAINING_SHARE * (fold + share) / (self.folds + 1)
        self._show(done, f"fold {fold + 1}/{self.folds}", state)

    def last_fit(self, share: float, state: str) -> None:
        """The training with all trajectories."""
        self._show(TRAINING_SHARE * (self.folds + share) / (self.folds + 1), "all frames", state)

    def importance(self, share: float, label: str) -> None:
        """The importance of tokens."""
        self._show(TRAINING_SHARE + 0.08 + 0.09 * share, "importance", label)

    def stage(self, place: str, share: float) -> None:
        """Something else begins."""
        self._show(share, place, "", always=True)

    def _show(self, share: float, place: str, state: str, always: bool = False) -> None:
        now = time.monotonic()
        if self.display is None or (now - self._shown < self.display.interval and not always):
            return
        self._shown = now
        elapsed = now - self._start
        left = elapsed * (1 - share) / share if share > 0.02 else None
        self.display.update(Progress(share, place, state, left))

    def close(self) -> None:
        """Leave the screen in order."""
        if self.display is not None:
            self.display.close()
