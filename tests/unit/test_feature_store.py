"""Files of features: what comes back, continuing, formats, and the command that writes them."""

import json
import os
import signal

import mdtraj
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from featurizers import TrajectoryFeaturizer
from featurizers.features import concatenate
from featurizers.featurize import _shortest_decimal, featurize
from featurizers.featurize_cli import app
from featurizers.store import FeatureStore, open_store, read_features, write_features
from forcefield.errors import ConfigError, DataError, UnknownElementError
from tests.conftest import Structure, make_potential
from tests.unit.test_featurizers import close, random_walk


@pytest.fixture
def hegnn() -> TrajectoryFeaturizer:
    return TrajectoryFeaturizer.from_potential(make_potential("hegnn"))


@pytest.fixture
def files(ethanol: Structure, tmp_path):
    """Two trajectories, of 23 and 11 frames, and their topology."""
    walk = random_walk(ethanol, frames=34)
    walk[0].save(str(tmp_path / "molecule.pdb"))
    walk[:23].save(str(tmp_path / "a.dcd"))
    walk[23:].save(str(tmp_path / "b.dcd"))
    return [tmp_path / "a.dcd", tmp_path / "b.dcd"], tmp_path / "molecule.pdb"


@pytest.mark.parametrize("name", ["features.h5", "features.zarr", "features.npz"])
@pytest.mark.parametrize("kind", ["hegnn", "egnn"])
def test_what_is_written_is_what_is_computed(kind, name, files, tmp_path):
    featurizer = TrajectoryFeaturizer.from_potential(make_potential(kind))
    sources, top = files
    result = featurize(
        featurizer, sources, tmp_path / name, top, chunk=4, stride=2, frame_time=0.5, tokens="atom"
    )
    assert (result.frames, result.tokens, result.interrupted) == (12 + 6, 9, False)
    features = read_features(tmp_path / name)
    assert features.sources == sources
    assert features.topology == top
    assert features.frame_time == 1.0
    assert features.stride == 2
    for source, part in zip(sources, features.trajectories, strict=True):
        expected = featurizer.transform(mdtraj.load(str(source), top=str(top))[::2])
        assert part.labels == expected.labels
        close(part.scalars, expected.scalars)
        close(part.vectors, expected.vectors)
        close(part.positions, expected.positions)
    with pytest.raises(ConfigError, match="exists"):
        featurize(featurizer, sources, tmp_path / name, top)


@pytest.mark.parametrize("name", ["features.h5", "features.zarr"])
def test_a_stopped_file_is_continued(hegnn, files, tmp_path, name, monkeypatch):
    sources, top = files
    out = tmp_path / name
    stream = TrajectoryFeaturizer.stream_file

    def broken(self, path, *arguments, **keywords):
        for k, piece in enumerate(stream(self, path, *arguments, **keywords)):
            if k == 2:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(TrajectoryFeaturizer, "stream_file", broken)
    with pytest.raises(KeyboardInterrupt):
        featurize(hegnn, sources, out, top, chunk=4, tokens="atom")
    monkeypatch.undo()
    with open_store(out) as store:
        assert (store.frames(0), store.frames(1)) == (8, 0)
    with pytest.raises(DataError, match="2 of 2 trajectories are not featurised"):
        read_features(out)
    with pytest.raises(ConfigError, match="stride was 1, now 3"):
        featurize(hegnn, sources, out, top, stride=3, tokens="atom", resume=True)
    result = featurize(hegnn, sources, out, top, chunk=5, tokens="atom", resume=True)
    assert result.frames == 34
    features = read_features(out)
    whole = hegnn.transform(concatenate_files(sources, top))
    close(concatenate(features.trajectories).scalars, whole.scalars)


@pytest.fixture(params=["xtc", "trr"])
def gromacs(request, ethanol: Structure, tmp_path):
    """A trajectory of 11 frames in a format of GROMACS, and its topology."""
    walk = random_walk(ethanol, frames=11)
    walk[0].save(str(tmp_path / "molecule.pdb"))
    walk.save(str(tmp_path / f"md.{request.param}"))
    return tmp_path / f"md.{request.param}", tmp_path / "molecule.pdb"


def interrupt_after(piece: int, monkeypatch) -> None:
    """Ctrl-C while so many-th pieces are computed, from 1."""
    stream = TrajectoryFeaturizer.stream_file

    def interrupted(*arguments, **keywords):
        for k, features in enumerate(stream(*arguments, **keywords), 1):
            if k == piece:
                os.kill(os.getpid(), signal.SIGINT)
            yield features

    monkeypatch.setattr(TrajectoryFeaturizer, "stream_file", interrupted)


@pytest.mark.parametrize("stride", [1, 2])
def test_ctrl_c_in_the_last_piece_ends_a_file(hegnn, gromacs, stride, tmp_path, monkeypatch):
    source, top = gromacs
    interrupt_after(1, monkeypatch)
    result = featurize(hegnn, [source], tmp_path / "features.h5", top, stride=stride)
    assert not result.interrupted
    assert len(read_features(tmp_path / "features.h5").trajectories[0]) == len(range(0, 11, stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_file_that_misses_only_its_mark_is_continued(
    hegnn, gromacs, stride, tmp_path, monkeypatch
):
    source, top = gromacs
    out = tmp_path / "features.h5"

    def aborted(self, trajectory):
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "complete", aborted)
    with pytest.raises(KeyboardInterrupt):
        featurize(hegnn, [source], out, top, stride=stride)
    monkeypatch.undo()
    with pytest.raises(DataError, match="not complete"):
        read_features(out)
    result = featurize(hegnn, [source], out, top, stride=stride, resume=True)
    assert (result.frames, result.interrupted) == (len(range(0, 11, stride)), False)
    assert len(read_features(out).trajectories[0]) == result.frames


def test_strides_go_on_where_they_stopped(hegnn, gromacs, tmp_path, monkeypatch):
    source, top = gromacs
    out = tmp_path / "features.h5"
    interrupt_after(1, monkeypatch)
    assert featurize(hegnn, [source], out, top, chunk=2, stride=2).interrupted
    monkeypatch.undo()
    assert featurize(hegnn, [source], out, top, chunk=2, stride=2, resume=True).frames == 6
    expected = hegnn.transform(mdtraj.load(str(source), top=str(top))[::2])
    close(read_features(out).trajectories[0].scalars, expected.scalars)


def test_other_weights_do_not_continue_a_file(hegnn, files, tmp_path):
    sources, top = files
    out = tmp_path / "features.h5"
    featurize(hegnn, sources[:1], out, top)
    other = TrajectoryFeaturizer.from_potential(make_potential("hegnn", seed=1))
    assert other.backbone.architecture == hegnn.backbone.architecture
    with pytest.raises(ConfigError, match="started with other weights"):
        featurize(other, sources, out, top, resume=True)
    again = TrajectoryFeaturizer.from_potential(make_potential("hegnn"))
    assert featurize(again, sources, out, top, resume=True).frames == 34
    with open_store(out, append=True) as store:
        store.describe({k: v for k, v in store.description.items() if "sha256" not in k})
    assert len(read_features(out).trajectories) == 2
    with pytest.raises(ConfigError, match="does not say which weights made it"):
        featurize(hegnn, sources, out, top, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chunk": 0}, ConfigError, "chunk and stride start at 1"),
        ({"stride": 0}, ConfigError, "chunk and stride start at 1"),
        ({"pooling": "max"}, ConfigError, "unknown pooling"),
        ({"periodic": True}, DataError, "no unit cell"),
        ({"element": "Xe"}, UnknownElementError, "Xe"),
    ],
)
def test_mistakes_leave_files_as_they_are(hegnn, files, tmp_path, changes, error, message):
    sources, top = files
    out = tmp_path / "features.h5"
    featurize(hegnn, sources[:1], out, top)
    before = out.read_bytes()
    options = dict(changes)
    if element := options.pop("element", None):
        lines = top.read_text().splitlines()
        first = next(k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM")))
        lines[first] = f"{lines[first][:76]}{element:>2}"
        top.write_text("\n".join(lines))
    for name, overwrite in (("features.h5", True), ("new.h5", False)):
        with pytest.raises(error, match=message):
            featurize(hegnn, sources, tmp_path / name, top, overwrite=overwrite, **options)
    assert out.read_bytes() == before
    assert not (tmp_path / "new.h5").exists()


def concatenate_files(sources, top) -> mdtraj.Trajectory:
    return mdtraj.load([str(source) for source in sources], top=str(top))


def test_trajectories_can_be_added(hegnn, files, tmp_path):
    sources, top = files
    out = tmp_path / "features.h5"
    featurize(hegnn, sources[:1], out, top)
    result = featurize(hegnn, sources, out, top, resume=True)
    assert result.frames == 34
    assert [len(part) for part in read_features(out).trajectories] == [23, 11]
    with pytest.raises(ConfigError, match="began with other trajectories"):
        featurize(hegnn, sources[1:], out, top, resume=True)


def test_features_of_ones_own(hegnn, files, tmp_path):
    sources, top = files
    parts = [hegnn.transform_file(source, top=top) for source in sources]
    write_features(tmp_path / "own.h5", parts, frame_time_ps=2.0)
    features = read_features(tmp_path / "own.h5")
    assert features.frame_time == 2.0
    assert features.sources == []
    np.testing.assert_array_equal(features.trajectories[1].scalars, parts[1].scalars)


def test_what_is_refused(hegnn, files, tmp_path):
    sources, top = files
    with pytest.raises(ConfigError, match=r"end in \.h5, \.hdf5, \.zarr"):
        featurize(hegnn, sources, tmp_path / "features.txt", top)
    with pytest.raises(DataError, match="no such file"):
        featurize(hegnn, [tmp_path / "c.dcd"], tmp_path / "features.h5", top)
    with pytest.raises(ConfigError, match="selects none of 9 atoms"):
        featurize(hegnn, sources, tmp_path / "features.h5", top, selection="protein")
    with pytest.raises(DataError, match="no features at"):
        read_features(tmp_path / "features.h5")
    (tmp_path / "other.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be opened"):
        read_features(tmp_path / "other.h5")


def test_trajectories_of_other_intervals_are_refused(hegnn, ethanol, tmp_path):
    walk = random_walk(ethanol, frames=5)
    walk[0].save(str(tmp_path / "molecule.pdb"))
    paths = []
    for name, interval in (("a.xtc", 1.0), ("b.xtc", 1.0), ("c.xtc", 10.0)):
        walk.time = 500.0 + interval * np.arange(5)
        walk.save(str(tmp_path / name))
        paths.append(tmp_path / name)
    top = tmp_path / "molecule.pdb"
    featurize(hegnn, paths[:2], tmp_path / "f.h5", top, stride=2)
    assert read_features(tmp_path / "f.h5").frame_time == 2.0
    with pytest.raises(DataError, match=r"1 ps apart in .*a\.xtc and 10 ps in .*c\.xtc"):
        featurize(hegnn, paths, tmp_path / "g.h5", top)
    assert not (tmp_path / "g.h5").exists()
    # Whoever gives the time knows better.
    featurize(hegnn, paths, tmp_path / "g.h5", top, frame_time=1.0)


def test_trajectories_of_other_systems_are_refused(hegnn, ethanol, tmp_path):
    other = Structure(ethanol.positions, np.roll(ethanol.numbers, 1))
    for name, structure in (("a.pdb", ethanol), ("b.pdb", other)):
        random_walk(structure, frames=2).save(str(tmp_path / name))
    paths = [tmp_path / "a.pdb", tmp_path / "b.pdb"]
    with pytest.raises(DataError, match=r"b\.pdb has other tokens than .*a\.pdb"):
        featurize(hegnn, paths, tmp_path / "f.h5", tokens="atom")
    with pytest.raises(DataError, match=r"is of other atoms in .*b\.pdb than in"):
        featurize(hegnn, paths, tmp_path / "g.h5", selection="element O")


def test_a_trajectory_that_was_cut_short_is_told_as_that(hegnn, gromacs, tmp_path):
    source, top = gromacs
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size - 20)
    with pytest.raises(DataError, match="was it cut short, or is it still being written"):
        featurize(hegnn, [source], tmp_path / "features.h5", top, chunk=4)


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_from_files_to_features(self, files, tmp_path):
        sources, top = files
        out = tmp_path / "features.h5"
        beads = tmp_path / "beads.json"
        beads.write_text(json.dumps({"CC": [0, 1], "O": [2]}))
        result = self.run(*sources, "--top", top, "--out", out, "--tokens", beads)
        assert result.exit_code == 0, result.output
        assert "34 frames of 2 tokens, 64 scalars and 16 vectors each" in result.output
        features = read_features(out)
        assert features.trajectories[0].labels == ("CC", "O")
        again = self.run(*sources, "--top", top, "--out", out, "--tokens", beads)
        assert again.exit_code == 2
        assert "--resume" in again.output

    def test_ctrl_c_before_a_file_that_is_written_at_the_end(self, files, tmp_path, monkeypatch):
        sources, top = files
        interrupt_after(1, monkeypatch)
        out = tmp_path / "features.npz"
        result = self.run(*sources, "--top", top, "--out", out, "--quiet")
        assert result.exit_code == 130
        assert "Stopped; nothing was written: .npz is written at the end" in result.output
        assert not out.exists()

    def test_selection(self, files, tmp_path):
        sources, top = files
        out = tmp_path / "features.h5"
        arguments = ["--tokens", "atom", "--select", "name =~ 'C.*'", "--quiet"]
        result = self.run(*sources, "--top", top, "--out", out, *arguments)
        assert result.exit_code == 0, result.output
        features = read_features(out)
        assert features.atom_indices == [0, 1]
        assert features.trajectories[0].scalars.shape == (23, 2, 64)
        wrong = self.run(*sources, "--top", top, "--out", tmp_path / "g.h5", "--select", "name (")
        assert wrong.exit_code == 2
        assert "not in mdtraj's language" in wrong.output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--threads", "0"], "threads starts at 1, found 0"),
            (["--device", "gpu"], "unknown device 'gpu'; choose 'cpu' or 'cuda'"),
            pytest.param(
                ["--device", "cuda"],
                "finds no CUDA device",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
            ),
            (["--chunk", "0"], "chunk and stride start at 1"),
        ],
    )
    def test_mistakes_are_told_in_a_sentence(self, files, tmp_path, arguments, message):
        sources, top = files
        result = self.run(*sources, "--top", top, "--out", tmp_path / "f.h5", *arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert message in result.output
        assert not (tmp_path / "f.h5").exists()

    def test_times_come_from_files_that_have_them(self, ethanol, tmp_path):
        walk = random_walk(ethanol, frames=5)
        walk.time = 2.5 * np.arange(5)
        walk.save(str(tmp_path / "md.xtc"))
        walk[0].save(str(tmp_path / "molecule.pdb"))
        arguments = ["--top", tmp_path / "molecule.pdb", "--stride", "2"]
        out = tmp_path / "features.h5"
        result = self.run(tmp_path / "md.xtc", *arguments, "--out", out, "--quiet")
        assert result.exit_code == 0, result.output
        assert read_features(out).frame_time == 5.0
        walk.save(str(tmp_path / "md.dcd"))
        self.run(tmp_path / "md.dcd", *arguments, "--out", tmp_path / "b.h5", "--quiet")
        assert read_features(tmp_path / "b.h5").frame_time is None


def test_a_file_of_that_name_with_other_frames_is_not_gone_on_with(hegnn, files, tmp_path):
    sources, top = files
    out = tmp_path / "features.h5"
    interrupted = featurize(hegnn, sources, out, top)
    assert not interrupted.interrupted
    walk = mdtraj.load(str(sources[1]), top=str(top))
    longer = mdtraj.join([walk, walk[:3]])
    longer.save(str(sources[1]))  # As a simulation leaves it that went on meanwhile.
    assert featurize(hegnn, sources, out, top, resume=True).frames == 37
    expected = hegnn.transform(longer, tokens="atom")
    close(read_features(out).trajectories[1].scalars, expected.scalars)
    walk[:5].save(str(sources[1]))
    with pytest.raises(DataError, match="has 5 frames, fewer than the 14 that were featurised"):
        featurize(hegnn, sources, out, top, resume=True)
    longer[::-1].save(str(sources[1]))
    with pytest.raises(ConfigError, match="is not the trajectory that was featurised"):
        featurize(hegnn, sources, out, top, resume=True)


def test_the_order_of_files_and_a_time_that_was_not_known(hegnn, files, tmp_path):
    sources, top = files
    out = tmp_path / "features.h5"
    featurize(hegnn, sources[1:], out, top)
    assert read_features(out).frame_time is None
    # The shell sorts run-10 before run-2.
    featurize(hegnn, sources, out, top, resume=True, frame_time=2.0)
    features = read_features(out)
    assert [len(part) for part in features.trajectories] == [11, 23]
    assert features.frame_time == 2.0


def test_groups_of_atoms_as_numpy_has_them(hegnn, files, tmp_path):
    sources, top = files
    tokens = {"head": np.array([0, 1, 2]), "tail": (3, 4)}
    for name in ("features.h5", "features.npz"):
        featurize(hegnn, sources[:1], tmp_path / name, top, tokens=tokens)
        assert read_features(tmp_path / name).description["options"]["tokens"]["head"] == [0, 1, 2]
    more = featurize(hegnn, sources, tmp_path / "features.h5", top, tokens=tokens, resume=True)
    assert more.frames == 34
    before = (tmp_path / "features.h5").read_bytes()
    (tmp_path / "half.npz").write_bytes((tmp_path / "features.npz").read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "half.npz")
    assert (tmp_path / "features.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.19921875, 0.00195, 0.2),
        (1.0000001, 5e-7, 1.0),
        (0.5, 1e-7, 0.5),
        (12.3456, 1e-5, 12.3456),
    ],
)
def test_times_are_what_somebody_has_set(value, error, expected):
    assert _shortest_decimal(value, error) == expected
