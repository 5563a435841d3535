"""The commands' first steps: what they need is imported, or named where it is missing."""

import sys
from importlib import import_module
from typing import NoReturn

OURS = ("calculators", "featurizers", "forcefield", "training")

EXIT_MISTAKE = 2


def train_potential() -> None:
    """``train-potential``."""
    _run("train-potential", "training.cli", "train")


def export_potential() -> None:
    """``export-potential``."""
    _run("export-potential", "training.export_cli", "train")


def simulate_potential() -> None:
    """``simulate-potential``."""
    _run("simulate-potential", "calculators.simulation.cli", "simulate")


def featurize_trajectory() -> None:
    """``featurize-trajectory``."""
    _run("featurize-trajectory", "featurizers.featurize_cli", "analysis")


def analyze_trajectory() -> None:
    """``analyze-trajectory``."""
    _run("analyze-trajectory", "featurizers.analyze_cli", "analysis")


def pretrain_featurizer() -> None:
    """``pretrain-featurizer``."""
    _run("pretrain-featurizer", "featurizers.pretraining.cli", "train,analysis")


def _run(command: str, module: str, extras: str) -> None:
    try:
        cli = import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OURS:
            raise
        _fail(command, missing, extras)
    cli.main()


def _fail(command: str, missing: str, extras: str) -> NoReturn:
    print(
        f"{command} needs the package {missing}, which is not installed: "
        f"pip install 'hegnn-forcefield[{extras}]'",
        file=sys.stderr,
    )
    sys.exit(EXIT_MISTAKE)
