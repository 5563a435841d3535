"""The Lightning module: a step, a validation, the optimiser.

A step reads nothing back from the device: sums of errors stay there until someone asks for them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from training.clock import Clock
from training.config import TrainingConfig
from training.graphs import LabelledGraph, inputs_of, labelled
from training.losses import energy_loss, forces_loss, stress_loss
from training.metrics import NUM_SUMS, error_sums, summarize
from training.optimizers import Muon, split_parameters
from training.schedule import LearningRate

if TYPE_CHECKING:
    from training.recorded import Action, RecordedStep

MONITOR = "valid_loss"
"""The quantity by which the best weights are chosen."""


class ForceFieldModule(pl.LightningModule):
    """Trains a potential on energies, forces and, where there are any, stresses.

    Args:
        potential: The potential; trained in place.
        config: Losses, weights, optimiser.
        total_steps: Optimiser steps of the whole run.
        clock: Knows how long the run has taken.
        validate_every: Epochs between validations.
        compiled: Whether to run the step as one compiled function, see :mod:`training.compiled`: ``no``;
            ``try``, and go on without if it cannot be compiled; ``must``, and fail then.
        record: How to record the compiled step with the optimizer's, where all batches have one shape
            and are on one device, see :mod:`training.recorded`; None: the step is compiled for batches
            of any shape, and Lightning takes the optimizer's.
        with_stress: Whether the training batches have stresses.
    """

    columns: tuple[str, ...] = (
        "train_loss",
        "train_energy_mae_meV_per_atom",
        "train_forces_mae_meV_per_A",
        "valid_loss",
        "valid_energy_mae_meV",
        "valid_energy_mae_meV_per_atom",
        "valid_forces_mae_meV_per_A",
        "valid_forces_rmse_meV_per_A",
        "valid_stress_mae_meV_per_A3",
    )
    """Losses and errors that log.csv keeps."""

    num_sums = NUM_SUMS
    """Length of what :meth:`losses` returns as sums, without the loss at its end."""

    def __init__(
        self,
        potential: nn.Module,
        config: TrainingConfig,
        total_steps: int,
        clock: Clock,
        validate_every: int = 1,
        compiled: Literal["no", "try", "must"] = "no",
        record: "Callable[[Action], Action] | None" = None,
        with_stress: bool = False,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.config = config
        self.clock = clock
        self.validate_every = validate_every
        self.learning_rate = LearningRate(config, total_steps)
        self.compiled = compiled
        self.record = record
        self.with_stress = with_stress
        self._step: Callable[[LabelledGraph], tuple[Tensor, Tensor]] | None = None
        self._recorded: RecordedStep | None = None
        self._replaying = False
        # Last entry: sum of the losses, weighted with the number of structures.
        self.train_sums = torch.zeros(self.num_sums + 1, dtype=torch.float64)
        self.valid_sums = torch.zeros(self.num_sums + 1, dtype=torch.float64)

    def losses(self, prediction: dict[str, Tensor], batch: LabelledGraph) -> tuple[Tensor, Tensor]:
        """Loss of a batch and its :func:`error_sums`, with the weighted loss appended."""
        energy_errors = labelled(prediction["energy"], batch) - batch.energy
        forces_errors = prediction["forces"] - batch.forces
        config = self.config
        loss = config.energy_weight * energy_loss(
            energy_errors / batch.num_atoms, config.loss, config.huber_delta
        ) + config.forces_weight * forces_loss(
            forces_errors, batch.num_atoms.sum(), config.loss, config.huber_delta
        )
        stress_errors = None
        if batch.stress is not None:
            stress_errors = labelled(prediction["stress"], batch) - batch.stress
        # Validation frames may have stresses where no training frame has one; they choose nothing then.
        if stress_errors is not None and self.with_stress:
            loss = loss + config.stress_weight * stress_loss(
                stress_errors,
                labelled(batch.graph.cell, batch),
                batch.num_atoms,
                config.loss,
                config.huber_delta,
            )
        sums = error_sums(energy_errors, forces_errors, batch.num_atoms, stress_errors)
        weighted = (loss.detach() * batch.energy.shape[0]).unsqueeze(0)
        return loss, torch.cat([sums, weighted])

    def evaluate(self, batch: LabelledGraph) -> tuple[Tensor, Tensor]:
        """Run the potential on a batch and compute its :meth:`losses`."""
        return self.losses(self.potential(*inputs_of(batch)), batch)

    def training_step(self, batch: LabelledGraph, batch_idx: int) -> Tensor | None:
        """One step's loss, or None after a recorded step, which has updated the weights, too."""
        if self._replaying:
            assert self._recorded is not None
            self._recorded(batch)
            return None
        loss, sums = self._evaluate_compiled(batch)
        self.train_sums += sums
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Update the weights, unless the training step that the closure runs does that itself."""
        if self._replaying:
            assert optimizer_closure is not None
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def _evaluate_compiled(self, batch: LabelledGraph) -> tuple[Tensor, Tensor]:
        """:meth:`evaluate` as one compiled function, where there is one."""
        # A batch of one structure, the rest of an epoch, would be compiled a second time.
        if self._step is None or len(batch.energy) == 1:
            return self.evaluate(batch)
        from training.compiled import CompilationError

        try:
            return self._step(batch)
        except CompilationError as error:
            self._step = None
            self._go_on_without(error)
            return self.evaluate(batch)

    def _record(self, batch: LabelledGraph) -> None:
        """Record the step; it will serve batches of this size."""
        from training.compiled import CompilationError
        from training.recorded import RecordedStep

        assert self.record is not None
        optimizer = self.trainer.optimizers[0]
        clip = self.config.gradient_clip
        try:
            self._recorded = RecordedStep(
                self.potential, self.losses, optimizer, clip, batch, self.train_sums, self.record
            )
        except CompilationError as error:
            self.record = None
            self._go_on_without(error)

    def _go_on_without(self, error: Exception) -> None:
        if self.compiled == "must":
            raise error
        warnings.warn(f"{error}; training goes on without, more slowly", stacklevel=1)

    def validation_step(self, batch: LabelledGraph, batch_idx: int) -> None:
        """Add a batch to the validation errors."""
        with torch.enable_grad():  # Forces are derivatives.
            self.valid_sums += self.evaluate(batch)[1]

    def on_fit_start(self) -> None:
        """Move the sums to the device; trace the step, which is compiled when it first runs."""
        self.train_sums = self.train_sums.to(self.device)
        self.valid_sums = self.valid_sums.to(self.device)
        if self.compiled != "no" and self.record is None:
            from training.compiled import CompiledStep

            self._step = CompiledStep(self.potential, self.losses, with_stress=self.with_stress)

    def on_train_epoch_start(self) -> None:
        """Forget the epoch before."""
        self.train_sums.zero_()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the coming step; record the first one if steps are recorded."""
        rate = self.learning_rate.at(self.trainer.global_step, self.clock.seconds)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        if self.record is not None and self._recorded is None:
            self._record(batch)
        self._replaying = self._recorded is not None

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self.valid_sums.zero_()

    def on_validation_epoch_end(self) -> None:
        """Make the validation loss known to checkpoints, early stopping and the learning rate."""
        loss = self.errors(self.valid_sums)["loss"]
        self.log(MONITOR, torch.tensor(loss, dtype=torch.float64), logger=False)
        self.learning_rate.validated(loss, self.validate_every)

    def errors(self, sums: Tensor) -> dict[str, float]:
        """Errors and mean loss from sums over all processes (waits for the device)."""
        total = self.trainer.strategy.reduce(sums.clone(), reduce_op="sum").tolist()
        return {"loss": total[-1] / max(total[0], 1.0), **self.summarize(total)}

    def summarize(self, sums: Sequence[float]) -> dict[str, float]:
        """Errors from sums, the first of which counts the structures."""
        return summarize(sums)

    def describe(self, train: dict[str, float], valid: dict[str, float]) -> str:
        """Errors of the running epoch and of the last validation (empty before there is one), in words."""
        key = "forces_mae_meV_per_A"
        last = f" · valid {valid[key]:.1f}" if valid else ""
        return f"force MAE train {train[key]:.1f}{last} meV/Å"

    def transfer_batch_to_device(
        self, batch: LabelledGraph, device: torch.device, dataloader_idx: int
    ) -> LabelledGraph:
        """Copy a batch unless it is there already."""
        return batch if batch.energy.device == device else batch.to(device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Muon or AdamW with AMSGrad; only matrices decay, not biases, scales or embeddings."""
        rate, decay = self.learning_rate.peak, self.config.weight_decay
        matrices, others = split_parameters(self.potential)
        if self.config.optimizer == "muon":
            return Muon(matrices, others, rate, decay)
        groups = [
            {"params": matrices, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, amsgrad=True, fused=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the learning rate."""
        checkpoint["learning_rate"] = self.learning_rate.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the learning rate."""
        self.learning_rate.load_state_dict(checkpoint["learning_rate"])
