"""HEGNN and EGNN potentials: energy, conservative forces and stress from atomic positions.

Units throughout: Å, eV, eV/Å, eV/Å³.
"""

from forcefield.checkpoint import load_potential, save_potential
from forcefield.export import ExportedPotential, export_potential, load_exported
from forcefield.graph import AtomicGraph, build_graph, collate
from forcefield.potential import Potential, build_potential
from forcefield.version import __version__

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
