"""From a configuration to a trained, exported and tested potential: :func:`train`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forcefield.display import make_display
from forcefield.errors import ConfigError, ForceFieldError
from forcefield.files import write_json
from training import run_folder, xtb, xtb_labels
from training.config import HardwareConfig, TrainConfig
from training.prepare import Prepared, prepare
from training.run_folder import RunFolder
from training.start import with_model_of_start

if TYPE_CHECKING:
    from training.fit import FitResult


FINISHING = (
    "fitting the last layer and the error estimate, testing: seconds, minutes for large systems"
)


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: The run's folder, with potential.pt, potential.safetensors, summary.json, report.html.
        summary: Contents of summary.json; empty in the helper processes of a parallel run, and in a run
            that was stopped before it came to its own frames.
        interrupted: Training was stopped by Ctrl-C; ``--resume`` continues it.
        warnings: What a person should know about the data.
    """

    folder: RunFolder
    summary: dict[str, Any]
    interrupted: bool
    warnings: tuple[str, ...]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
) -> RunResult:
    """Train a potential, export it, test it, report on it.

    Args:
        config: Usually from :func:`training.load_config`.
        resume: Continue the run in the configuration's folder from its last checkpoint.
        overwrite: Replace a run of the same name.
        show_progress: Show epochs and errors on the screen.

    Raises:
        ConfigError: The folder holds a run already, the run cannot be resumed like this, or a GPU is
            asked for where there is none.
        DataError: See :func:`training.datasets.load_split`.
    """
    accelerator = choose_accelerator(config.hardware)
    kept = None
    if resume:
        config = run_folder.with_what_was_decided(config)
        kept = run_folder.kept_start(config)
    config = with_model_of_start(config, kept)
    # Lightning starts the other processes of a parallel run itself, after rank 0 has made the folder.
    is_main = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not is_main:
        folder = RunFolder(Path(config.output) / config.name)
    elif resume:
        folder = run_folder.reopen(config)
    else:
        folder = run_folder.check_new(config, overwrite)
    undo: Callable[[], None] = lambda: None  # noqa: E731
    threads = torch.get_num_threads()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    try:
        prepared = prepare(config, kept)
        config, description = prepared.config, prepared.describe()
        if config.xtb_frames:
            xtb_labels.check(config, prepared.split.train)
        if is_main:
            if resume:
                run_folder.check_same_data(folder, description)
                undo = run_folder.go_on(folder, config)
            else:
                run_folder.create(folder, config, overwrite)
            write_json(folder.data, description)
            if show_progress:
                _announce(prepared, folder)
        learned: dict[str, Any] = {}
        if config.xtb_frames:
            learned = _learn_xtb(prepared, folder, show_progress)
            if not learned:
                return RunResult(folder, {}, True, prepared.split.warnings)
            prepared = prepared.starting_from(xtb.start(prepared.start, learned, folder))
            description = prepared.describe()
            write_json(folder.data, description)
            if show_progress:
                print(f"starting from {prepared.start.reason}", flush=True)
        display = make_display() if show_progress and is_main else None
        # Lightning takes seconds to import; mistakes in settings and data are reported before.
        from training.fit import fit, quiet_lightning

        with quiet_lightning():
            result = fit(
                prepared.potential,
                prepared.graphs["train"],
                prepared.graphs["valid"],
                xtb.second_run(config, learned) if learned else config,
                accelerator,
                folder,
                resume,
                display,
            )
        if display is not None:
            print(FINISHING, flush=True)
        summary = {}
        if is_main:
            summary = _finish(prepared, description, learned, folder, result, accelerator)
    except ForceFieldError:
        undo()
        raise
    finally:
        torch.set_num_threads(threads)
    return RunResult(folder, summary, result.stopped == "interrupted", prepared.split.warnings)


def _learn_xtb(prepared: Prepared, folder: RunFolder, show_progress: bool) -> dict[str, Any]:
    """Learn frames of GFN2-xTB in a run of its own, unless that was done; empty if it was stopped."""
    try:
        labels = xtb_labels.label(
            prepared.config, prepared.split.train, folder, quiet=not show_progress
        )
    except KeyboardInterrupt:
        return {}
    first = xtb.first_folder(folder)
    if not xtb.is_done(first):
        resume = first.config.is_file()
        config = xtb.first_run(prepared.config, labels, folder)
        if resume:
            xtb.follow(first, config)
            config = config.model_copy(update={"start": first.read_config().start})
        elif folder.start.is_file():  # Where it was may be gone by now.
            config = config.model_copy(update={"start": str(folder.start)})
        if train(config, resume=resume, show_progress=show_progress).interrupted:
            return {}
    return xtb.describe(labels, first)


def _finish(
    prepared: Prepared,
    description: dict[str, Any],
    learned: dict[str, Any],
    folder: RunFolder,
    result: "FitResult",
    accelerator: str,
) -> dict[str, Any]:
    """Export, test, summarise, report."""
    from training import finish, last_layer, uncertainty

    device = "cuda" if accelerator == "cuda" else "cpu"
    config = prepared.config
    potential = prepared.potential.to(device).eval()
    parts = [
        last_layer.rows(potential, part, device) if len(part) else None
        for part in (prepared.graphs["train"], prepared.graphs["valid"])
    ]
    parts = last_layer.refit_for(
        config.training, potential, prepared.graphs["valid"], parts, device
    )
    uncertainty.calibrate(potential, *parts)
    finish.save(potential, folder, description, config, result)
    predictions, errors = finish.test(potential, prepared.graphs, device)
    if parts[1] is not None and errors.get("uncertainty"):
        errors["uncertainty"]["calibrated_on"] = len(parts[1].energy_errors)
    summary = finish.summarize(folder, prepared.graphs, result, errors, device)
    summary["xtb"] = learned
    write_json(folder.summary, summary)
    if predictions is not None:
        predictions.save(folder.predictions)
    finish.report(folder, config, description, summary, predictions)
    return summary


def choose_accelerator(hardware: HardwareConfig) -> str:
    """Lightning's name of the hardware to run on."""
    available = torch.cuda.is_available()
    if hardware.accelerator == "gpu" and not available:
        raise ConfigError(
            "hardware.accelerator=gpu, but torch finds no CUDA GPU here: use hardware.accelerator=cpu, or "
            "install a torch with CUDA"
        )
    chosen = "cuda" if available and hardware.accelerator != "cpu" else "cpu"
    if chosen == "cuda" and hardware.devices > torch.cuda.device_count():
        raise ConfigError(
            f"hardware.devices={hardware.devices}, but there are {torch.cuda.device_count()} GPUs"
        )
    return chosen


def _announce(prepared: Prepared, folder: RunFolder) -> None:
    from ase.data import chemical_symbols

    frames = {name: len(graphs) for name, graphs in prepared.graphs.items()}
    elements = " ".join(chemical_symbols[z] for z in prepared.statistics.species)
    parameters = sum(p.numel() for p in prepared.potential.parameters())
    print(
        f"{prepared.split.source}: {frames['train']} training, {frames['valid']} validation, "
        f"{frames['test']} test frames ({elements})"
    )
    print(f"{prepared.config.model.name} with {parameters:,} parameters -> {folder.path}")
    if not prepared.config.xtb_frames:  # Else it is said in the run that begins there.
        print(f"starting from {prepared.start.reason}", flush=True)
    for warning in prepared.split.warnings:
        print(f"note: {warning}", flush=True)
    if xtb.would_help(prepared.config, prepared.start, prepared.split.train):
        print(f"note: {xtb.ADVICE}", flush=True)
