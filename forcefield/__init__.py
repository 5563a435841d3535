"""HEGNN and EGNN potentials: energy, conservative forces and stress from atomic positions.

Units throughout: Å, eV, eV/Å, eV/Å³. Names are imported when they are first used, so that a command
line can report a mistake before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forcefield.version import __version__

if TYPE_CHECKING:
    from forcefield.checkpoint import load_potential, save_potential
    from forcefield.export import ExportedPotential, export_potential, load_exported
    from forcefield.graph import AtomicGraph, build_graph, collate
    from forcefield.potential import Potential, build_potential

_MODULES = {
    "AtomicGraph": "graph",
    "ExportedPotential": "export",
    "Potential": "potential",
    "build_graph": "graph",
    "build_potential": "potential",
    "collate": "graph",
    "export_potential": "export",
    "load_exported": "export",
    "load_potential": "checkpoint",
    "save_potential": "checkpoint",
}

__all__ = [
    "AtomicGraph",
    "ExportedPotential",
    "Potential",
    "__version__",
    "build_graph",
    "build_potential",
    "collate",
    "export_potential",
    "load_exported",
    "load_potential",
    "save_potential",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
