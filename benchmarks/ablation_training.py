"""Variants of training for ``ablation.py``: optimisers, averages and losses that the package does without.

SOAP and the schedule-free optimiser are those of pytorch-optimizer, which the package does not need:
``pip install pytorch-optimizer==4.1.0``.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featurizers.pretraining.denoising import Denoiser
from training import fit
from training.config import TrainingConfig
from training.graphs import LabelledGraph
from training.losses import forces_loss
from training.module import ForceFieldModule
from training.optimizers import split_parameters


def use(name: str) -> None:
    """Train in this way from now on, in this process."""
    fit.fit = functools.partial(fit.fit, task=VARIANTS[name])


class Soap(ForceFieldModule):
    """Adam in the eigenbasis of Shampoo's preconditioner (N. Vyas et al., arXiv 2409.11321)."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :class:`ForceFieldModule`."""
        from pytorch_optimizer import SOAP

        return SOAP(self.potential.parameters(), lr=self.learning_rate.peak, weight_decay=0.0)


class ScheduleFree(ForceFieldModule):
    """AdamW with averaged weights instead of a falling rate (A. Defazio et al., arXiv 2405.15682).

    Validation reads the average, as do the checkpoints written then.
    """

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :class:`ForceFieldModule`."""
        from pytorch_optimizer import ScheduleFreeAdamW

        return ScheduleFreeAdamW(self.potential.parameters(), lr=self.learning_rate.peak)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go back to the weights that learn."""
        self.trainer.optimizers[0].train()
        super().on_train_batch_start(batch, batch_idx)

    def on_validation_start(self) -> None:
        """Go to the average."""
        self.trainer.optimizers[0].eval()


class TwoStages(ForceFieldModule):
    """From three quarters of the steps on energies weigh ten times as much, as in MACE's second stage."""

    def training_step(self, batch: LabelledGraph, batch_idx: int) -> Tensor | None:
        """See :class:`ForceFieldModule`; validation losses keep their weights and stay comparable."""
        if self.trainer.global_step < 0.75 * self.learning_rate.total_steps:
            return super().training_step(batch, batch_idx)
        later = self.config.model_copy(update={"energy_weight": 10 * self.config.energy_weight})
        with self._configured(later):
            return super().training_step(batch, batch_idx)

    @contextmanager
    def _configured(self, config: TrainingConfig) -> Iterator[None]:
        usual, self.config = self.config, config
        try:
            yield
        finally:
            self.config = usual


class Denoising(ForceFieldModule):
    """Besides, the representation learns to remove noise from the training frames (arXiv 2206.00133).

    Noise of 0.05 Å, anew at every step; the neighbours stay those of the frame. The loss of what is
    predicted in units of the noise weighs as much as that of a force error in eV/Å does at a tenth.
    """

    level, weight = 0.05, 0.1

    def __init__(self, potential: nn.Module, *arguments: Any, **options: Any) -> None:
        super().__init__(potential, *arguments, **options)
        channels = potential.representation.channels
        with torch.random.fork_rng(devices=[]):
            self.denoiser = Denoiser(potential.representation, potential.species, channels)

    def training_step(self, batch: LabelledGraph, batch_idx: int) -> Tensor | None:
        """See :class:`ForceFieldModule`."""
        loss = super().training_step(batch, batch_idx)
        graph = batch.graph
        noise = torch.randn_like(graph.positions)
        said = self.denoiser(
            graph.positions + self.level * noise,
            graph.atomic_numbers,
            graph.edge_index,
            graph.cell_shifts,
            graph.cell,
            graph.batch,
        )["noise"]
        atoms = batch.num_atoms.sum()
        return loss + self.weight * forces_loss(said - noise, atoms, "l1", 0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the potential, and AdamW for the head."""
        optimizer = super().configure_optimizers()
        matrices, others = split_parameters(self.denoiser.head)
        optimizer.add_param_group(
            {"params": matrices + others, "matrices": False, "weight_decay": 0.0}
        )
        return optimizer


VARIANTS: dict[str, Callable[..., ForceFieldModule]] = {
    "SOAP, 3e-3": Soap,
    "SOAP, 1e-2": Soap,
    "schedule-free AdamW, 5e-3": ScheduleFree,
    "schedule-free AdamW, 1e-2": ScheduleFree,
    "two stages": TwoStages,
    "denoising besides": Denoising,
}
"""What trains in each way."""

SETTINGS: dict[str, list[str]] = {
    "SOAP, 3e-3": ["learning_rate=3e-3"],
    "SOAP, 1e-2": ["learning_rate=1e-2"],
    "schedule-free AdamW, 5e-3": ["schedule=constant", "ema_decay=0", "learning_rate=5e-3"],
    "schedule-free AdamW, 1e-2": ["schedule=constant", "ema_decay=0", "learning_rate=1e-2"],
    "two stages": [],
    "denoising besides": [],
}
"""What each changes in the configuration besides."""
