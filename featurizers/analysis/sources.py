"""Back to the trajectories that features were made from: structures of frames, dihedrals.

Features remember the files they come from. If those have been moved, what needs them is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurizers.analysis.frames import Frames
from featurizers.images import whole
from featurizers.store import FeatureSet
from featurizers.trajectory import read_pieces
from forcefield.errors import DataError

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory

CHUNK = 1000
"""Frames read at a time."""


def check_sources(features: FeatureSet) -> None:
    """Check that the files are where they were.

    Raises:
        DataError: They are not, or nobody said where they are.
    """
    if not features.sources:
        raise DataError("the features do not say which trajectories they come from")
    if len(features.sources) != len(features.trajectories):
        raise DataError(
            f"the features name {len(features.sources)} files for "
            f"{len(features.trajectories)} trajectories"
        )
    for path in [*features.sources, *([features.topology] if features.topology else [])]:
        if not path.exists():
            raise DataError(f"{path} is not there any more")


def read_back(
    features: FeatureSet, frames: Frames, chosen: Sequence[int]
) -> tuple["Trajectory", np.ndarray | None]:
    """Structures of some frames, and the dihedrals of all frames of a dipeptide, in one pass.

    Args:
        features: The features, with the names of the files.
        frames: The same, joined.
        chosen: Frames, counted over all trajectories.

    Returns:
        The chosen frames, of the atoms that were featurised, in that order, molecules in one piece; φ
        and ψ in radians, (f, 2), None if the molecule does not have exactly one of each.

    Raises:
        DataError: A file cannot be read, or has become shorter.
    """
    import mdtraj

    periodic = features.periodic is not False
    found: dict[int, Trajectory] = {}
    dihedrals: list[np.ndarray] = []
    wanted = set(chosen)
    for k, path in enumerate(features.sources):
        position, end = frames.bounds[k], frames.bounds[k + 1]
        last = max((frame for frame in wanted if frame < end), default=-1)
        pieces = read_pieces(
            path, features.topology, CHUNK, features.stride, 0, features.atom_indices
        )
        for piece in pieces:
            atoms = _dihedral_atoms(piece.topology)
            for frame in wanted.intersection(range(position, position + len(piece))):
                found[frame] = piece[frame - position]
            position += len(piece)
            if atoms is not None:
                dihedrals.append(mdtraj.compute_dihedrals(piece, atoms, periodic))
            elif position > last:
                break
        else:
            if position != end:
                raise DataError(
                    f"{path} has {position - frames.bounds[k]} frames now, and "
                    f"{end - frames.bounds[k]} were featurised"
                )
    structures = mdtraj.join([found[frame] for frame in chosen])
    cell = structures.unitcell_vectors is not None
    structures.xyz = whole(structures, cell and periodic)
    return structures, np.concatenate(dihedrals) if dihedrals else None


def representatives(
    coordinates: np.ndarray, states: np.ndarray, models: int = 5
) -> list[np.ndarray]:
    """Frames nearest to the centre of each metastable state, the mean of its coordinates.

    Args:
        coordinates: (f, k).
        states: State of each frame, -1 for none, (f,).
        models: Frames for each state.
    """
    chosen = []
    for state in range(states.max() + 1):
        members = np.flatnonzero(states == state)
        distance = np.linalg.norm(coordinates[members] - coordinates[members].mean(axis=0), axis=1)
        chosen.append(members[np.argsort(distance, kind="stable")[:models]])
    return chosen


def write_structures(folder: Path, states: Sequence["Trajectory"]) -> list[Path]:
    """Write the structures of each state, superposed on the first by their heavy atoms.

    Args:
        folder: Receives state-1.pdb and so on, with a model for each frame.
        states: Structures of each state.
    """
    paths = []
    for k, structures in enumerate(states):
        heavy = [atom.index for atom in structures.topology.atoms if atom.element.mass > 2]
        structures.superpose(structures, 0, atom_indices=heavy or None)
        folder.mkdir(exist_ok=True)
        paths.append(folder / f"state-{k + 1}.pdb")
        structures.save_pdb(str(paths[-1]))
    return paths


def _dihedral_atoms(topology: "Topology") -> np.ndarray | None:
    """Atoms of φ and ψ, (2, 4), if there is one of each."""
    from mdtraj.geometry.dihedral import indices_phi, indices_psi

    found = [indices_phi(topology), indices_psi(topology)]
    return np.concatenate(found) if all(len(atoms) == 1 for atoms in found) else None
