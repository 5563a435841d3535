"""Features of every frame of a trajectory from the representation of a potential.

    features = TrajectoryFeaturizer.pretrained().transform(trajectory, tokens="residue")

A trained network has learnt to describe an atom's surroundings; the features before its readout,
pooled over atoms, residues or molecules, are coordinates in which slow motions can be looked for
without choosing distances and dihedrals by hand. The idea is that of geom2vec: Z. Pengmei, C.
Lorpaiboon, S. C. Guo, J. Weare, A. R. Dinner, "Using pretrained graph neural networks with token
mixers as geometric featurizers for conformational dynamics", arXiv 2409.19838.

Shapes: frames ``f``, atoms ``n``, edges ``e``, tokens ``t``, channels ``c``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from featurizers.backbone import Backbone
from featurizers.edges import cells_of, edges_of
from featurizers.features import TrajectoryFeatures, concatenate
from featurizers.images import whole
from featurizers.pretrained import WEIGHTS
from featurizers.tokens import Beads, TokenKind, Tokens, assign_tokens, atomic_numbers
from forcefield import Potential
from forcefield.errors import ConfigError, DataError
from forcefield.units import NANOMETER

if TYPE_CHECKING:
    from mdtraj import Topology, Trajectory

Pooling = Literal["sum", "mean"]
"""How the atoms of a token become one."""

BATCH_ATOMS = {"cpu": 500, "cuda": 20_000}
"""Atoms evaluated at a time: on a CPU what stays in its cache, on a GPU what keeps it busy."""


WITHOUT_SKIP = (".pdb", ".pdb.gz", ".gro", ".gsd")
"""Formats in which mdtraj does not skip frames."""

WITHOUT_STRIDE = (".h5", ".hdf5", ".lh5", ".gsd")
"""Formats in which mdtraj counts a piece's frames before it takes every so many-th of them, and so begins
each piece anew."""


class Options(TypedDict, total=False):
    """Options of all methods of :class:`TrajectoryFeaturizer`.

    Attributes:
        tokens: ``atom`` (the default), ``residue``, ``ca`` (the Cα of each residue with its
            surroundings), ``molecule`` (residues joined by bonds), or a mapping from names of tokens
            to atom indices.
        pooling: ``sum`` (the default) or ``mean`` of the atoms of a token.
        hydrogens: False leaves hydrogens out of the tokens. The network sees them all the same: it
            has learnt from whole molecules.
        periodic: None (the default) takes periodic images into account if the trajectory has a unit
            cell; True demands one; False leaves it aside, which is right only for whole molecules.
        batch_frames: Frames evaluated at a time; None (the default) for some 500 atoms on a CPU,
            20 000 on a GPU.
    """

    tokens: TokenKind | Beads
    pooling: Pooling
    hydrogens: bool
    periodic: bool | None
    batch_frames: int | None


@dataclass(frozen=True)
class TrajectoryFeaturizer:
    """Maps trajectories to atomic features, pooled to tokens; options are those of :class:`Options`.

    Attributes:
        backbone: The network, evaluated where its weights lie and in their precision.
    """

    backbone: Backbone

    @classmethod
    def pretrained(
        cls,
        weights: Literal["general", "denoising"] = "general",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> "TrajectoryFeaturizer":
        """Featurise with weights that ship with the package.

        Args:
            weights: ``general``, those of the general potential, for H, C, N, O, F, S and Cl; or
                ``denoising``, trained to remove noise, for P, Br and I as well.
            device: As for :meth:`from_file`, like the others.
            dtype: Precision of the network.
            compile: Whether to compile the network.

        Raises:
            ConfigError: There are no such weights, or the device is not there.
        """
        if weights not in WEIGHTS:
            raise ConfigError(f"unknown weights {weights!r}; known are {', '.join(WEIGHTS)}")
        return cls.from_file(WEIGHTS[weights], device, dtype, compile)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> "TrajectoryFeaturizer":
        """Load what to featurise with.

        Args:
            path: Weights of a potential, ``potential.safetensors`` in the folder of a training run,
                or ``backbone.safetensors`` of ``pretrain-featurizer``.
            device: Where to evaluate it.
            dtype: Precision of the network, if not that of the file.
            compile: See :meth:`Backbone.compile`; for trajectories of tens of thousands of frames.

        Raises:
            CheckpointError: There is no such file, or it is not one of this project.
            ConfigError: The device is not there, or has no double precision.
        """
        return cls(Backbone.load(path, device, dtype, compile))

    @classmethod
    def from_potential(cls, potential: Potential) -> "TrajectoryFeaturizer":
        """Featurise with a potential in memory, such as one that was loaded to look at its energies too.

        Args:
            potential: Evaluated where its weights lie and in their precision. They are shared, not
                copied, and its representation is left in evaluation mode.
        """
        return cls(Backbone.of(potential))

    def transform(self, trajectory: "Trajectory", **options: Unpack[Options]) -> TrajectoryFeatures:
        """Featurise a trajectory in memory.

        Args:
            trajectory: From mdtraj, in nm as always there; the elements are those of its topology.
            **options: See :class:`Options`.

        Raises:
            UnknownElementError: The network does not know an element, or an atom has none.
            InvalidStructureError: A virtual site, a position that is not finite, two atoms in one
                place, or a unit cell without room for the atoms.
            DataError: No frames, no unit cell although one is demanded, or no bonds to tell
                molecules by.
            ConfigError: An option has an impossible value.
        """
        return self._transform(trajectory, range(trajectory.n_frames), **options)

    def stream(
        self,
        pieces: "Iterable[Trajectory]",
        *,
        start: int = 0,
        stride: int = 1,
        **options: Unpack[Options],
    ) -> Iterator[TrajectoryFeatures]:
        """Featurise a trajectory piece by piece.

        Args:
            pieces: Parts of one trajectory, such as those of ``mdtraj.iterload`` or
                :func:`featurizers.mdanalysis.pieces`.
            start: Number of the first frame, for messages.
            stride: What the number grows by from frame to frame, for messages.
            **options: See :class:`Options`.

        Yields:
            Features of each piece.

        Raises:
            ForceFieldError: As for :meth:`transform`.
        """
        for piece in pieces:
            frames = range(start, start + stride * piece.n_frames, stride)
            yield self._transform(piece, frames, **options)
            start = frames.stop

    def stream_file(
        self,
        path: str | Path,
        top: "str | Path | Trajectory | Topology | None" = None,
        *,
        chunk: int = 1000,
        stride: int = 1,
        skip: int = 0,
        atom_indices: Sequence[int] | np.ndarray | None = None,
        **options: Unpack[Options],
    ) -> Iterator[TrajectoryFeatures]:
        """Featurise a file piece by piece, for trajectories that do not fit into memory.

        Args:
            path: Any format that mdtraj reads.
            top: Topology, or the file that holds it; not needed for formats that have their own.
            chunk: Frames to read at a time.
            stride: Take every so many-th frame.
            skip: Frames of the file to leave out at its beginning.
            atom_indices: Atoms to keep, such as those of the solute; the others are not seen by the
                network either.
            **options: See :class:`Options`.

        Yields:
            Features of ``chunk`` frames, fewer in the last piece.

        Raises:
            DataError: The file or its topology cannot be read, or they do not fit each other.
            ForceFieldError: As for :meth:`transform`; frames are those of the file.
        """
        check_steps(chunk, stride, skip)
        pieces = read_pieces(Path(path), top, chunk, stride, skip, atom_indices)
        return self.stream(pieces, start=skip, stride=stride, **options)

    def transform_file(
        self,
        path: str | Path,
        top: "str | Path | Trajectory | Topology | None" = None,
        *,
        chunk: int = 1000,
        stride: int = 1,
        atom_indices: Sequence[int] | np.ndarray | None = None,
        **options: Unpack[Options],
    ) -> TrajectoryFeatures:
        """The pieces of :meth:`stream_file`, with the same arguments and errors, joined into one.

        Only the features need to fit into memory.
        """
        parts = list(
            self.stream_file(
                path, top, chunk=chunk, stride=stride, atom_indices=atom_indices, **options
            )
        )
        if not parts:
            raise DataError(f"{path} has no frames")
        return concatenate(parts)

    def _transform(
        self,
        trajectory: "Trajectory",
        frames: range,
        *,
        tokens: TokenKind | Beads = "atom",
        pooling: Pooling = "sum",
        hydrogens: bool = True,
        periodic: bool | None = None,
        batch_frames: int | None = None,
    ) -> TrajectoryFeatures:
        """:meth:`transform`; ``frames`` are the numbers of the frames in messages."""
        numbers = atomic_numbers(trajectory.topology, self.backbone.species)
        token_map = assign_tokens(trajectory.topology, tokens, hydrogens)
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
                self.backbone.cutoff,
                self.backbone.device,
                frames[batch],
            )
            atoms = self.backbone(numbers, len(positions), edge_index, vectors)
            parts.append([_pool(values, token_map, pooling) for values in atoms])
        scalars, directions = (np.concatenate(values) for values in zip(*parts, strict=True))
        joined = torch.from_numpy(whole(trajectory, cells is not None)) * NANOMETER
        return TrajectoryFeatures(
            scalars, directions, _pool(joined, token_map, "mean"), token_map.labels
        )

    def _batch_frames(self, num_atoms: int, batch_frames: int | None) -> int:
        if batch_frames is None:
            atoms = BATCH_ATOMS.get(self.backbone.device.type, 500)
            return max(1, atoms // max(1, num_atoms))
        if batch_frames < 1:
            raise ConfigError(f"batch_frames starts at 1, found {batch_frames}")
        return batch_frames


def _pool(values: Tensor, tokens: Tokens, pooling: Pooling) -> np.ndarray:
    """Pool features of atoms (f, n, ...) to tokens (f, t, ...), float32."""
    atoms = torch.as_tensor(tokens.atoms, device=values.device)
    index = torch.as_tensor(tokens.token_of, device=values.device)
    shape = (values.shape[0], len(tokens.labels), *values.shape[2:])
    pooled = values.new_zeros(shape).index_add(1, index, values.index_select(1, atoms))
    if pooling == "mean":
        count = torch.bincount(index).to(values.dtype)
        pooled = pooled / count.view(-1, *[1] * (values.dim() - 2))
    return pooled.to("cpu", torch.float32).numpy()


def check_steps(chunk: int, stride: int, skip: int = 0) -> None:
    """Raise :class:`ConfigError` for what no file can be read by; see :func:`read_pieces`."""
    if chunk < 1 or stride < 1 or skip < 0:
        raise ConfigError(
            f"chunk and stride start at 1 and skip at 0, found {chunk}, {stride} and {skip}"
        )


def read_pieces(
    path: Path,
    top: "str | Path | Trajectory | Topology | None",
    chunk: int,
    stride: int = 1,
    skip: int = 0,
    atom_indices: Sequence[int] | np.ndarray | None = None,
) -> "Iterator[Trajectory]":
    """Pieces of a file, with mdtraj's complaints as :class:`DataError`."""
    import mdtraj

    # mdtraj takes only text for a topology's file.
    top = str(top) if isinstance(top, Path) else top
    name = path.name.lower()
    # Some formats begin at their first frame whatever is to be skipped.
    from_start = name.endswith(WITHOUT_SKIP)
    by_hand = skip > 0 and from_start
    if stride > 1:
        by_hand = by_hand or name.endswith(WITHOUT_STRIDE)
        # mdtraj's strides in an XTC go round in circles, over wrong frames and without end, if it has
        # skipped some; those in a TRR have room for the chosen atoms only and read all.
        by_hand = by_hand or (name.endswith(".xtc") and skip > 0)
        by_hand = by_hand or (name.endswith(".trr") and atom_indices is not None)
    pieces = mdtraj.iterload(
        str(path),
        chunk=chunk,
        top=top,
        stride=1 if by_hand else stride,
        skip=0 if from_start else skip,
        atom_indices=atom_indices,
    )
    if by_hand:
        pieces = _thinned(pieces, skip if from_start else 0, stride)
    while True:
        try:
            piece = next(pieces, None)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read with top={top}: {error}") from error
        except RuntimeError as error:  # Of the readers of XTC and TRR.
            raise DataError(
                f"{path}: {error}; was it cut short, or is it still being written?"
            ) from error
        if piece is None:
            return
        yield piece


def _thinned(pieces: "Iterator[Trajectory]", skip: int, stride: int) -> "Iterator[Trajectory]":
    """Every so many-th frame behind the first ``skip``, of pieces that hold all frames."""
    wanted = skip
    for piece in pieces:
        if wanted < piece.n_frames:
            part = piece[wanted::stride]
            wanted += stride * part.n_frames
            yield part
        wanted -= piece.n_frames
