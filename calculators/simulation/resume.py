"""Continuing a run: the same settings, the same potential, the same structure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calculators.simulation.folder import SimulationFolder
from calculators.simulation.settings import (
    MAY_CHANGE,
    SimulationSettings,
    changed_settings,
    make_settings,
)
from calculators.simulation.structure import file_hash
from forcefield.errors import CheckpointError, ConfigError


def settings_to_continue(out: str | Path, given: Mapping[str, Any]) -> SimulationSettings:
    """The settings of the run in a folder, with those that a user gives anew.

    Args:
        out: The folder.
        given: Values by name.

    Raises:
        CheckpointError: There is no run in the folder.
        ConfigError: A value is impossible.
    """
    stored = _read(SimulationFolder(Path(out)))["settings"]
    return make_settings({**stored, **given})


def check_continuation(folder: SimulationFolder, settings: SimulationSettings) -> None:
    """Compare settings and files with those of the run in the folder.

    Raises:
        CheckpointError: There is no run in the folder.
        ConfigError: A setting, the potential or the structure is not that of the run.
    """
    stored = _read(folder)
    changes = changed_settings(make_settings(stored["settings"]), settings)
    for name in ("potential", "structure"):
        # Files may have moved: what is in them counts.
        path = Path(getattr(settings, name))
        if name == "structure" and name not in changes:
            continue
        changes.pop(name, None)
        if path.is_file() and file_hash(path) != stored[name].get("sha256"):
            raise ConfigError(
                f"{path} is not the {name} that the run in {folder.path} began with; start a new one "
                "with another --out"
            )
    for name, (old, new) in changes.items():
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"the run in {folder.path} has {name} = {old}, now {new} is asked for; leave it out to "
                "continue, or start a new run with another --out"
            )


def _read(folder: SimulationFolder) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(folder.settings.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no simulation in {folder.path}: nothing to continue") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder.settings} is damaged ({error})") from None
    return values
