"""Features of every frame of a trajectory from the representation of a potential.

    features = TrajectoryFeaturizer.from_potential("potential.safetensors").transform(trajectory)

A trained network has learnt to describe an atom's surroundings; the features before its readout,
pooled over atoms, residues or molecules, are coordinates in which slow motions can be looked for
without choosing distances and dihedrals by hand. The idea is that of geom2vec: Z. Pengmei, C.
Lorpaiboon, S. C. Guo, J. Weare, A. R. Dinner, "Using pretrained graph neural networks with token
mixers as geometric featurizers for conformational dynamics", arXiv 2409.19838.

Shapes: frames ``f``, atoms ``n``, edges ``e``, tokens ``t``, channels ``c``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from featurizers.edges import cells_of, edges_of
from featurizers.tokens import TokenKind, Tokens, assign_tokens, atomic_numbers
from forcefield import Potential, load_potential
from forcefield.errors import ConfigError, DataError
from forcefield.pretrained import BACKBONE
from forcefield.units import NANOMETER

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory

Pooling = Literal["sum", "mean"]
"""How the atoms of a token become one."""

BATCH_ATOMS = {"cpu": 500, "cuda": 20_000}
"""Atoms evaluated at a time: on a CPU what stays in its cache, on a GPU what keeps it busy."""


@dataclass(frozen=True)
class TrajectoryFeatures:
    """Features of the tokens of every frame.

    Attributes:
        scalars: Unchanged by rotations and reflections, (f, t, c), float32.
        vectors: Turn with the frame, (f, t, 3, c), float32, components x, y, z; for a model without
            directions c = 0.
        labels: Name of each token, t of them.
    """

    scalars: np.ndarray
    vectors: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True)
class TrajectoryFeaturizer:
    """Maps trajectories to the atomic features of a potential.

    Options of all methods:

    * ``tokens``: ``atom``, ``residue``, or ``molecule`` (residues joined by bonds).
    * ``pooling``: ``sum`` or ``mean`` of the atoms of a token.
    * ``periodic``: None takes periodic images into account if the trajectory has a unit cell; True
      demands one; False leaves it aside, which is right only for whole molecules.
    * ``batch_frames``: Frames evaluated at a time; None for some 500 atoms on a CPU, 20 000 on a GPU.

    Attributes:
        potential: Its representation is used, where its weights lie and in their precision.
    """

    potential: Potential

    @classmethod
    def pretrained(
        cls, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> "TrajectoryFeaturizer":
        """Featurise with the weights that ship with the package: molecules of H C N O F S Cl.

        Args:
            device: Where to evaluate it.
            dtype: Precision of the network; None for float32.
        """
        return cls.from_potential(BACKBONE, device, dtype)

    @classmethod
    def from_potential(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "TrajectoryFeaturizer":
        """Load a potential to featurise with.

        Args:
            path: Weights file, ``potential.safetensors`` in the folder of a training run.
            device: Where to evaluate it.
            dtype: Precision of the network, if not that of the file.

        Raises:
            CheckpointError: There is no such file, or it is not one of this project.
        """
        potential, _ = load_potential(path, dtype)
        return cls(potential.to(device))

    def transform(
        self,
        trajectory: "Trajectory",
        tokens: TokenKind = "atom",
        pooling: Pooling = "sum",
        periodic: bool | None = None,
        batch_frames: int | None = None,
    ) -> TrajectoryFeatures:
        """Featurise a trajectory in memory.

        Args:
            trajectory: From mdtraj, in nm as always there; the elements are those of its topology.
            tokens: See the class, as for the other options.
            pooling: Sum or mean.
            periodic: Whether to use the unit cell.
            batch_frames: Frames at a time.

        Raises:
            UnknownElementError: The potential does not know an element, or an atom has none.
            InvalidStructureError: A virtual site, a position that is not finite, two atoms in one
                place, or a unit cell without room for the atoms.
            DataError: No frames, no unit cell although one is demanded, or no bonds to tell
                molecules by.
            ConfigError: An option has an impossible value.
        """
        frames = range(trajectory.n_frames)
        return self._transform(trajectory, frames, tokens, pooling, periodic, batch_frames)

    def stream_file(
        self,
        path: str | Path,
        top: "str | Path | Trajectory | Topology | None" = None,
        *,
        chunk: int = 1000,
        stride: int = 1,
        atom_indices: Sequence[int] | np.ndarray | None = None,
        tokens: TokenKind = "atom",
        pooling: Pooling = "sum",
        periodic: bool | None = None,
        batch_frames: int | None = None,
    ) -> Iterator[TrajectoryFeatures]:
        """Featurise a file piece by piece, for trajectories that do not fit into memory.

        Args:
            path: Any format that mdtraj reads.
            top: Topology, or the file that holds it; not needed for formats that have their own.
            chunk: Frames to read at a time.
            stride: Take every so many-th frame.
            atom_indices: Atoms to keep, such as those of the solute; the others are not seen by the
                potential either.
            tokens: See the class, as for the other options.
            pooling: Sum or mean.
            periodic: Whether to use the unit cell.
            batch_frames: Frames at a time, within a chunk.

        Yields:
            Features of ``chunk`` frames, fewer in the last piece.

        Raises:
            DataError: The file or its topology cannot be read, or they do not fit each other.
            ForceFieldError: As for :meth:`transform`; frames are those of the file.
        """
        if chunk < 1 or stride < 1:
            raise ConfigError(f"chunk and stride start at 1, found {chunk} and {stride}")
        start = 0
        for trajectory in _read(Path(path), top, chunk, stride, atom_indices):
            frames = range(start, start + stride * trajectory.n_frames, stride)
            yield self._transform(trajectory, frames, tokens, pooling, periodic, batch_frames)
            start = frames.stop

    def transform_file(
        self,
        path: str | Path,
        top: "str | Path | Trajectory | Topology | None" = None,
        *,
        chunk: int = 1000,
        stride: int = 1,
        atom_indices: Sequence[int] | np.ndarray | None = None,
        tokens: TokenKind = "atom",
        pooling: Pooling = "sum",
        periodic: bool | None = None,
        batch_frames: int | None = None,
    ) -> TrajectoryFeatures:
        """The pieces of :meth:`stream_file`, with the same arguments and errors, joined into one.

        Only the features need to fit into memory.
        """
        parts = list(
            self.stream_file(
                path,
                top,
                chunk=chunk,
                stride=stride,
                atom_indices=atom_indices,
                tokens=tokens,
                pooling=pooling,
                periodic=periodic,
                batch_frames=batch_frames,
            )
        )
        if not parts:
            raise DataError(f"{path} has no frames")
        return TrajectoryFeatures(
            np.concatenate([part.scalars for part in parts]),
            np.concatenate([part.vectors for part in parts]),
            parts[0].labels,
        )

    def _transform(
        self,
        trajectory: "Trajectory",
        frames: range,
        tokens: TokenKind,
        pooling: Pooling,
        periodic: bool | None,
        batch_frames: int | None,
    ) -> TrajectoryFeatures:
        """:meth:`transform`; ``frames`` are the numbers of the frames in messages."""
        numbers = atomic_numbers(trajectory.topology, self.potential.species)
        token_map = assign_tokens(trajectory.topology, tokens)
        step = self._batch_frames(len(numbers), batch_frames)
        if pooling not in get_args(Pooling):
            raise ConfigError(
                f"unknown pooling {pooling!r}; known are {', '.join(get_args(Pooling))}"
            )
        if trajectory.n_frames == 0:
            raise DataError("the trajectory has no frames")
        cells = cells_of(trajectory, frames, periodic)

        parts = []
        for start in range(0, len(frames), step):
            batch = slice(start, start + step)
            positions = trajectory.xyz[batch].astype(np.float64) * NANOMETER
            edge_index, vectors = edges_of(
                positions,
                numbers,
                None if cells is None else cells[batch],
                self.potential.cutoff,
                self._device,
                frames[batch],
            )
            atoms = self._represent(numbers, len(positions), edge_index, vectors)
            parts.append([_pool(values, token_map, pooling) for values in atoms])
        scalars, directions = (np.concatenate(values) for values in zip(*parts, strict=True))
        return TrajectoryFeatures(scalars, directions, token_map.labels)

    @property
    def _device(self) -> torch.device:
        return self.potential.readout.scale.device

    def _batch_frames(self, num_atoms: int, batch_frames: int | None) -> int:
        if batch_frames is None:
            return max(1, BATCH_ATOMS.get(self._device.type, 500) // max(1, num_atoms))
        if batch_frames < 1:
            raise ConfigError(f"batch_frames starts at 1, found {batch_frames}")
        return batch_frames

    def _represent(
        self, numbers: np.ndarray, frames: int, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (f, n, c) and vectors (f, n, 3, c) of the atoms of a batch."""
        index = torch.as_tensor(numbers, device=self._device)
        species = self.potential.species_index.index_select(0, index).repeat(frames)
        with torch.no_grad():
            scalars, steerable = self.potential.representation(
                species, edge_index, vectors.to(self.potential.readout.scale.dtype)
            )
        # Degree 1 comes first, in the order x, y, z; a model without directions has no components
        # and no channels, so that nothing is missing from a reshaped (f n, 3, 0).
        shape = (frames, len(numbers))
        directions = steerable[:, :3].reshape(len(species), 3, steerable.shape[2])
        return scalars.unflatten(0, shape), directions.unflatten(0, shape)


def _pool(values: Tensor, tokens: Tokens, pooling: Pooling) -> np.ndarray:
    """Pool features of atoms (f, n, ...) to tokens (f, t, ...), float32."""
    index = torch.as_tensor(tokens.of_atom, device=values.device)
    shape = (values.shape[0], len(tokens.labels), *values.shape[2:])
    pooled = values.new_zeros(shape).index_add(1, index, values)
    if pooling == "mean":
        atoms = torch.bincount(index).to(values.dtype)
        pooled = pooled / atoms.view(-1, *[1] * (values.dim() - 2))
    return pooled.to("cpu", torch.float32).numpy()


def _read(
    path: Path,
    top: "str | Path | Trajectory | Topology | None",
    chunk: int,
    stride: int,
    atom_indices: Sequence[int] | np.ndarray | None,
) -> "Iterator[Trajectory]":
    """Pieces of a file, with mdtraj's complaints as :class:`DataError`."""
    import mdtraj

    pieces = mdtraj.iterload(
        str(path), chunk=chunk, top=top, stride=stride, atom_indices=atom_indices
    )
    while True:
        try:
            piece = next(pieces, None)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read with top={top}: {error}") from error
        if piece is None:
            return
        yield piece
