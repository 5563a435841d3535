"""The potential inside Lightning's checkpoints, read without Lightning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig

_PREFIX = "potential."


def potential_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The potential's part of the training module's state."""
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """Averaged weights of the potential, and the number of finished epochs."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return potential_weights(checkpoint["state_dict"]), int(checkpoint["epoch"]) + 1


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
