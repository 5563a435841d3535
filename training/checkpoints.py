"""The potential inside Lightning's checkpoints, read without Lightning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcefield.files import write_json
from training.config import TrainConfig

SUMMARY = "summary.json"
"""Of a run's folder."""

GOING_ON = "going on"
"""How a run ended that has not: it was continued."""

_PREFIX = "potential."


def potential_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The potential's part of the training module's state."""
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """Averaged weights of the potential, and the number of finished epochs."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return potential_weights(checkpoint["state_dict"]), int(checkpoint["epoch"]) + 1


def mark_as_going_on(folder: Path) -> None:
    """Note in a run's summary, if it has one, that its results are of before."""
    path = folder / SUMMARY
    if path.is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["train"]["stopped"] = GOING_ON
        write_json(path, summary)


def goes_on(folder: Path) -> bool:
    """Whether a run was continued and has left no results since: it runs, or it was killed."""
    path = folder / SUMMARY
    if not path.is_file():
        return False
    stopped = json.loads(path.read_text(encoding="utf-8")).get("train", {}).get("stopped")
    return bool(stopped == GOING_ON)


def run_metadata(config: TrainConfig, data: dict[str, Any], epochs: int) -> dict[str, Any]:
    """What the files of a potential say of its training.

    Args:
        config: The run's configuration.
        data: Contents of data.json.
        epochs: Finished epochs.
    """
    return {
        "name": config.name,
        "data": data,
        "training": {"config": config.model_dump(), "epochs": epochs, "seed": config.seed},
    }
