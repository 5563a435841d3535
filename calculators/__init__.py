"""Engines that run an exported potential: :mod:`calculators.ase`, :mod:`calculators.openmm`.

Nothing heavy is imported until it is used: ``import calculators`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calculators.ase import PotentialCalculator
    from calculators.batch import calculate_many
    from calculators.committee import CommitteeCalculator
    from calculators.hessian import vibrations
    from calculators.replicas import LangevinReplicas, Replicas

__all__ = [
    "CommitteeCalculator",
    "LangevinReplicas",
    "PotentialCalculator",
    "Replicas",
    "calculate_many",
    "vibrations",
]

_MODULES = {
    "CommitteeCalculator": "committee",
    "LangevinReplicas": "replicas",
    "PotentialCalculator": "ase",
    "Replicas": "replicas",
    "calculate_many": "batch",
    "vibrations": "hessian",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"calculators.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'calculators' has no attribute {name!r}")
