"""The optimisation itself, by Lightning."""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from forcefield.display import Display
from forcefield.errors import ConfigError
from forcefield.memory import keep_freed_memory
from forcefield.recording import record
from training.averaging import RunningAverage
from training.checkpoints import potential_weights, read_checkpoint
from training.clock import Clock
from training.config import HardwareConfig, TrainConfig, TrainingConfig
from training.graphs import GraphDataset, LabelledGraph, evaluation_batches
from training.history import History
from training.interrupt import Interrupted, StopRequest
from training.loaders import EpochSampler, training_loader
from training.module import MONITOR, ForceFieldModule
from training.packed import PackedFrames, PackedLoader
from training.run_folder import RunFolder

STEPS_BETWEEN_VALIDATIONS = {"cpu": 100, "cuda": 1000}
"""By accelerator: some seconds of steps. On a GPU the validation and its two checkpoints take as long as a
hundred steps do."""
MOST_BETWEEN_VALIDATIONS = 0.05
"""Share of a run's epochs: a learning curve has points."""

COMPILING = (
    "compiling the training step: one to two minutes, seconds when this model was trained before"
)
SECONDS_TO_COMPILE = 100.0
SECONDS_SAVED = (8e-3, 3.5e-5)
"""What a compiled step saves on a CPU core, measured: seconds per step, and per pair of atoms in it."""
SECONDS_SAVED_ON_A_GPU = 0.02
"""What a recorded step saves there, whatever its size: time to start operations, not to run them."""

Stopped = Literal["complete", "early", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """How a fit ended.

    Attributes:
        stopped: complete, early (the validation loss no longer fell) or interrupted (by a signal).
        epochs: Finished epochs.
        steps: Optimiser steps.
        seconds: Training time with validation, over all sessions of the run.
        best_epoch: Epoch of the weights that were kept, counted from 1; 0 if not one was validated.
    """

    stopped: Stopped
    epochs: int
    steps: int
    seconds: float
    best_epoch: int


def fit(
    potential: nn.Module,
    train: GraphDataset,
    valid: GraphDataset,
    config: TrainConfig,
    accelerator: str,
    folder: RunFolder,
    resume: bool,
    display: Display | None,
    task: type[ForceFieldModule] = ForceFieldModule,
) -> FitResult:
    """Optimise a potential in place and leave the best averaged weights in it.

    Args:
        potential: With initial weights.
        train: Frames to fit.
        valid: Frames that choose the weights; may be empty, then the last weights are kept.
        config: The run's configuration.
        accelerator: Lightning's name of it, cpu or cuda.
        folder: Receives log.csv and checkpoints; a checkpoint there is continued if ``resume``.
        resume: Continue from the last checkpoint, or start anew where there is none yet.
        display: Where to show progress, or None.
        task: What is learned: losses and errors.

    Raises:
        ConfigError: Lightning cannot use the hardware like this, or training diverged.
    """
    keep_freed_memory()
    settings, hardware = config.training, config.hardware
    steps_per_epoch = math.ceil(math.ceil(len(train) / hardware.devices) / settings.batch_size)
    every = validation_interval(settings, steps_per_epoch, accelerator)
    steps = settings.epochs * steps_per_epoch
    compiled = whether_to_compile(config, accelerator, train)
    if compiled != "no" and display is not None:
        print(COMPILING, flush=True)
    clock = Clock(settings.minutes)
    recorded = accelerator == "cuda" and hardware.devices == 1 and compiled != "no"
    recorder = record if recorded else None
    module = task(potential, settings, steps, clock, every, compiled, recorder, train.has_stress)
    epochs = settings.epochs if settings.minutes is None else None
    history = History(folder.log, epochs, clock, display)
    stop = StopRequest()
    average = RunningAverage(settings.ema_decay) if settings.ema_decay > 0 else None
    early = _early_stopping(settings, every)
    extra = [callback for callback in (average, early) if callback is not None]
    trainer = _trainer(
        hardware,
        accelerator=accelerator,
        max_epochs=-1 if epochs is None else epochs,
        gradient_clip_val=settings.gradient_clip or None,
        check_val_every_n_epoch=every,
        callbacks=[*extra, clock, history, stop, *_checkpoints(folder, len(valid) > 0, every)],
        logger=_tensorboard(folder),
        default_root_dir=folder.path,
        inference_mode=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler = EpochSampler(len(train), config.seed, trainer.global_rank, trainer.world_size)
    loader: DataLoader[LabelledGraph] | PackedLoader
    if recorded:
        frames = PackedFrames(train, settings.batch_size, trainer.strategy.root_device)
        loader = PackedLoader(frames, sampler)
    else:
        loader = training_loader(train, settings.batch_size, sampler)
    interrupted = False
    try:
        with stop.listening():
            trainer.fit(
                module,
                loader,
                _validation_loader(valid, trainer) if len(valid) else None,
                ckpt_path=folder.last if resume and folder.last.is_file() else None,
                weights_only=True,
            )
    except Interrupted:
        interrupted = True
    finally:
        if display is not None:
            display.close()
    best = _keep_best(potential, module, average, folder)
    stopped: Stopped = "complete"
    if interrupted:
        stopped = "interrupted"
    elif early is not None and early.stopped_epoch:
        stopped = "early"
    return FitResult(stopped, trainer.current_epoch, trainer.global_step, clock.seconds, best)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's and torch's advice to programmers from the user's screen."""
    chatty = ("lightning.pytorch", "lightning.fabric", "lightning", "torch.utils.cpp_extension")
    for name in chatty:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*TensorFloat32 tensor cores.*")
        yield


def _trainer(hardware: HardwareConfig, **options: Any) -> pl.Trainer:
    """Lightning's trainer; what it dislikes about the hardware is the user's to mend.

    It starts its processes itself, also in a job of SLURM, whose number of tasks may be that of another
    program; by itself Lightning would take that for the number of its own processes.
    """
    try:
        return pl.Trainer(
            devices=hardware.devices,
            strategy=_strategy(hardware),
            plugins=[LightningEnvironment()],
            **options,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            f"Lightning cannot use hardware.strategy={hardware.strategy} with "
            f"hardware.devices={hardware.devices}: {error}"
        ) from None


def _strategy(hardware: HardwareConfig) -> str:
    """Lightning's strategy. Plain ddp refuses weights that no energy depends on (in the last layer)."""
    if hardware.devices > 1 and hardware.strategy in ("auto", "ddp"):
        return "ddp_find_unused_parameters_true"
    return hardware.strategy


def validation_interval(settings: TrainingConfig, steps_per_epoch: int, accelerator: str) -> int:
    """Epochs between validations: a divisor of all epochs, so that the last one is validated."""
    usual = max(1, STEPS_BETWEEN_VALIDATIONS[accelerator] // steps_per_epoch)
    if settings.minutes is not None:
        return settings.validate_every or usual
    usual = min(usual, max(1, int(MOST_BETWEEN_VALIDATIONS * settings.epochs)))
    wanted = min(settings.validate_every or usual, settings.epochs)
    return next(every for every in range(wanted, 0, -1) if settings.epochs % every == 0)


def whether_to_compile(
    config: TrainConfig, accelerator: str, train: GraphDataset
) -> Literal["no", "try", "must"]:
    """Whether to compile the step: as the configuration says, else where that pays and can be done."""
    hardware = config.hardware
    on_a_cpu = accelerator == "cpu"
    if on_a_cpu and config.training.batch_size == 1:
        return "no"  # A step of a single frame is not compiled there.
    if hardware.compile is not None:
        return "must" if hardware.compile else "no"
    if hardware.devices > 1 or not worth_compiling(train, config.training, on_a_cpu):
        return "no"
    if not _has_compiler(on_a_cpu):
        language = "C++" if on_a_cpu else "C"
        warnings.warn(
            f"there is no {language} compiler here: training is not compiled and takes two to three "
            "times as long",
            stacklevel=1,
        )
        return "no"
    return "try"


def worth_compiling(train: GraphDataset, settings: TrainingConfig, on_a_cpu: bool = True) -> bool:
    """Whether a compiled step saves more time in this run than its compilation takes."""
    steps = math.ceil(len(train) / settings.batch_size)
    if on_a_cpu:
        saved = SECONDS_SAVED[0] * steps + SECONDS_SAVED[1] * train.edge_index.shape[1]
    else:
        saved = SECONDS_SAVED_ON_A_GPU * steps
    if settings.minutes is None:
        saved *= settings.epochs
    else:  # Three fifths of the time are saved.
        saved = 0.6 * 60.0 * settings.minutes
    return saved > SECONDS_TO_COMPILE


def _has_compiler(on_a_cpu: bool) -> bool:
    """Of C++, or of C for what starts the kernels of a GPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not on_a_cpu:
        names = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    return any(shutil.which(name) for name in names)


def _validation_loader(valid: GraphDataset, trainer: pl.Trainer) -> "DataLoader[LabelledGraph]":
    """Ready batches on the device; every process of a parallel run evaluates all of them."""
    device = trainer.strategy.root_device
    batches = [batch.to(device) for _, batch in evaluation_batches(valid)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def _early_stopping(settings: TrainingConfig, every: int) -> EarlyStopping | None:
    if not settings.patience:
        return None
    patience = math.ceil(settings.patience / every)
    return Patience(MONITOR, patience=patience, mode="min", check_on_train_epoch_end=False)


class Patience(EarlyStopping):
    """Early stopping that is patient anew in a run that it had stopped and that is given more epochs."""

    @property
    def state_key(self) -> str:
        """Name of its state in checkpoints: those of older versions knew it as what it is."""
        return EarlyStopping.state_key.fget(self).replace("Patience", "EarlyStopping")  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; how many validations to wait for depends on what lies between them now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the end that was restored with the checkpoint."""
        if self.stopped_epoch:
            self.stopped_epoch = self.wait_count = 0


class Checkpoint(ModelCheckpoint):
    """One that knows on resume what it has kept, whatever the interval and wherever its folder is."""

    @property
    def state_key(self) -> str:
        """Name of its state in checkpoints."""
        return f"Checkpoint {self.filename}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; Lightning's own forgets the best weights of a folder that was moved."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        moved = {
            key: here(value) if key.endswith("_model_path") else value
            for key, value in state_dict.items()
        }
        best = {here(path): loss for path, loss in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved, "dirpath": self.dirpath, "best_k_models": best})


def _checkpoints(folder: RunFolder, validated: bool, every: int) -> list[ModelCheckpoint]:
    """Keeps the best and the last state; the last comes second, so that it knows the best."""
    common: dict[str, Any] = {
        "dirpath": folder.checkpoints,
        "save_top_k": 1,
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
        "every_n_epochs": every,
    }
    last = Checkpoint(filename=folder.last.stem, **common)
    if not validated:
        return [last]
    return [Checkpoint(filename=folder.best.stem, monitor=MONITOR, mode="min", **common), last]


def _tensorboard(folder: RunFolder) -> Any:
    """A TensorBoard logger where TensorBoard is installed, else none: log.csv is always written."""
    if find_spec("tensorboard") is None:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder.path, name="tensorboard", version="")


def _keep_best(
    potential: nn.Module,
    module: ForceFieldModule,
    average: RunningAverage | None,
    folder: RunFolder,
) -> int:
    """Load the best weights, or the current ones if no epoch was finished; returns their epoch."""
    path = folder.best if folder.best.is_file() else folder.last
    if path.is_file():
        weights, epoch = read_checkpoint(path)
        potential.load_state_dict(weights)
        return epoch
    state = module.state_dict() if average is None else average.average_state()
    if state is not None:
        potential.load_state_dict(potential_weights(state))
    return 0
