"""After the fit: the files that a run leaves."""

from datetime import UTC, datetime
from typing import Any

from forcefield import Potential, export_potential, load_exported, save_potential
from forcefield.files import write_text
from forcefield.machine import machine, versions
from training.checkpoints import run_metadata
from training.config import TrainConfig
from training.evaluate import Predictions, milliseconds_per_step, predict
from training.fit import FitResult
from training.graphs import GraphDataset
from training.history import read_history
from training.run_folder import RunFolder
from training.uncertainty import calibration_figures, with_uncertainty

VERSIONED = ("lightning", "e3nn", "vesin", "numpy", "ase")
"""Packages whose versions are kept with a result."""


def save(
    potential: Potential,
    folder: RunFolder,
    data: dict[str, Any],
    config: TrainConfig,
    result: FitResult,
) -> None:
    """Write potential.safetensors and potential.pt."""
    metadata = run_metadata(config, data, result.epochs)
    metadata["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    save_potential(potential, folder.weights, metadata)
    export_potential(potential, folder.exported, metadata)


def test(
    potential: Potential, graphs: dict[str, GraphDataset], device: str
) -> tuple[Predictions | None, dict[str, dict[str, float]]]:
    """Evaluate on the test frames, and on the validation frames.

    Returns:
        Predictions on the test frames (None if there are none), with estimated errors if the potential
        has an estimate; and errors of the parts test and valid, with ``uncertainty`` for how estimated
        and true errors of the test frames compare.
    """
    errors, predictions = {}, None
    for part in ("test", "valid"):
        if len(graphs[part]):
            found = predict(potential, graphs[part], device)
            errors[part] = found.errors()
            if part == "test":
                predictions = with_uncertainty(found, potential, graphs[part], device)
                errors["uncertainty"] = calibration_figures(predictions)
    return predictions, errors


def summarize(
    folder: RunFolder,
    graphs: dict[str, GraphDataset],
    result: FitResult,
    errors: dict[str, dict[str, float]],
    device: str,
) -> dict[str, Any]:
    """Contents of summary.json."""
    exported = load_exported(folder.exported, device)
    header = exported.metadata
    return {
        "name": header["name"],
        "test": errors.get("test", {}),
        "valid": errors.get("valid", {}),
        "uncertainty": errors.get("uncertainty", {}),
        "train": {
            "seconds": round(result.seconds, 2),
            "epochs": result.epochs,
            "steps": result.steps,
            "best_epoch": result.best_epoch,
            "stopped": result.stopped,
        },
        "model": {
            "name": header["architecture"]["name"],
            "parameters": header["parameters"],
            "dtype": header["dtype"],
        },
        "inference": {
            "ms_per_step": round(milliseconds_per_step(exported, graphs["train"], device), 4),
            "atoms": len(graphs["train"][0].graph.atomic_numbers),
            "device": device,
        },
        "data": {key: header["data"][key] for key in ("source", "sha256", "frames", "start")},
        "versions": versions(VERSIONED),
        "machine": machine(device),
    }


def report(
    folder: RunFolder,
    config: TrainConfig,
    data: dict[str, Any],
    summary: dict[str, Any],
    predictions: Predictions | None,
) -> None:
    """Write report.html."""
    from training.report import training_report

    html = training_report(config, data, summary, read_history(folder.log), predictions)
    write_text(folder.report, html)
