"""The systems whose speed is measured: molecules, a cluster, and water boxes of growing size."""

import numpy as np
from ase import Atoms
from ase.build import molecule

from training.datasets import load_split

SYSTEMS = ("ethanol", "aspirin", "cluster-315", "water-192", "water-1536", "water-12288")

WATER_VOLUME = 29.9
"""Å³ per molecule, at 1 g/cm³."""


def build(name: str) -> Atoms:
    """A system by name: an rMD17 molecule, ``cluster-315`` (15 aspirins) or ``water-N`` (N atoms)."""
    if name == "cluster-315":
        return _cluster(build("aspirin"), (5, 3), 7.5)
    if name.startswith("water-"):
        return _water(int(name.removeprefix("water-")) // 3)
    frame = load_split(f"rmd17:{name}", seed=0, train=1, valid=0, test=0).train[0]
    return Atoms(frame.atomic_numbers, frame.positions)


def _cluster(unit: Atoms, numbers: tuple[int, int], spacing: float) -> Atoms:
    atoms = Atoms()
    for row, column in np.ndindex(*numbers):
        copy = unit.copy()
        copy.translate([row * spacing, column * spacing, 0.0])
        atoms += copy
    return atoms


def _water(molecules: int) -> Atoms:
    """Molecules on a cubic lattice at the density of water, turned at random, the same every time."""
    rng = np.random.default_rng(0)
    edge = round(molecules ** (1.0 / 3.0))
    if edge**3 != molecules:
        raise SystemExit(f"water boxes have 3 k³ atoms, not {3 * molecules}")
    spacing = WATER_VOLUME ** (1.0 / 3.0)
    atoms = Atoms(cell=[edge * spacing] * 3, pbc=True)
    for place in np.ndindex(edge, edge, edge):
        water = molecule("H2O")
        water.rotate(rng.uniform(0.0, 360.0), rng.normal(size=3))
        water.translate(spacing * np.array(place))
        atoms += water
    return atoms
