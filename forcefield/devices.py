"""Where to compute: devices and threads, and what is said of those that there are not."""

import torch

from forcefield.errors import ConfigError


def check_device(name: str | torch.device) -> torch.device:
    """The device, if potentials run on it here.

    Raises:
        ConfigError: There is no such device, or it has no double precision.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise ConfigError(
            "potentials do not run on Apple's GPU ('mps'): it has no double precision, in which "
            "positions and energies of atoms are added up; use device='cpu'"
        )
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {str(name)!r}; choose 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} finds no CUDA device here; use device='cpu', or install the "
            "torch that fits the driver"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {str(device)!r}: the {torch.cuda.device_count()} CUDA devices here are "
            "numbered from 0"
        )
    return device


def use_threads(threads: int | None) -> None:
    """Have torch compute with so many processor threads; None leaves it its own choice.

    Raises:
        ConfigError: The number is below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"threads starts at 1, found {threads}")
    torch.set_num_threads(threads)
