"""Training of a neural peer for a fixed time, and its test.

The peer brings its model, its graphs and its recipe; the loop brings what a time limit asks for. The
learning rate falls from the recipe's value to zero as half a cosine over the time (not over a number of
epochs), so a run of any length ends annealed. Validation and test use the averaged weights, and the weights
of the best validation are the ones tested.
"""

import argparse
import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from common import Array, Data, Frames, errors, median_milliseconds
from torch import Tensor, nn

EVALUATION_BATCH = 25


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of the training, those of the model in a free-form description.

    Attributes:
        batch: Frames per step.
        learning_rate: At the start.
        ema: Decay of the averaged weights.
        energy_weight: Of the mean squared error of energies, per atom or total.
        late_energy_weight: The same in the last quarter of the time.
        forces_weight: Of the mean squared error of force components.
        per_atom: Whether the energy error is divided by the number of atoms.
        clip: Largest norm of the gradient, or None.
        unit: In which the model works, in eV; the weights refer to it.
        model: What else defines the model.
    """

    batch: int
    learning_rate: float
    ema: float
    energy_weight: float
    late_energy_weight: float
    forces_weight: float
    per_atom: bool
    clip: float | None
    unit: float
    model: dict[str, Any]


class Peer(ABC):
    """A model and what is needed to feed it. Energies are relative to the mean of the training set."""

    model: nn.Module
    recipe: Recipe

    @abstractmethod
    def encode(self, positions: Array) -> Any:
        """One frame with its neighbours; positions (n, 3)."""

    @abstractmethod
    def collate(self, frames: Sequence[Any]) -> Any:
        """A batch of encoded frames."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Energies (b,) and forces (b n, 3), differentiable if the model is in training mode."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimizer."""


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded frames with labels in the model's unit, float32: energies (f,), forces (f, n, 3)."""

    frames: list[Any]
    energies: Tensor
    forces: Tensor


class TimedTraining:
    """One run of one peer."""

    def __init__(self, peer: Peer, data: Data, options: argparse.Namespace) -> None:
        self.peer, self.data, self.recipe = peer, data, peer.recipe
        self.num_atoms = len(data.numbers)
        self.offset = float(data.train.energies.mean())
        self.train_part, self.valid_part = self._encode(data.train), self._encode(data.valid)
        self.budget = 60.0 * options.budget_minutes
        self.rng = np.random.default_rng(options.seed)
        self.steps = 0
        self.average = copy.deepcopy(peer.model).eval().requires_grad_(False)

    def run(self) -> dict[str, Any]:
        """Train until the time is over, then test.

        Returns:
            What the JSON file says about the run.
        """
        self.start = time.perf_counter()
        self.reserved = math.inf
        self._validate()
        self._reserve(self.start)
        best, best_step, best_weights = math.inf, 0, self.average.state_dict()
        optimizer = self.peer.optimizer()
        while self._progress() < 1.0:
            self._epoch(optimizer)
            validation = time.perf_counter()
            loss = self._validate()
            self._reserve(validation)
            elapsed = time.perf_counter() - self.start
            print(f"{elapsed:7.1f} s  {self.steps} steps  validation loss {loss:.5g}", flush=True)
            if loss < best:
                best, best_step = loss, self.steps
                best_weights = copy.deepcopy(self.average.state_dict())
        seconds = time.perf_counter() - self.start
        self.average.load_state_dict(best_weights)
        return {
            "seconds": round(seconds, 1),
            "epochs": round(self.steps * self.recipe.batch / len(self.data.train), 2),
            "steps": self.steps,
            "best_step": best_step,
            "batch": self.recipe.batch,
            "parameters": sum(p.numel() for p in self.peer.model.parameters()),
            **self._test(),
            "recipe": asdict(self.recipe),
        }

    def _encode(self, frames: Frames) -> Part:
        scale = 1.0 / self.recipe.unit
        return Part(
            [self.peer.encode(positions) for positions in frames.positions],
            torch.tensor((frames.energies - self.offset) * scale, dtype=torch.float32),
            torch.tensor(frames.forces * scale, dtype=torch.float32),
        )

    def _reserve(self, began: float) -> None:
        """Keep the time of a validation for the last one; the first is slower than the others."""
        self.reserved = min(self.reserved, time.perf_counter() - began)

    def _progress(self) -> float:
        """Share of the time for training that has passed."""
        elapsed = time.perf_counter() - self.start
        return min(1.0, elapsed / max(self.budget - self.reserved, 1e-9))

    def _epoch(self, optimizer: torch.optim.Optimizer) -> None:
        """One pass over the training frames, or less if the time runs out."""
        model, size = self.peer.model.train(), self.recipe.batch
        order = self.rng.permutation(len(self.train_part.frames))
        for first in range(0, len(order), size):
            progress = self._progress()
            if progress >= 1.0:
                return
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(model, self.train_part, order[first : first + size], progress)
            loss.backward()
            if self.recipe.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip)
            optimizer.step()
            self.steps += 1
            self._update_average()

    def _loss(self, model: nn.Module, part: Part, chosen: Sequence[int], progress: float) -> Tensor:
        batch = self.peer.collate([part.frames[k] for k in chosen])
        index = torch.as_tensor(np.array(chosen))
        energies, forces = self.peer.predict(model, batch)
        energy_error = energies - part.energies[index]
        if self.recipe.per_atom:
            energy_error = energy_error / self.num_atoms
        forces_error = forces - part.forces[index].reshape(-1, 3)
        late = progress >= 0.75
        energy_weight = self.recipe.late_energy_weight if late else self.recipe.energy_weight
        return (
            energy_weight * energy_error.square().mean()
            + self.recipe.forces_weight * forces_error.square().mean()
        )

    def _update_average(self) -> None:
        """Move the averaged weights; fast at first, so that they forget the initial ones."""
        decay = min(self.recipe.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for mean, new in zip(
                self.average.parameters(), self.peer.model.parameters(), strict=True
            ):
                mean.lerp_(new, 1 - decay)

    def _validate(self) -> float:
        """The loss of the averaged weights with the final energy weight, so that all are comparable."""
        count = len(self.valid_part.frames)
        total = 0.0
        for first in range(0, count, EVALUATION_BATCH):
            chosen = range(first, min(first + EVALUATION_BATCH, count))
            total += len(chosen) * self._loss(self.average, self.valid_part, chosen, 1.0).item()
        return total / count

    def _test(self) -> dict[str, float]:
        """Errors on the test frames and the time of one evaluation, neighbours not included."""
        frames = self._encode(self.data.test).frames
        energies, forces = [], []
        for first in range(0, len(frames), EVALUATION_BATCH):
            batch = self.peer.collate(frames[first : first + EVALUATION_BATCH])
            energy, force = self.peer.predict(self.average, batch)
            energies.append(energy.detach().double())
            forces.append(force.detach().double())
        singles = [self.peer.collate([frame]) for frame in frames[:10]]
        unit = self.recipe.unit
        predicted = torch.cat(forces).numpy().reshape(len(frames), self.num_atoms, 3) * unit
        return {
            **errors(torch.cat(energies).numpy() * unit + self.offset, predicted, self.data.test),
            "ms_per_evaluation": round(
                median_milliseconds(
                    lambda k: self.peer.predict(self.average, singles[k % len(singles)])
                ),
                3,
            ),
        }
