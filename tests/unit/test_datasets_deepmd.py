"""Folders in the layout of DeePMD-kit."""

from pathlib import Path

import numpy as np
import pytest

from forcefield.errors import ConfigError, DataError
from forcefield.units import BOHR, HARTREE
from training.config_io import load_config
from training.datasets import ReadOptions, load_split, read_frames

SYMBOLS = ["O", "H", "H"]


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Six frames of a water molecule in a cell."""
    rng = np.random.default_rng(5)
    molecule = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    coordinates = molecule + 0.05 * rng.normal(size=(6, 3, 3))
    return {
        "coord": coordinates.reshape(6, 9).astype(np.float32),
        "box": np.tile(np.diag([9.0, 10.0, 11.0]).ravel(), (6, 1)),
        "energy": rng.normal(size=6),
        "force": rng.normal(size=(6, 9)),
        "virial": rng.normal(size=(6, 9)),
    }


def write(system: Path, arrays: dict[str, np.ndarray], types: str = "0 1 1") -> Path:
    system.mkdir(parents=True)
    (system / "type.raw").write_text(types.replace(" ", "\n"))
    (system / "type_map.raw").write_text("O\nH\n")
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        folder = system / f"set.{number:03}"
        folder.mkdir()
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values[part])
    return system


def test_frames_of_all_sets(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    system = write(tmp_path / "water", arrays)
    frames = read_frames(system).frames
    assert [frame.index for frame in frames] == list(range(6))
    for k, frame in enumerate(frames):
        assert frame.atomic_numbers.tolist() == [8, 1, 1]
        assert frame.energy == arrays["energy"][k]
        assert frame.pbc.all()
        np.testing.assert_array_equal(frame.positions.ravel(), arrays["coord"][k])
        np.testing.assert_array_equal(frame.forces.ravel(), arrays["force"][k])
        np.testing.assert_allclose(frame.stress.ravel(), -arrays["virial"][k] / 990.0, rtol=1e-12)
        assert frame.where == f"{system}, frame {k}"


def test_the_virial_is_minus_the_derivative_by_the_strain(tmp_path: Path) -> None:
    """A spring between two atoms: virial = sum of r_ij f_ij, as DeePMD-kit has it."""
    k, rest, r = 2.0, 1.0, np.array([1.5, 0.0, 0.0])
    force = -k * (r[0] - rest)  # on the second atom, along x
    arrays = {
        "coord": np.concatenate([np.zeros(3), r])[None].repeat(6, 0),
        "box": (5.0 * np.eye(3)).reshape(1, 9).repeat(6, 0),
        "energy": np.full(6, 0.5 * k * (r[0] - rest) ** 2),
        "force": np.array([-force, 0, 0, force, 0, 0])[None].repeat(6, 0),
        "virial": np.diag([r[0] * force, 0, 0]).reshape(1, 9).repeat(6, 0),
    }
    stress = read_frames(write(tmp_path / "spring", arrays, "0 1")).frames[0].stress
    # dE/dstrain of the spring is positive: it is stretched.
    assert stress[0, 0] == pytest.approx(k * (r[0] - rest) * r[0] / 125.0)


def test_systems_in_a_folder_without_cells_and_in_other_units(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    for name in ("a", "b"):
        del arrays["box" if name == "a" else "virial"]
        system = write(tmp_path / "all" / name, arrays)
        (system / "nopbc").touch()
    lone = {"coord": np.zeros((6, 3)), "energy": np.full(6, -13.6), "force": np.zeros((6, 3))}
    (write(tmp_path / "all" / "lone", lone, "1") / "nopbc").touch()
    options = ReadOptions(energy_unit="Hartree", length_unit="Bohr")
    reading = read_frames(tmp_path / "all", options)
    assert len(reading.frames) == 12
    lone["energy"] = lone["energy"] + 1.0
    (write(tmp_path / "all" / "other", lone, "1") / "nopbc").touch()
    with pytest.raises(DataError, match=r"the isolated H atom has .* in an earlier frame"):
        read_frames(tmp_path / "all", options)
    assert reading.isolated_atoms == {1: pytest.approx(-13.6 * HARTREE)}
    frame = reading.frames[7]
    assert frame.where == f"{tmp_path / 'all' / 'b'}, frame 1"
    assert (frame.cell, frame.stress) == (None, None)
    np.testing.assert_allclose(frame.positions.ravel(), BOHR * arrays["coord"][1], rtol=1e-7)
    np.testing.assert_allclose(frame.forces.ravel(), HARTREE / BOHR * arrays["force"][1])


def test_training_takes_the_folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    system = write(tmp_path / "water", arrays)
    assert load_config(str(system), []).dataset.source == str(system)
    assert load_config(str(tmp_path), []).dataset.source == str(tmp_path)
    split = load_split(system, train=4, valid=1, test=1, allow_unusual=True)
    assert len(split.train) == 4


def test_what_is_wrong_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    def message(change, **options) -> str:
        system = write(tmp_path / f"{len(list(tmp_path.iterdir()))}", arrays)
        change(system)
        with pytest.raises(DataError) as caught:
            read_frames(system, ReadOptions(**options))
        return str(caught.value)

    assert "no box.npy" in message(lambda s: (s / "set.001" / "box.npy").unlink())
    assert "nopbc" in message(lambda s: (s / "set.001" / "box.npy").unlink())
    assert "no force.npy" in message(lambda s: (s / "set.000" / "force.npy").unlink())
    assert "4 frames of 9 numbers needed, found shape (3, 9)" in message(
        lambda s: np.save(s / "set.000" / "force.npy", np.zeros((3, 9)))
    )
    assert "cannot be read" in message(lambda s: (s / "set.000" / "coord.npy").write_text("1 2"))
    assert "types that type_map.raw (O H)" in message(
        lambda s: (s / "type.raw").write_text("0 1 2")
    )
    assert "Xx in type_map.raw is no element" in message(
        lambda s: (s / "type_map.raw").write_text("O Xx")
    )
    assert "X in type_map.raw is no element" in message(
        lambda s: (s / "type_map.raw").write_text("O X")
    )
    assert "type_map.raw the elements" in message(lambda s: (s / "type_map.raw").unlink())
    assert "mixed type" in message(
        lambda s: np.save(s / "set.000" / "real_atom_types.npy", np.zeros((4, 3)))
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"without the type\.raw"):
        read_frames(empty)
    with pytest.raises(ConfigError, match="energy_key"):
        read_frames(write(tmp_path / "keys", arrays), ReadOptions(energy_key="e"))
