"""Trajectories of MDAnalysis, handed on as those of mdtraj.

    from featurizers.mdanalysis import pieces
    features = concatenate(list(featurizer.stream(pieces(universe.select_atoms("protein")))))

Elements come from the universe's attribute ``elements``, never from masses or names.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from forcefield.errors import ConfigError, UnknownElementError
from forcefield.units import NANOMETER

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory


def pieces(atoms: Any, chunk: int = 1000, stride: int = 1) -> "Iterator[Trajectory]":
    """Frames of a universe or of a group of its atoms.

    Args:
        atoms: ``MDAnalysis.Universe`` or ``AtomGroup``; positions in Å, as always there.
        chunk: Frames at a time.
        stride: Take every so many-th frame.

    Yields:
        Trajectories of mdtraj with ``chunk`` frames, fewer in the last, and unit cells if the universe
        has them.

    Raises:
        UnknownElementError: The universe has no elements, or one that there is not.
        ConfigError: ``chunk`` or ``stride`` is below 1.
    """
    from mdtraj import Trajectory

    if chunk < 1 or stride < 1:
        raise ConfigError(f"chunk and stride start at 1, found {chunk} and {stride}")
    group = atoms.atoms
    topology = topology_of(group)
    frames = group.universe.trajectory[::stride]
    positions: list[np.ndarray] = []
    boxes: list[np.ndarray | None] = []
    times: list[float] = []
    for k, frame in enumerate(frames):
        positions.append(group.positions.astype(np.float64) / NANOMETER)
        boxes.append(None if frame.dimensions is None else frame.dimensions.copy())
        times.append(float(frame.time))
        if len(positions) == chunk or k == len(frames) - 1:
            piece = Trajectory(np.array(positions), topology, time=np.array(times))
            if all(box is not None for box in boxes):
                box = np.array(boxes, dtype=np.float64)
                piece.unitcell_lengths, piece.unitcell_angles = box[:, :3] / NANOMETER, box[:, 3:]
            yield piece
            positions, boxes, times = [], [], []


def topology_of(group: Any) -> "Topology":
    """The topology of a group of atoms: segments become chains.

    Bonds are taken over; where there are none, those of standard residues are added.

    Raises:
        UnknownElementError: See :func:`pieces`.
    """
    from mdtraj import Topology
    from mdtraj.core.element import get_by_symbol

    if not hasattr(group, "elements"):
        raise UnknownElementError(
            "the universe has no elements: set them with universe.add_TopologyAttr('elements', ...), or "
            "load a topology file that states them"
        )
    topology = Topology()
    chains: dict[Any, Any] = {}
    residues: dict[Any, Any] = {}
    made = {}
    for atom in group:
        segment, residue = atom.segment.ix, atom.residue.ix
        if segment not in chains:
            chains[segment] = topology.add_chain(chain_id=str(atom.segment.segid))
        if residue not in residues:
            residues[residue] = topology.add_residue(
                str(atom.residue.resname), chains[segment], resSeq=int(atom.residue.resid)
            )
        try:
            element = get_by_symbol(atom.element.capitalize())
        except KeyError:
            raise UnknownElementError(
                f"atom {atom.ix} ({atom.name}) has the element {atom.element!r} in the universe"
            ) from None
        made[atom.ix] = topology.add_atom(str(atom.name), element, residues[residue])
    for bond in getattr(group, "bonds", ()):
        one, other = (made.get(atom.ix) for atom in bond)
        if one is not None and other is not None:
            topology.add_bond(one, other)
    if not topology.n_bonds:
        topology.create_standard_bonds()
    return topology
