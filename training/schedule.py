"""The course of the learning rate, set once per step and restored exactly on resume."""

import math
from typing import Any

from training.config import TrainingConfig

MAX_WARMUP_SHARE = 0.1

FROM_RANDOM_WEIGHTS = 5e-3
"""Largest learning rate where none is set."""


class LearningRate:
    """Learning rate as a function of the step and, for ``plateau``, of the validation losses so far.

    Args:
        config: ``schedule``, ``learning_rate`` and their relatives; if it gives ``minutes``, cosine falls
            with time.
        total_steps: Optimiser steps of the whole run.
    """

    def __init__(self, config: TrainingConfig, total_steps: int) -> None:
        self.config = config
        self.peak = config.learning_rate or FROM_RANDOM_WEIGHTS
        self.total_steps = max(1, total_steps)
        self.warmup = min(config.warmup_steps, int(MAX_WARMUP_SHARE * self.total_steps))
        self.factor = 1.0
        self.best = math.inf
        self.stalled_epochs = 0

    def at(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of a step, counted from 0, so many seconds after the beginning."""
        peak, final = self.peak, self.config.final_learning_rate
        if step < self.warmup:
            return peak * (step + 1) / (self.warmup + 1)
        if self.config.schedule == "constant":
            return peak
        if self.config.schedule == "plateau":
            return max(min(peak, final), peak * self.factor)
        if self.config.minutes is None:
            progress = (step - self.warmup) / max(1, self.total_steps - self.warmup)
        else:
            progress = seconds / (60.0 * self.config.minutes)
        final = min(peak, final)
        return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def validated(self, loss: float, epochs: int) -> None:
        """Take note of a validation loss.

        Args:
            loss: Validation loss.
            epochs: Epochs since the validation before.
        """
        if loss < self.best:
            self.best, self.stalled_epochs = loss, 0
            return
        self.stalled_epochs += epochs
        if self.stalled_epochs > self.config.plateau_epochs:
            self.factor *= self.config.plateau_factor
            self.stalled_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from the configuration."""
        return {
            "factor": self.factor,
            "best": self.best,
            "stalled_epochs": self.stalled_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.factor = state["factor"]
        self.best = state["best"]
        self.stalled_epochs = state["stalled_epochs"]
