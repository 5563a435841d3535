"""Whole simulations: one call, or the command ``simulate-potential``, leaves a folder with everything.

    from calculators.simulation import make_settings, simulate
    settings = make_settings({"potential": "potential.pt", "structure": "ethanol.xyz", "time": "10ps"})
    result = simulate(settings, "run")
    result.summary["stability"]["verdict"]

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calculators.simulation.run import SimulationResult, simulate
    from calculators.simulation.settings import SimulationSettings, make_settings

_MODULES = {
    "SimulationResult": "run",
    "SimulationSettings": "settings",
    "make_settings": "settings",
    "simulate": "run",
}

__all__ = ["SimulationResult", "SimulationSettings", "make_settings", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
