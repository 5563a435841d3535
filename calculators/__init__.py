"""Engines that run an exported potential: :mod:`calculators.ase`, :mod:`calculators.openmm`.

Nothing heavy is imported until it is used: ``import calculators`` costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calculators.ase import PotentialCalculator
    from calculators.committee import CommitteeCalculator

__all__ = ["CommitteeCalculator", "PotentialCalculator"]


def __getattr__(name: str) -> Any:
    if name == "PotentialCalculator":
        from calculators.ase import PotentialCalculator

        return PotentialCalculator
    if name == "CommitteeCalculator":
        from calculators.committee import CommitteeCalculator

        return CommitteeCalculator
    raise AttributeError(f"module 'calculators' has no attribute {name!r}")
