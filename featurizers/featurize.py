"""From trajectory files to one file of features, piece by piece: what ``featurize-trajectory`` does."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np

from featurizers.features import TrajectoryFeatures, concatenate
from featurizers.store import NPZ, FeatureStore, create_store, open_store, write_features
from featurizers.trajectory import Options, TrajectoryFeaturizer, check_steps, read_pieces
from forcefield.display import Display, Progress, make_display
from forcefield.errors import ConfigError, DataError, ForceFieldError
from forcefield.interrupt import StopRequest
from forcefield.memory import keep_freed_memory

if TYPE_CHECKING:
    from mdtraj import Trajectory

WITH_TIMES = {".xtc", ".trr", ".h5", ".nc", ".netcdf", ".ncdf", ".hdf5", ".tng", ".gro"}
"""Formats whose files say when a frame was written. mdtraj counts the frames of others."""

WEIGHTS_HASH = "weights_sha256"
"""In the description of a file: the network, to the last bit."""


@dataclass(frozen=True)
class Featurized:
    """What a call of :func:`featurize` did.

    Attributes:
        frames: Frames in the file, of all trajectories.
        tokens: Tokens in each.
        channels: Scalar and vector channels.
        frames_per_second: Speed of this call.
        interrupted: It was stopped; ``resume`` does the rest.
    """

    frames: int
    tokens: int
    channels: tuple[int, int]
    frames_per_second: float
    interrupted: bool


def featurize(
    featurizer: TrajectoryFeaturizer,
    sources: Sequence[str | Path],
    out: str | Path,
    top: str | Path | None = None,
    *,
    selection: str | None = None,
    stride: int = 1,
    chunk: int = 1000,
    frame_time: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    **options: Unpack[Options],
) -> Featurized:
    """Featurise trajectories of one system and write the features to a file.

    Args:
        featurizer: Does the work.
        sources: Files of trajectories, any format that mdtraj reads.
        out: File that ends in .h5, .hdf5 or .zarr, which grows and can be continued; or in .npz, which
            is written at the end.
        top: File of the topology, if the trajectories have none.
        selection: Atoms to keep, in mdtraj's language ("protein"); the network sees no others.
        stride: Take every so many-th frame.
        chunk: Frames to read at a time.
        frame_time: Time between frames of the files, ps, where they do not say it.
        resume: Continue a file that was not finished; new sources may follow the old ones.
        overwrite: Replace a file of that name.
        show_progress: Show frames, frames per second and time left.
        **options: See :class:`featurizers.trajectory.Options`.

    Raises:
        ConfigError: The file exists already, or cannot be continued with these settings.
        DataError: A file cannot be read.
        ForceFieldError: See :meth:`TrajectoryFeaturizer.transform`. What the first frame shows, such as an
            unknown element, is found before the file is touched.
    """
    keep_freed_memory()
    files, out = [Path(source) for source in sources], Path(out)
    if not files:
        raise ConfigError("there is no trajectory to featurise")
    for file in files:
        if not file.is_file():
            raise DataError(f"no such file: {file}")
    check_steps(chunk, stride)
    if out.exists() and not (resume or overwrite):
        raise ConfigError(
            f"{out} exists: add --resume to continue it, or --overwrite to replace it"
        )
    atoms, interval, first = _look_at(files, top, stride, selection, times=frame_time is None)
    # Elements, options and cell are looked at before a file is begun or replaced.
    start = first if atoms is None else first.atom_slice(atoms)
    sample = next(_named(featurizer.stream([start], **options), files[0]))
    frame_time = interval if frame_time is None else stride * frame_time
    description = {
        "labels": list(sample.labels),
        "sources": [str(file.resolve()) for file in files],
        "topology": None if top is None else str(Path(top).resolve()),
        "atom_indices": atoms,
        "stride": stride,
        "frame_time_ps": frame_time,
        "options": {key: value for key, value in options.items() if key != "batch_frames"},
        "backbone": featurizer.backbone.name,
        "architecture": featurizer.backbone.architecture,
        WEIGHTS_HASH: featurizer.backbone.sha256,
    }
    # What a file will hold: numpy's indices as lists, and an error for what JSON does not know.
    description = json.loads(json.dumps(description, default=_as_list))
    if resume and out.exists() and out.suffix not in NPZ:
        files = _in_the_order_of(out, files)
        description["sources"] = [str(file.resolve()) for file in files]
    totals = [_length(file, stride) for file in files]
    stop = StopRequest("this piece")
    meter = _Meter(totals, make_display(10.0) if show_progress else None)
    try:
        with _store(out, description, resume) as store, stop.listening():
            for k, file in enumerate(files):
                done = store.frames(k)
                meter.skip(done)
                total = totals[k]
                if total is not None and total < done:
                    raise DataError(
                        f"{file} has {total} frames, fewer than the {done} that were featurised: begin "
                        "again with --overwrite"
                    )
                if done and not stop.requested:
                    _check_same_frame(featurizer, file, top, stride, atoms, store, k, options)
                # A trajectory may have grown since, that of a simulation that was running then.
                complete = store.is_complete(k) and total in (None, done)
                if stop.requested or complete:
                    continue
                # Stopped behind its last piece: mdtraj cannot skip all frames of an XTC or TRR.
                if done and done == totals[k]:
                    store.complete(k)
                    continue
                pieces = featurizer.stream_file(
                    file,
                    top,
                    chunk=chunk,
                    stride=stride,
                    skip=done * stride,
                    atom_indices=atoms,
                    **options,
                )
                for piece in _named(pieces, file):
                    if piece.labels != sample.labels:
                        raise DataError(
                            f"{file} has other tokens than {files[0]}: trajectories of one system belong "
                            "into one file of features"
                        )
                    store.append(k, piece)
                    meter.add(len(piece))
                    if stop.requested and store.frames(k) != totals[k]:
                        break
                else:
                    if not store.frames(k):
                        raise DataError(f"{file} has no frames")
                    store.complete(k)
            interrupted = not all(store.is_complete(k) for k in range(len(files)))
    finally:
        meter.close()
    channels = sample.scalars.shape[2], sample.vectors.shape[3]
    return Featurized(meter.frames, len(sample.labels), channels, meter.speed, interrupted)


class Store(Protocol):
    """Where features go."""

    def frames(self, trajectory: int) -> int:
        """Frames that are there."""

    def is_complete(self, trajectory: int) -> bool:
        """Whether there are no more."""

    def append(self, trajectory: int, features: TrajectoryFeatures) -> None:
        """Add frames."""

    def complete(self, trajectory: int) -> None:
        """Note that there are no more."""

    def read(self, trajectory: int, frames: slice = ...) -> TrajectoryFeatures:
        """Frames of a trajectory."""


class _Memory:
    """Keeps features until the end."""

    def __init__(self) -> None:
        self.parts: dict[int, list[TrajectoryFeatures]] = {}
        self.done: set[int] = set()

    def frames(self, trajectory: int) -> int:
        return sum(len(part) for part in self.parts.get(trajectory, []))

    def is_complete(self, trajectory: int) -> bool:
        return trajectory in self.done

    def append(self, trajectory: int, features: TrajectoryFeatures) -> None:
        self.parts.setdefault(trajectory, []).append(features)

    def complete(self, trajectory: int) -> None:
        self.done.add(trajectory)

    def read(self, trajectory: int, frames: slice = slice(None)) -> TrajectoryFeatures:
        return concatenate(self.parts[trajectory])[frames]


@contextmanager
def _store(out: Path, description: dict[str, Any], resume: bool) -> Iterator[Store]:
    if out.suffix in NPZ:
        if resume:
            raise ConfigError(f"{out.name} is written at the end and cannot be continued: use .h5")
        memory = _Memory()
        yield memory
        if len(memory.done) == len(description["sources"]):
            whole = [memory.read(k) for k in sorted(memory.done)]
            write_features(out, whole, **description)
    elif resume and out.exists():
        with open_store(out, append=True) as store:
            _check_same(out, store, description)
            yield store
    else:
        with create_store(out, description) as store:
            yield store


def _check_same(out: Path, store: FeatureStore, description: dict[str, Any]) -> None:
    """Whether what is there was made like this; sources may have been added."""
    before = store.description
    if WEIGHTS_HASH not in before:
        raise ConfigError(
            f"{out} does not say which weights made it, as files of older versions do not: other weights "
            "might continue it unnoticed; begin it again with --overwrite"
        )
    if before[WEIGHTS_HASH] != description[WEIGHTS_HASH]:
        raise ConfigError(
            f"{out} was started with other weights, of the network {before['backbone']!r}: continue it "
            "with those (--backbone), or begin it again with --overwrite"
        )
    old, new = before["sources"], description["sources"]
    if new[: len(old)] != old:
        raise ConfigError(f"{out} began with other trajectories: {', '.join(old)}")
    for key in sorted(set(description) - {"sources"}):
        if key == "frame_time_ps" and _same_time(before.get(key), description[key]):
            continue
        # What JSON makes of it: tuples become lists.
        if before.get(key) != description[key]:
            raise ConfigError(
                f"{out} was started with other settings: {key} was {before.get(key)}, now "
                f"{description[key]}"
            )
    known = before.get("frame_time_ps")
    time = description["frame_time_ps"] if known is None else known
    store.describe({**before, "sources": new, "frame_time_ps": time})


def _in_the_order_of(out: Path, files: Sequence[Path]) -> list[Path]:
    """The files with those first that are in a file of features, as they are there."""
    with open_store(out) as store:
        old = store.description.get("sources", [])
    by_name = {str(file.resolve()): file for file in files}
    if len(by_name) < len(files) or not set(old) <= set(by_name):
        return list(files)  # Which is an error, or the caller's own order.
    return [by_name[name] for name in [*old, *(name for name in by_name if name not in old)]]


def _check_same_frame(
    featurizer: TrajectoryFeaturizer,
    file: Path,
    top: str | Path | None,
    stride: int,
    atoms: list[int] | None,
    store: "Store",
    trajectory: int,
    options: Options,
) -> None:
    """Featurise the last frame that is there once more: a file of that name may be another one by now."""
    last = store.frames(trajectory) - 1
    before = store.read(trajectory, slice(last, last + 1))
    pieces = featurizer.stream_file(
        file, top, chunk=1, stride=stride, skip=last * stride, atom_indices=atoms, **options
    )
    now = next(_named(pieces, file), None)
    if now is not None and now.labels == before.labels:
        # Not positions: which image a molecule is put at may differ from version to version.
        old, new = before.scalars, now.scalars[:1]
        if np.allclose(old, new, rtol=1e-3, atol=1e-3 * float(np.abs(old).max(initial=0.0))):
            return
    raise ConfigError(
        f"{file} is not the trajectory that was featurised, its frame {last * stride} is another one: "
        "begin again with --overwrite"
    )


def _as_list(value: Any) -> Any:
    """Arrays and numbers of numpy for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise ConfigError(f"{value!r} ({type(value).__name__}) cannot be written into a file")


def _same_time(before: float | None, now: float | None) -> bool:
    """Whether times agree as far as files keep them; some say none."""
    return before is None or now is None or math.isclose(before, now, rel_tol=0.02)


def _named(pieces: Iterator[TrajectoryFeatures], file: Path) -> Iterator[TrajectoryFeatures]:
    """Pieces; errors name the file."""
    try:
        yield from pieces
    except ForceFieldError as error:
        if str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def _look_at(
    files: Sequence[Path],
    top: str | Path | None,
    stride: int,
    selection: str | None,
    times: bool,
) -> "tuple[list[int] | None, float | None, Trajectory]":
    """Selected atoms, ps between frames where files tell it, and the first frame of the first file."""
    atoms: list[int] | None = None
    first: Trajectory | None = None
    interval: tuple[float, Path] | None = None
    for file in files:
        pieces = read_pieces(file, top, 2, stride)
        begin = next(pieces, None)
        if begin is None:
            raise DataError(f"{file} has no frames")
        if begin.n_frames == 1 and times:  # Pieces of some formats are of frames before striding.
            begin = begin.join([piece[0] for piece in islice(pieces, 1)])
        selected = _select(begin.topology, selection)
        if first is None:
            atoms, first = selected, begin[0]
        elif selected != atoms:
            raise DataError(
                f"selection {selection!r} is of other atoms in {file} than in {files[0]}: trajectories of "
                "one system belong into one file of features"
            )
        if not times or file.suffix.lower() not in WITH_TIMES or begin.n_frames < 2:
            continue
        found = float(begin.time[1] - begin.time[0])
        # Many formats keep times in single precision, late in a long run a coarse one.
        rounding = 4.0 * float(np.spacing(np.float32(abs(begin.time[1]))))
        if found <= rounding:
            continue
        found = _shortest_decimal(found, min(rounding / 4, 0.01 * found))
        if interval is None:
            interval = found, file
        elif abs(found - interval[0]) > 0.01 * found + rounding:
            raise DataError(
                f"frames are {interval[0]:g} ps apart in {interval[1]} and {found:g} ps in {file}: lags "
                "are counted in frames, so put them into files of their own"
            )
    assert first is not None
    return atoms, None if interval is None else interval[0], first


def _shortest_decimal(value: float, error: float) -> float:
    """The number with the fewest digits within an error: what somebody has set."""
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= error:
            return short
    return value


def _select(topology: Any, selection: str | None) -> list[int] | None:
    if selection is None:
        return None
    try:
        atoms = topology.select(selection)
    except (ValueError, SyntaxError, AttributeError) as error:
        raise ConfigError(f"selection {selection!r} is not in mdtraj's language: {error}") from None
    if not len(atoms):
        raise ConfigError(f"selection {selection!r} selects none of {topology.n_atoms} atoms")
    return [int(k) for k in atoms]


def _length(file: Path, stride: int) -> int | None:
    """Frames that a file will give, where its format tells without reading it."""
    import mdtraj

    try:
        with mdtraj.open(str(file)) as opened:
            return -(-len(opened) // stride)
    except Exception:  # Formats differ in what they raise when they do not know.
        return None


class _Meter:
    """Counts frames and shows them."""

    def __init__(self, totals: Sequence[int | None], display: Display | None) -> None:
        known = [total for total in totals if total is not None]
        self.total = sum(known) if len(known) == len(totals) else None
        self.display = display
        self.frames = self._new = 0
        self._start = time.monotonic()
        self._shown = -float("inf")

    @property
    def speed(self) -> float:
        """Frames per second, without those that were there before."""
        return self._new / max(1e-9, time.monotonic() - self._start)

    def skip(self, frames: int) -> None:
        """Frames that were there already."""
        self.frames += frames

    def add(self, frames: int) -> None:
        """Frames that were computed."""
        self.frames += frames
        self._new += frames
        now = time.monotonic()
        last = self.frames == self.total
        if self.display is None or (now - self._shown < self.display.interval and not last):
            return
        self._shown = now
        share = left = None
        of = ""
        if self.total:
            share = min(1.0, self.frames / self.total)
            left = max(0, self.total - self.frames) / self.speed
            of = f" of {self.total:,}"
        place = f"{self.frames:,}{of} frames"
        self.display.update(Progress(share, place, f"{self.speed:.3g} frames/s", left))

    def close(self) -> None:
        """Leave the screen in order."""
        if self.display is not None:
            self.display.close()
