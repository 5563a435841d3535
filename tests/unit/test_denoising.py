"""Pretraining by denoising: targets, symmetry, that it learns, and the command around it."""

import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from featurizers import TrajectoryFeaturizer
from featurizers.pretraining.cli import app
from featurizers.pretraining.denoising import (
    build_denoiser,
    disturb,
    disturbed,
    without_rigid_motion,
)
from featurizers.pretraining.structures import divide, read_geometries
from forcefield.checkpoint import read_header
from forcefield.errors import ConfigError, DataError
from tests.conftest import ARCHITECTURES
from training.graphs import GraphDataset, join
from training.pretraining.storage import Structure, save_structures

NAMES = ("CH3CH2OH", "CH3OCH3", "CH3CHO", "HCOOH", "CH4", "H2O", "C2H4", "C2H6")


def small_molecules(copies: int = 1) -> list[Structure]:
    rng = np.random.default_rng(0)
    found = []
    for name in NAMES * copies:
        atoms = molecule(name)
        moved = atoms.positions + rng.normal(0, 0.03, atoms.positions.shape)
        found.append(Structure(atoms.numbers, moved, name))
    return found


@pytest.mark.parametrize("name", ["CH3CH2OH", "CO2", "H2O"])
def test_targets_hold_no_rigid_motion(name):
    atoms = molecule(name)
    noise = np.random.default_rng(1).normal(size=atoms.positions.shape)
    target = without_rigid_motion(noise, atoms.positions)
    centred = atoms.positions - atoms.positions.mean(axis=0)
    np.testing.assert_allclose(target.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(centred, target).sum(axis=0), 0, atol=1e-12)
    # Nothing else was taken: six directions are gone, five for a linear molecule.
    gone = 5 if name == "CO2" else 6
    degrees = 3 * len(atoms)
    many = np.random.default_rng(2).normal(size=(4000, *atoms.positions.shape))
    left = np.mean([(without_rigid_motion(m, atoms.positions) ** 2).sum() for m in many])
    assert left == pytest.approx(degrees - gone, rel=0.03)


def test_noise_has_its_level():
    structure = small_molecules()[0]
    frame = disturb(structure, 0.2, np.random.default_rng(0))
    np.testing.assert_allclose(frame.positions - structure.positions, 0.2 * frame.forces)
    frames = disturbed([structure], (0.02, 0.3), copies=400, seed=1)
    moved = [f.positions - structure.positions for f in frames]
    levels = np.array([(m / f.forces)[0, 0] for m, f in zip(moved, frames, strict=True)])
    assert levels.min() > 0.0199
    assert levels.max() < 0.301
    # Log-uniform: as many below as above the geometric mean.
    assert np.mean(levels < np.sqrt(0.02 * 0.3)) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("kind", ["hegnn", "hegnn-published", "egnn"])
def test_predicted_noise_turns_with_the_molecule(kind):
    torch.manual_seed(0)
    denoiser, _ = build_denoiser(ARCHITECTURES[kind], [1, 6, 8], 8.0)
    denoiser = denoiser.double().eval()
    structure = small_molecules()[0]
    frame = disturb(structure, 0.1, np.random.default_rng(3))
    turn = -Rotation.random(random_state=4).as_matrix()
    turned = Structure(structure.numbers, frame.positions @ turn.T + 1.7, "")
    batch = join(GraphDataset([frame, disturb(turned, 1e-12, np.random.default_rng(3))], 5.0).items)
    noise = denoiser(*batch.graph.tensors())["noise"].detach().numpy()
    count = len(structure.numbers)
    assert np.abs(noise[:count]).max() > 1e-4
    np.testing.assert_allclose(noise[count:], noise[:count] @ turn.T, rtol=0, atol=1e-8)


def test_molecules_are_held_out_whole():
    structures = small_molecules(copies=5)
    train, valid = divide(structures, 0.25)
    assert len(train) + len(valid) == len(structures)
    assert len({s.molecule for s in valid}) == 2
    assert not {s.molecule for s in train} & {s.molecule for s in valid}
    alike = [Structure(s.numbers, s.positions, "all") for s in structures]
    train, valid = divide(alike, 0.1)
    assert (len(train), len(valid)) == (36, 4)
    train, valid = divide(alike, 0.02)  # Fewer than fifty.
    assert (len(train), len(valid)) == (39, 1)


def test_geometries_come_from_many_formats(tmp_path):
    structures = small_molecules()
    atoms = [Atoms(numbers=s.numbers, positions=s.positions) for s in structures]
    write(tmp_path / "a.extxyz", atoms)
    save_structures(structures, tmp_path / "b.npz")
    np.savez(
        tmp_path / "c.npz",
        nuclear_charges=structures[0].numbers,
        coords=structures[0].positions[None],
        energies=np.zeros(1),
        forces=np.zeros((1, *structures[0].positions.shape)),
    )
    for name, expected in (("a.extxyz", 8), ("b.npz", 8), ("c.npz", 1)):
        read = read_geometries(tmp_path / name)
        assert len(read) == expected
        np.testing.assert_allclose(read[0].positions, structures[0].positions, atol=1e-6)
    (tmp_path / "d.xyz").write_text("nothing\n")
    with pytest.raises(DataError, match=r"d\.xyz"):
        read_geometries(tmp_path / "d.xyz")
    (tmp_path / "g.nothing").write_text("")
    with pytest.raises(DataError, match=r"g\.nothing cannot be read"):
        read_geometries(tmp_path / "g.nothing")
    with pytest.raises(DataError, match="no such file"):
        read_geometries(tmp_path / "e.xyz")
    write(tmp_path / "f.extxyz", [atoms[0], Atoms("He", cell=[3.0] * 3, pbc=True)])
    with pytest.raises(DataError, match=r"f\.extxyz, frame 1 is periodic"):
        read_geometries(tmp_path / "f.extxyz")


class TestCommand:
    SETTINGS = (
        *("--set", "features=16", "--set", "channels=4", "--set", "layers=1", "--set", "lmax=1"),
        *("--set", "batch_size=8", "--set", "threads=1", "--set", "compile=false", "--quiet"),
    )

    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_from_geometries_to_features(self, tmp_path):
        atoms = [
            Atoms(numbers=s.numbers, positions=s.positions) for s in small_molecules(copies=12)
        ]
        write(tmp_path / "molecules.extxyz", atoms)
        out = tmp_path / "runs" / "denoising"
        command = [tmp_path / "molecules.extxyz", "--out", out, "--held-out", 0.25, *self.SETTINGS]
        result = self.run(*command, "--set", "epochs=25")
        assert result.exit_code == 0, result.output
        shares = [int(share) for share in re.findall(r"(\d+)% at", result.output)]
        assert len(shares) == 5
        assert min(shares) < 80  # far from saying nothing, on other molecules
        page = (out / "report.html").read_text(encoding="utf-8")
        assert "How much of the noise is found" in page
        header = read_header(out / "backbone.safetensors")
        assert header["kind"] == "backbone"
        assert header["data"]["structures"]["train"] == 72

        featurizer = TrajectoryFeaturizer.from_file(out / "backbone.safetensors")
        assert featurizer.backbone.species == [1, 6, 8]
        again = self.run(*command)
        assert again.exit_code == 2
        assert "holds a run already" in again.output
        other = self.run(*command, "--copies", 3, "--resume", "--set", "epochs=26")
        assert other.exit_code == 2
        assert "started with other data: the frames from molecules.extxyz" in other.output
        assert "molecules held out: " in result.output
        more = self.run(*command, "--resume", "--set", "epochs=26")
        assert more.exit_code == 0, more.output
        log = (out / "log.csv").read_text(encoding="utf-8").splitlines()
        assert log[0].endswith("train_loss,train_unexplained,valid_loss,valid_unexplained")
        assert len(log) == 27

    def test_what_is_refused(self, tmp_path):
        write(tmp_path / "molecules.extxyz", molecule("H2O"))
        few = self.run(tmp_path / "molecules.extxyz", "--out", tmp_path / "run", *self.SETTINGS)
        assert few.exit_code == 2
        assert "too few" in few.output
        wrong = self.run(tmp_path / "molecules.extxyz", "--out", tmp_path / "run", "--noise", 0, 1)
        assert wrong.exit_code == 2
        assert "above zero" in wrong.output

    def test_a_gpu_is_taken_where_there_is_one(self, tmp_path, monkeypatch):
        write(tmp_path / "molecules.extxyz", [molecule(name) for name in NAMES])
        taken = []

        def fit(denoiser, train, valid, config, accelerator, *others):
            taken.append(accelerator)
            raise ConfigError("enough")

        monkeypatch.setattr("training.fit.fit", fit)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        command = [tmp_path / "molecules.extxyz", "--held-out", 0.25, *self.SETTINGS]
        for there in (True, False):
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
            for choice in ("auto", "cpu"):
                out = tmp_path / f"{choice}-{there}"
                result = self.run(*command, "--out", out, "--set", f"accelerator={choice}")
                assert "enough" in result.output
        assert taken == ["cuda", "cpu", "cpu", "cpu"]
        missing = self.run(*command, "--out", tmp_path / "gpu", "--set", "accelerator=gpu")
        assert missing.exit_code == 2
        assert "no CUDA GPU" in missing.output
