"""From a configuration to a trained, exported and tested potential: :func:`train`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forcefield import Potential
from forcefield.display import make_display
from forcefield.errors import ConfigError
from forcefield.files import write_json, write_text
from training import run_folder
from training.config import HardwareConfig, TrainConfig
from training.config_io import dump_yaml
from training.datasets import Split, data_hash, load_split
from training.graphs import GraphDataset
from training.run_folder import RunFolder
from training.start import choose_start, initial_potential, resolve
from training.statistics import LEAST_SQUARES, Statistics, collect_statistics

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
        summary: Contents of summary.json; empty in the helper processes of a parallel run.
        interrupted: Training was stopped by Ctrl-C; ``--resume`` continues it.
        warnings: What a person should know about the data.
    """

    folder: RunFolder
    summary: dict[str, Any]
    interrupted: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """Data and potential, ready to fit.

    Attributes:
        split: The frames.
        graphs: Graphs of the parts train, valid and test.
        statistics: Of the training frames.
        config: The configuration, with what depends on the data filled in.
        description: Contents of data.json.
        potential: With its initial weights, on the CPU.
    """

    split: Split
    graphs: dict[str, GraphDataset]
    statistics: Statistics
    config: TrainConfig
    description: dict[str, Any]
    potential: Potential


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
    # Lightning starts the other processes of a parallel run itself, after rank 0 has made the folder.
    is_main = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not is_main:
        folder = RunFolder(Path(config.output) / config.name)
    elif resume:
        folder = run_folder.reopen(config)
    else:
        folder = run_folder.check_new(config, overwrite)
    threads = torch.get_num_threads()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    try:
        prepared = prepare(config)
        config = prepared.config
        if is_main:
            if resume:
                run_folder.check_same_data(folder, prepared.description)
                write_text(folder.config, dump_yaml(config))
            else:
                run_folder.create(folder, config)
            write_json(folder.data, prepared.description)
            if show_progress:
                _announce(config, prepared, folder)
        display = make_display() if show_progress and is_main else None
        # Lightning takes seconds to import; mistakes in settings and data are reported before.
        from training.fit import fit, quiet_lightning

        with quiet_lightning():
            result = fit(
                prepared.potential,
                prepared.graphs["train"],
                prepared.graphs["valid"],
                config,
                accelerator,
                folder,
                resume,
                display,
            )
        if display is not None:
            print(FINISHING, flush=True)
        summary = _finish(config, prepared, folder, result, accelerator) if is_main else {}
    finally:
        torch.set_num_threads(threads)
    return RunResult(folder, summary, result.stopped == "interrupted", prepared.split.warnings)


def prepare(config: TrainConfig) -> Prepared:
    """Load the data and build the potential with its initial weights."""
    options = config.dataset.model_dump(exclude={"source", "reference_energies"})
    split = load_split(config.dataset.source, seed=config.seed, **options)
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    graphs = {name: GraphDataset(frames, config.model.cutoff) for name, frames in parts.items()}
    statistics = collect_statistics(
        split.train,
        graphs["train"].average_neighbors(),
        split.isolated_atoms,
        config.dataset.reference_energies,
    )
    start = choose_start(config, statistics.species, statistics.avg_neighbors)
    config = resolve(config, start, len(split.train))
    potential = initial_potential(config, start, statistics, graphs["train"])
    references = potential.readout.reference_energies.tolist()
    fitted_to_rest = start.weights is not None and statistics.reference_source == LEAST_SQUARES
    description = {
        "source": split.source,
        "sha256": data_hash([*split.train, *split.valid, *split.test]),
        "frames": {name: len(frames) for name, frames in parts.items()},
        "license": split.license,
        "notes": split.notes,
        "warnings": list(split.warnings),
        "elements": statistics.species,
        "reference_energies_eV": dict(zip(map(str, potential.species), references, strict=True)),
        "reference_energies_from": statistics.reference_source
        + (", of what the starting weights leave" if fitted_to_rest else ""),
        "start": start.reason,
        "architecture": potential.architecture,
        "forces_rms_eV_per_A": statistics.energy_scale,
        "neighbors_per_atom": statistics.avg_neighbors,
    }
    return Prepared(split, graphs, statistics, config, description, potential)


def _finish(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    result: "FitResult",
    accelerator: str,
) -> dict[str, Any]:
    """Export, test, summarise, report."""
    from training import finish, last_layer, uncertainty

    device = "cuda" if accelerator == "cuda" else "cpu"
    potential = prepared.potential.to(device).eval()
    parts: list[Any] = [prepared.graphs["train"], prepared.graphs["valid"]]
    parts = [last_layer.rows(potential, part, device) if len(part) else None for part in parts]
    if None not in parts:
        parts = list(last_layer.refit(potential, *parts))
    uncertainty.calibrate(potential, *parts)
    finish.save(potential, folder, prepared.description, config, result)
    predictions, errors = finish.test(potential, prepared.graphs, folder, device)
    summary = finish.summarize(folder, prepared.graphs, result, errors, device)
    write_json(folder.summary, summary)
    if predictions is not None:
        predictions.save(folder.predictions)
    finish.report(folder, config, prepared.description, summary, predictions)
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


def _announce(config: TrainConfig, prepared: Prepared, folder: RunFolder) -> None:
    from ase.data import chemical_symbols

    frames = prepared.description["frames"]
    elements = " ".join(chemical_symbols[z] for z in prepared.statistics.species)
    parameters = sum(p.numel() for p in prepared.potential.parameters())
    print(
        f"{prepared.split.source}: {frames['train']} training, {frames['valid']} validation, "
        f"{frames['test']} test frames ({elements})"
    )
    print(f"{config.model.name} with {parameters:,} parameters -> {folder.path}")
    print(f"starting from {prepared.description['start']}", flush=True)
    for warning in prepared.split.warnings:
        print(f"note: {warning}", flush=True)
