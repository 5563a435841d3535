"""What the training of every network here has in common: options, mini-batches, when to stop."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurizers.analysis.frames import Frames
from featurizers.analysis.lagged import Block, frames_of

Report = Callable[[float, str], None]
"""Is told the share of a training that is done, and how it goes in words."""

STATISTICS_FRAMES = 20_000
"""Frames from which means and spreads of features are taken."""


@dataclass(frozen=True)
class TrainingOptions:
    """How networks are trained.

    Attributes:
        epochs: Passes through the training pairs at most.
        seconds: Time at most; None for no limit.
        batch: Pairs in a mini-batch; covariances are estimated from each.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        patience: Epochs without a better validation score after which training ends.
        seed: Fixes the order of the pairs and random numbers drawn in training.
        device: Where the network is trained; the features stay in main memory.
    """

    epochs: int = 50
    seconds: float | None = None
    batch: int = 1000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    patience: int = 6
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Epoch:
    """A row of a training's history.

    Attributes:
        train: Mean score of the mini-batches.
        valid: Score of the validation frames.
    """

    train: float
    valid: float


class Course:
    """The course of a training: keeps the best weights, knows when it is over.

    Args:
        module: What is trained.
        options: When to stop.
        report: Told about every epoch.

    Attributes:
        history: One element for each epoch.
    """

    def __init__(self, module: nn.Module, options: TrainingOptions, report: Report | None) -> None:
        self.module = module
        self.options = options
        self.report = report
        self.history: list[Epoch] = []
        self._best = -float("inf")
        self._weights: dict[str, Tensor] | None = None
        self._since = 0
        self._start = time.monotonic()

    @property
    def out_of_time(self) -> bool:
        """Whether the time given is over."""
        seconds = self.options.seconds
        return seconds is not None and time.monotonic() - self._start >= seconds

    @property
    def over(self) -> bool:
        """Whether epochs or time are used up."""
        return len(self.history) >= self.options.epochs or self.out_of_time

    @property
    def improves(self) -> bool:
        """Whether validation scores still rise, or have lately."""
        return self._since < self.options.patience

    def add(self, epoch: Epoch) -> None:
        """Note the end of an epoch."""
        self.history.append(epoch)
        if epoch.valid > self._best:
            self._best, self._since = epoch.valid, 0
            self._weights = copy.deepcopy(self.module.state_dict())
        else:
            self._since += 1
        if self.report is not None:
            share = len(self.history) / self.options.epochs
            if self.options.seconds is not None:
                share = max(share, (time.monotonic() - self._start) / self.options.seconds)
            self.report(min(1.0, share), f"valid {epoch.valid:.3f}, best {self._best:.3f}")

    def restore(self) -> None:
        """Go back to the best weights; a new search for better ones begins."""
        if self._weights is not None:
            self.module.load_state_dict(self._weights)
        self._best, self._weights, self._since = -float("inf"), None, 0


def batches(items: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Items in random order, in parts of equal length of about ``size``."""
    shuffled = items[torch.randperm(len(items), generator=generator)]
    yield from shuffled.tensor_split(max(1, round(len(items) / size)))


def standardize(network: nn.Module, frames: Frames, blocks: tuple[Block, ...]) -> None:
    """Let a network take means and spreads of features from training frames."""
    index = frames_of(blocks)
    index = index[:: max(1, len(index) // STATISTICS_FRAMES)]
    network.standardize(frames.scalars[index], frames.vectors[index])  # type: ignore[operator]
