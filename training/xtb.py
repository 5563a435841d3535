"""A run's own molecules at the level of GFN2-xTB first: thousands of frames that cost milliseconds each.

Where frames of the wanted level of theory are few, they show too few geometries. GFN2-xTB (Bannwarth,
Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652, 2019) labels geometries around them
(:mod:`training.xtb_labels`), a run in the folder ``xtb`` of the run's own learns these, and its weights are
what the run's own frames start from.
"""

from collections.abc import Sequence
from typing import Any

from forcefield.files import write_text
from training.config import DatasetConfig, TrainConfig
from training.config_io import dump_yaml
from training.datasets.frames import Frame
from training.run_folder import RunFolder
from training.start import MANY_FRAMES, Start
from training.xtb_labels import Labels

EPOCHS = 20
"""Passes over the labelled frames where a run has a number of epochs, which counts its own frames."""
SHARE = 0.7
"""Of the minutes where a run has a time."""
LEAST_SHARE = 0.1
"""What is left for the run's own frames where the first run took longer than foreseen."""
ADVICE = (
    "few frames and random weights: xtb_frames=2000 learns geometries around them from GFN2-xTB first "
    "(docs/data.md; needs tblite)"
)


def would_help(config: TrainConfig, start: Start, frames: Sequence[Frame]) -> bool:
    """Whether to tell the user of ``xtb_frames``: few frames of molecules, and nothing to start from."""
    few = start.weights is None and len(frames) < MANY_FRAMES
    return few and not config.xtb_frames and not any(frame.pbc.any() for frame in frames)


def first_folder(folder: RunFolder) -> RunFolder:
    """Where the first run is, in the folder of the run itself."""
    return RunFolder(folder.path / "xtb")


def is_done(first: RunFolder) -> bool:
    """Whether the first run came to its end."""
    return first.read_summary().get("train", {}).get("stopped") in ("complete", "early")


def first_run(config: TrainConfig, labels: Labels, folder: RunFolder) -> TrainConfig:
    """The configuration of the run that learns the labelled frames, in the folder ``xtb``.

    Args:
        config: Of the run itself, its start resolved.
        labels: The labelled frames.
        folder: Of the run itself.
    """
    minutes = config.training.minutes
    training = config.training.model_copy(
        update={
            "epochs": EPOCHS,
            "minutes": None if minutes is None else SHARE * minutes,
            "learning_rate": None,
        }
    )
    # Hot geometries may have forces that a user's own should not.
    dataset = DatasetConfig(
        source=str(labels.path), valid=labels.held_out, test=0, allow_unusual=True
    )
    first = first_folder(folder)
    return config.model_copy(
        update={
            "name": first.path.name,
            "output": str(folder.path),
            "xtb_frames": 0,
            "dataset": dataset,
            "training": training,
        }
    )


def follow(first: RunFolder, config: TrainConfig) -> None:
    """Tell a first run that is to be resumed where its frames are: the folder may have been moved.

    Args:
        first: Begun before.
        config: From :func:`first_run`.
    """
    moved = first.read_config().model_copy(update={"dataset": config.dataset})
    write_text(first.config, dump_yaml(moved))


def second_run(config: TrainConfig, learned: dict[str, Any]) -> TrainConfig:
    """The configuration for the run's own frames: what the first run has left of the minutes.

    Args:
        config: Of the run itself.
        learned: From :func:`describe`.
    """
    minutes = config.training.minutes
    if minutes is not None:
        left = minutes - learned["training_seconds"] / 60.0
        minutes = max(left, LEAST_SHARE * minutes)
    training = config.training.model_copy(update={"minutes": minutes})
    return config.model_copy(update={"training": training})


def start(before: Start, learned: dict[str, Any], folder: RunFolder) -> Start:
    """Where the run's own frames begin: the weights of the first run.

    Args:
        before: Where the first run began.
        learned: From :func:`describe`.
        folder: Of the run itself.
    """
    reason = f"{before.reason}, trained on {learned['frames']} frames of GFN2-xTB"
    return Start(first_folder(folder).weights, reason)


def describe(labels: Labels, first: RunFolder) -> dict[str, Any]:
    """What the run's summary says about the first run."""
    summary = first.read_summary()
    return {
        "frames": labels.count,
        "labelling_seconds": round(labels.seconds, 1),
        "training_seconds": summary["train"]["seconds"],
        "valid": summary["valid"],
    }
