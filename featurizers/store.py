"""Features on disk: HDF5 or zarr, written piece by piece, with everything needed to know what they are.

Features that fit into memory can also be written as npz, numpy's own format.

A file holds one group for each trajectory, ``trajectories/0`` and so on, with the arrays ``scalars``
(f, t, c), ``vectors`` (f, t, 3, c) and ``positions`` (f, t, 3), float32, Å. What was done is in the
attribute ``description`` of the file, JSON: labels of the tokens, weights, options, sources.

Only the frames that the attribute ``frames`` of a group counts are there: a piece that was cut short
is written again.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurizers.features import TrajectoryFeatures
from forcefield.errors import ConfigError, DataError
from forcefield.files import write_with
from forcefield.version import __version__

FORMAT = "hegnn-forcefield features"
FORMAT_VERSION = 1
HDF5, ZARR, NPZ = (".h5", ".hdf5"), (".zarr",), (".npz",)
_FORMAT = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__}
ARRAYS = ("scalars", "vectors", "positions")
CHUNK_BYTES = 2**20
"""Of the pieces in which arrays lie on the disk."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of several trajectories of one system, in memory.

    Attributes:
        trajectories: Features, one element for each trajectory.
        description: What they are: see :class:`FeatureStore`.
    """

    trajectories: list[TrajectoryFeatures]
    description: Mapping[str, Any]

    @property
    def frame_time(self) -> float | None:
        """Time between frames, ps, None if nobody said."""
        time = self.description.get("frame_time_ps")
        return None if time is None else float(time)

    @property
    def sources(self) -> list[Path]:
        """Files of the trajectories."""
        return [Path(path) for path in self.description.get("sources", [])]

    @property
    def topology(self) -> Path | None:
        """File of the topology."""
        path = self.description.get("topology")
        return None if path is None else Path(path)

    @property
    def atom_indices(self) -> list[int] | None:
        """Atoms of the topology that were kept, None for all."""
        return self.description.get("atom_indices")

    @property
    def periodic(self) -> bool | None:
        """What was said of unit cells: see :class:`featurizers.trajectory.Options`."""
        options = self.description.get("options", {})
        periodic: bool | None = options.get("periodic")
        return periodic

    @property
    def stride(self) -> int:
        """Frames of the sources from one frame of the features to the next."""
        return int(self.description.get("stride", 1))


class FeatureStore:
    """A file of features that grows.

    Args:
        root: The open file, of h5py or zarr; both have the same groups, arrays and attributes.
    """

    def __init__(self, root: Any) -> None:
        self.root = root

    @property
    def description(self) -> dict[str, Any]:
        """What is in it."""
        return json.loads(self.root.attrs["description"])

    def describe(self, description: Mapping[str, Any]) -> None:
        """Replace the description."""
        self.root.attrs["description"] = json.dumps(dict(description))

    def frames(self, trajectory: int) -> int:
        """Complete frames of a trajectory, 0 if there is nothing of it."""
        name = f"trajectories/{trajectory}"
        return int(self.root[name].attrs["frames"]) if name in self.root else 0

    def is_complete(self, trajectory: int) -> bool:
        """Whether :meth:`complete` was called for a trajectory."""
        name = f"trajectories/{trajectory}"
        return name in self.root and bool(self.root[name].attrs["complete"])

    def append(self, trajectory: int, features: TrajectoryFeatures) -> None:
        """Add frames behind those that are there; there may be more until :meth:`complete` is called."""
        name = f"trajectories/{trajectory}"
        if name not in self.root:
            self._create(name, features)
        group = self.root[name]
        start = int(group.attrs["frames"])
        stop = start + len(features)
        for array in ARRAYS:
            values = getattr(features, array)
            if array not in group:
                continue
            group[array].resize((stop, *values.shape[1:]))
            group[array][start:stop] = values
        group.attrs["frames"] = stop
        group.attrs["complete"] = False
        if hasattr(self.root, "flush"):
            self.root.flush()

    def complete(self, trajectory: int) -> None:
        """Note that a trajectory has no more frames."""
        self.root[f"trajectories/{trajectory}"].attrs["complete"] = True

    def _create(self, name: str, features: TrajectoryFeatures) -> None:
        group = self.root.create_group(name)
        group.attrs["frames"] = 0
        group.attrs["complete"] = False
        for array in ARRAYS:
            shape = getattr(features, array).shape[1:]
            if 0 in shape:  # HDF5 keeps no empty arrays; a reader needs no more than the shape.
                group.attrs[f"shape of {array}"] = list(shape)
                continue
            rows = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
            _create_array(group, array, shape, (rows, *shape))

    def read(self, trajectory: int, frames: slice = slice(None)) -> TrajectoryFeatures:
        """Some or all frames of a trajectory."""
        group = self.root[f"trajectories/{trajectory}"]
        chosen = slice(*frames.indices(int(group.attrs["frames"])))
        count = len(range(chosen.start, chosen.stop, chosen.step))

        def values(array: str) -> np.ndarray:
            if array in group:
                return np.asarray(group[array][chosen])
            return np.zeros((count, *group.attrs[f"shape of {array}"]), dtype=np.float32)

        return _features(values, self.description["labels"])


@contextmanager
def create_store(path: str | Path, description: Mapping[str, Any]) -> Iterator[FeatureStore]:
    """Start a file, in place of one of that name.

    Args:
        path: Ends in .h5, .hdf5 or .zarr.
        description: ``labels``, and whatever else a reader should know; JSON.

    Raises:
        ConfigError: Another ending, or zarr is not installed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path, "w") as root:
        root.attrs["description"] = json.dumps({**description, **_FORMAT})
        yield FeatureStore(root)


@contextmanager
def open_store(path: str | Path, append: bool = False) -> Iterator[FeatureStore]:
    """Open a file of features.

    Args:
        path: Ends in .h5, .hdf5 or .zarr.
        append: Whether to add frames.

    Raises:
        DataError: There is none, or it is none.
        ConfigError: Another ending, or zarr is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there are no features at {path}")
    with _open(path, "a" if append else "r") as root:
        try:
            description = json.loads(root.attrs["description"])
        except (KeyError, json.JSONDecodeError):
            description = {}
        _check_format(path, description)
        yield FeatureStore(root)


def read_features(path: str | Path) -> FeatureSet:
    """All features of a file, in memory.

    Raises:
        DataError: See :func:`open_store`; or a trajectory is not complete.
    """
    if Path(path).suffix in NPZ:
        return _read_npz(Path(path))
    with open_store(path) as store:
        description = store.description
        number = len(description.get("sources", [])) or len(store.root["trajectories"])
        unfinished = [k for k in range(number) if not store.is_complete(k)]
        if unfinished:
            raise DataError(
                f"{path} is not complete: {len(unfinished)} of {number} trajectories are not "
                "featurised to their end; featurize-trajectory --resume does the rest"
            )
        return FeatureSet([store.read(k) for k in range(number)], description)


def write_features(
    path: str | Path, trajectories: Sequence[TrajectoryFeatures], **description: Any
) -> None:
    """Write features that are in memory.

    Args:
        path: Ends in .h5, .hdf5, .zarr or .npz.
        trajectories: One element for each trajectory, with equal tokens.
        **description: What a reader should know: ``frame_time_ps``, ``sources``, ``topology`` ...
    """
    labels = list(trajectories[0].labels)
    if Path(path).suffix in NPZ:
        _write_npz(Path(path), trajectories, {"labels": labels, **description})
        return
    with create_store(path, {"labels": labels, **description}) as store:
        for k, features in enumerate(trajectories):
            store.append(k, features)
            store.complete(k)


def _features(values: Callable[[str], np.ndarray], labels: Sequence[str]) -> TrajectoryFeatures:
    """Features from arrays by name."""
    return TrajectoryFeatures(
        scalars=values("scalars"),
        vectors=values("vectors"),
        positions=values("positions"),
        labels=tuple(labels),
    )


def _check_format(path: Path, description: Mapping[str, Any]) -> None:
    if description.get("format") != FORMAT:
        raise DataError(f"{path} was not written by featurize-trajectory")
    if description["format_version"] > FORMAT_VERSION:
        raise DataError(f"{path} was written by version {description['version']}: update this one")


def _write_npz(
    path: Path, trajectories: Sequence[TrajectoryFeatures], description: Mapping[str, Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{k}/{name}": getattr(features, name)
        for k, features in enumerate(trajectories)
        for name in ARRAYS
    }
    description = {**description, **_FORMAT}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, description=json.dumps(description), **arrays)

    write_with(path, write)


def _read_npz(path: Path) -> FeatureSet:
    if not path.is_file():
        raise DataError(f"there are no features at {path}")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    description = json.loads(str(arrays.pop("description", "{}")))
    _check_format(path, description)
    trajectories = [
        _features(lambda name, k=k: arrays[f"{k}/{name}"], description["labels"])  # type: ignore[misc]
        for k in range(len(arrays) // len(ARRAYS))
    ]
    return FeatureSet(trajectories, description)


@contextmanager
def _open(path: Path, mode: Literal["r", "a", "w"]) -> Iterator[Any]:
    if path.suffix in HDF5:
        import h5py

        try:
            file = h5py.File(path, mode)
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error}") from None
        with file:
            yield file
    elif path.suffix in ZARR:
        try:
            import zarr
        except ImportError:
            raise ConfigError(
                f"{path}: zarr is not installed; pip install zarr, or use .h5"
            ) from None
        yield zarr.open_group(path, mode=mode)
    else:
        known = ", ".join(HDF5 + ZARR)
        raise ConfigError(f"features are written to files that end in {known}, not to {path.name}")


def _create_array(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    if hasattr(group, "create_array"):
        group.create_array(name, shape=(0, *shape), chunks=chunks, dtype="float32")
    else:
        group.create_dataset(
            name, shape=(0, *shape), maxshape=(None, *shape), chunks=chunks, dtype="float32"
        )
