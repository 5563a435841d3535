"""Training of potentials: data sets, configuration, the loop, reports.

    from training import load_config, train
    result = train(load_config("rmd17-ethanol", ["training.epochs=100"]))

Importing this package loads neither torch nor Lightning; using its names does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.config_io import load_config
    from training.run import RunResult, train

__all__ = ["RunResult", "TrainConfig", "load_config", "train"]

_HOMES = {
    "RunResult": "training.run",
    "TrainConfig": "training.config",
    "load_config": "training.config_io",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
