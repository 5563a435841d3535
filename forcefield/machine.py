"""What a result depends on besides its settings: versions of packages, and the machine."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import forcefield


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of this project, Python, torch with its build, and packages that are installed."""
    found = {
        "hegnn-forcefield": forcefield.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, str | int]:
    """Where something runs.

    Args:
        device: Torch's name of the kind of device.
    """
    facts: dict[str, str | int] = {
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """The processor's name; Python itself knows only its architecture on Linux."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
