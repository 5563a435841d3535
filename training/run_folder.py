"""The folder of a run: its files, and whether a run may start or continue in it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcefield.errors import ConfigError
from forcefield.files import write_text
from training.checkpoints import SUMMARY, mark_as_going_on, read_checkpoint
from training.config import TrainConfig
from training.config_io import changed_keys, dump_yaml, read_yaml, validate
from training.start import WEIGHTS, path_of_start
from training.statistics import ISOLATED_ATOMS

MAY_CHANGE = {
    "name",
    "output",
    # Files may have moved; the frames in them may not change.
    "dataset.source",
    "dataset.valid_file",
    "dataset.test_file",
    "dataset.isolated_atoms_file",
    "dataset.cache_dir",
    "training.epochs",
    "training.minutes",
    "hardware.accelerator",
    "hardware.devices",
    "hardware.strategy",
    "hardware.threads",
    "hardware.compile",
}
"""Keys that may differ when a run is resumed."""

FILES = (
    *("data.json", "log.csv", "summary.json", "report.html", "test_predictions.npz"),
    *("potential.safetensors", "potential.pt", "potential-metatomic.pt", "backbone.safetensors"),
    *("start.safetensors", "checkpoints", "tensorboard", "xtb", "xtb.extxyz"),
    *("xtb-starts.npz", "xtb-labelled.npz", "config.yaml"),
)
"""What a run leaves in its folder; the last one says that it is a run."""


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """What the run was trained on: source, hash, statistics, JSON."""
        return self.path / "data.json"

    @property
    def log(self) -> Path:
        """One row per epoch, CSV."""
        return self.path / "log.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of Lightning's checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch that was validated."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint with the lowest validation loss."""
        return self.checkpoints / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The potential's weights, safetensors."""
        return self.path / "potential.safetensors"

    @property
    def start(self) -> Path:
        """A copy of the weights that the run was started from, where they are not the package's."""
        return self.path / "start.safetensors"

    @property
    def exported(self) -> Path:
        """The potential for simulations, TorchScript."""
        return self.path / "potential.pt"

    @property
    def summary(self) -> Path:
        """Errors, times, versions, JSON."""
        return self.path / SUMMARY

    @property
    def predictions(self) -> Path:
        """Labels and predictions on the test frames, npz."""
        return self.path / "test_predictions.npz"

    @property
    def report(self) -> Path:
        """Everything to look at, HTML."""
        return self.path / "report.html"

    def read_config(self) -> TrainConfig:
        """The configuration that the run was started with.

        Raises:
            ConfigError: Missing or not readable by this version.
        """
        return validate(read_yaml(self.config), where=str(self.config))

    def read_summary(self) -> dict[str, Any]:
        """The summary, empty if there is none yet."""
        return (
            json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.is_file() else {}
        )


def check_new(config: TrainConfig, overwrite: bool) -> RunFolder:
    """Check that a new run may use its folder; nothing is changed yet.

    Raises:
        ConfigError: There is something already, and ``overwrite`` is False or it is not a run.
    """
    folder = RunFolder(Path(config.output) / config.name)
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"{folder.path} is a file: choose another name=... or output=...")
    is_run = _is_run(folder)
    if not is_run and folder.path.is_dir() and any(folder.path.iterdir()):
        raise ConfigError(
            f"{folder.path} is not empty and not a run: choose another name=... or output=..."
        )
    if is_run and not overwrite:
        raise ConfigError(
            f"{folder.path} holds a run already: add --resume to continue it, --name to start "
            "another one beside it, or --overwrite to replace it"
        )
    start = path_of_start(config.start)
    if start is not None and start.resolve().is_relative_to(folder.path.resolve()):
        raise ConfigError(
            f"the weights in {config.start} would be replaced by the run that starts from them: give it "
            "another --name"
        )
    data = config.dataset
    for file in (data.source, data.valid_file, data.test_file, data.isolated_atoms_file):
        place = Path(file or "").expanduser().resolve()
        if file and any(place.is_relative_to(folder.path.resolve() / name) for name in FILES):
            raise ConfigError(
                f"{file} would be replaced by the run that is trained on it: give it another --name"
            )
    return folder


def _is_run(folder: RunFolder) -> bool:
    """Whether a run was made in a folder; other programs have a config.yaml, too."""
    try:
        values = read_yaml(folder.config)
    except ConfigError:
        return False
    return {"dataset", "model", "training"} <= values.keys()


def create(folder: RunFolder, config: TrainConfig, overwrite: bool = False) -> None:
    """Make the folder of a new run, after :func:`check_new`.

    What else is in the folder stays there: a simulation with the potential, or the frames to train on.

    Args:
        folder: Of the run.
        config: Its configuration.
        overwrite: Whether it takes the place of an older run.

    Raises:
        ConfigError: Another process has begun a run there since, such as a copy that srun started.
    """
    if overwrite:
        for name in FILES:
            path = folder.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    try:
        folder.checkpoints.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"another process has just begun a run in {folder.path}: start it once, or give each its own "
            "--name"
        ) from None
    start = path_of_start(config.start)
    if start is not None and config.start not in WEIGHTS:
        # The folder that they are in may be moved or deleted before this run is resumed.
        shutil.copyfile(start, folder.start)
    write_text(folder.config, dump_yaml(config))


def kept_start(config: TrainConfig) -> Path | None:
    """The copy of the weights that a run was started from, None where it has none."""
    path = RunFolder(Path(config.output) / config.name).start
    return path if path.is_file() else None


def with_what_was_decided(config: TrainConfig) -> TrainConfig:
    """The configuration of a run that goes on, with what it was begun with and what is not said anew.

    That is where it started, its learning rate, and its length.

    Raises:
        ConfigError: The run's configuration is not readable by this version.
    """
    folder = RunFolder(Path(config.output) / config.name)
    if not folder.config.is_file():
        return config
    before = folder.read_config()
    if config.start == "auto":
        config = config.model_copy(update={"start": before.start})
    said = config.training.model_fields_set
    length = {
        key: getattr(before.training, key) for key in ("epochs", "minutes") if key not in said
    }
    if "epochs" in said and config.training.epochs != before.training.epochs:
        length.pop("minutes", None)  # Who asks for other epochs no longer wants the minutes.
    training = config.training.model_copy(update=length)
    if training.learning_rate is None:
        rate = {"learning_rate": before.training.learning_rate}
        training = training.model_copy(update=rate)
    return config.model_copy(update={"training": training})


def reopen(config: TrainConfig) -> RunFolder:
    """Check that a run can be continued with this configuration.

    Raises:
        ConfigError: There is no run, it is complete, or keys differ that define its result.
    """
    folder = RunFolder(Path(config.output) / config.name)
    if not folder.config.is_file():
        raise ConfigError(f"no run to resume in {folder.path}: leave --resume out to start one")
    changed = changed_keys(folder.read_config(), config)
    refused = {key: values for key, values in changed.items() if key not in MAY_CHANGE}
    if "hardware.devices" in changed and config.training.minutes is None:
        # Steps, by which the learning rate falls, are counted on all devices together.
        refused["hardware.devices"] = changed["hardware.devices"]
    if refused:
        lines = [f"  {key}: was {old!r}, now {new!r}" for key, (old, new) in refused.items()]
        raise ConfigError(
            f"{folder.path} was started with other settings; only training.epochs, training.minutes, "
            "hardware (but for its precision, and devices without minutes) and the places of files may "
            "change on resume:\n" + "\n".join(lines)
        )
    summary = folder.read_summary().get("train", {})
    if summary.get("stopped") == "complete" and config.training.minutes is not None:
        if "training.minutes" not in changed:
            raise ConfigError(
                f"{folder.path} is complete after {config.training.minutes:g} minutes: raise "
                f"training.minutes to train on, such as minutes={2 * config.training.minutes:g}"
            )
    elif summary.get("stopped") == "complete" and summary["epochs"] >= config.training.epochs:
        raise ConfigError(
            f"{folder.path} is complete after {summary['epochs']} epochs: raise training.epochs to train "
            "on, such as epochs=" + str(2 * int(summary["epochs"]))
        )
    if summary.get("stopped") == "early" and changed.keys().isdisjoint(
        {"training.epochs", "training.minutes"}
    ):
        raise ConfigError(
            f"{folder.path} stopped early after {summary['epochs']} epochs, the validation loss no longer "
            "falling: there is nothing to resume"
        )
    if config.training.minutes is None and folder.last.is_file():
        done = read_checkpoint(folder.last)[1]
        if done > config.training.epochs:
            raise ConfigError(
                f"{folder.path} has had {done} epochs already: epochs={config.training.epochs} is less"
            )
    return folder


def go_on(folder: RunFolder, config: TrainConfig) -> Callable[[], None]:
    """Write the configuration of a run that goes on, and mark its results as of before.

    Should it be killed, they are not those of its configuration.

    Returns:
        What takes this back, for a run that fails before it has learned anything more.
    """
    files = [path for path in (folder.config, folder.summary) if path.is_file()]
    before = {path: path.read_text(encoding="utf-8") for path in files}
    learned = _stamp(folder.last)
    mark_as_going_on(folder.path)
    write_text(folder.config, dump_yaml(config))

    def undo() -> None:
        if _stamp(folder.last) == learned:
            for path, text in before.items():
                write_text(path, text)

    return undo


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def check_same_data(folder: RunFolder, description: dict[str, Any]) -> None:
    """Compare the data of a resumed run with those it was started with.

    Raises:
        ConfigError: The frames are not the same.
    """
    if not folder.data.is_file():
        return
    kept = json.loads(folder.data.read_text(encoding="utf-8"))
    before = kept["sha256"]
    if before != description["sha256"]:
        source = description.get("source") or ", ".join(description["sources"])
        raise ConfigError(
            f"{folder.path} was started with other data: the frames from {source} have "
            f"the hash {description['sha256'][:12]}, those of the run {before[:12]}. Restore the "
            "data, or start a new run with --name"
        )
    isolated = [d.get("reference_energies_from") == ISOLATED_ATOMS for d in (kept, description)]
    if "reference_energies_from" in description and any(isolated):
        old, new = (d["reference_energies_eV"] for d in (kept, description))
        if not all(isolated) or any(abs(old[z] - new.get(z, math.inf)) > 1e-6 for z in old):
            raise ConfigError(
                f"{folder.path} was started with other energies of isolated atoms: restore them, or start "
                "a new run with --name"
            )
