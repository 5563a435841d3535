"""Readers of the published npz layouts, each rebuilt from the embedded ethanol frames."""

from pathlib import Path

import numpy as np
import pytest

from forcefield.errors import ConfigError, DataError
from forcefield.units import BOHR, EV, HARTREE, KCAL_PER_MOL
from training.datasets import ReadOptions
from training.datasets.md17 import read_npz

Arrays = dict[str, np.ndarray]
EMBEDDED = Path(__file__).parents[2] / "training/datasets/data"


@pytest.fixture(scope="module")
def ethanol() -> Arrays:
    with np.load(EMBEDDED / "rmd17_ethanol_train_01.npz") as archive:
        return {key: archive[key][:20] for key in archive.files}


def revised(a: Arrays) -> Arrays:
    return {
        "nuclear_charges": a["nuclear_charges"][:9],
        "coords": a["coords"],
        "energies": a["energies"],
        "forces": a["forces"],
        "old_indices": a["old_indices"],
        "old_energies": a["energies"] - 120.0,
        "old_forces": a["forces"] + 1.0,
    }


def original(a: Arrays) -> Arrays:
    return {
        "z": a["nuclear_charges"][:9],
        "R": a["coords"],
        "E": a["energies"].reshape(-1, 1),
        "F": a["forces"],
    }


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_embedded_files_hold_the_published_numbers() -> None:
    train = read_npz(EMBEDDED / "rmd17_ethanol_train_01.npz").frames
    test = read_npz(EMBEDDED / "rmd17_ethanol_test_01.npz").frames
    assert len(train) == len(test) == 1000
    published = {  # kcal/mol, read off the published files
        ("train", 0): -97079.92222178938,
        ("train", 499): -97079.74689352573,
        ("train", 999): -97080.29282622099,
        ("test", 0): -97082.38717602966,
        ("test", 1): -97075.32009527847,
        ("test", 999): -97073.20878392262,
    }
    for (part, index), energy in published.items():
        frame = (train if part == "train" else test)[index]
        assert frame.energy == energy * KCAL_PER_MOL
        assert frame.index == index
    assert train[0].atomic_numbers.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    assert train[0].atomic_numbers.dtype == np.int64
    np.testing.assert_array_equal(train[0].positions[0], [-0.17406277, -0.48797864, 0.0185579])
    np.testing.assert_array_equal(test[0].positions[0], [0.06783209, 0.46966327, 0.21332665])
    np.testing.assert_allclose(
        train[0].forces[0] / KCAL_PER_MOL, [-17.64730699, -26.13751651, 40.70575377], atol=5e-9
    )
    np.testing.assert_allclose(
        test[999].forces[8] / KCAL_PER_MOL, [8.09219461, -14.80907871, 25.51294693], atol=5e-9
    )
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) < 1_300_000


def test_revised_layout_takes_the_new_labels(tmp_path: Path, ethanol: Arrays) -> None:
    reading = read_npz(save(tmp_path / "rmd17_ethanol.npz", revised(ethanol)))
    assert len(reading.frames) == 20
    frame = reading.frames[7]
    assert frame.energy == ethanol["energies"][7] * KCAL_PER_MOL
    np.testing.assert_array_equal(frame.forces, ethanol["forces"][7] * KCAL_PER_MOL)
    np.testing.assert_array_equal(frame.positions, ethanol["coords"][7])
    assert frame.cell is None
    assert not frame.pbc.any()


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_original_layout_with_either_shape_of_energies(
    tmp_path: Path, ethanol: Arrays, shape: tuple[int, ...]
) -> None:
    arrays = original(ethanol) | {"E": ethanol["energies"].reshape(shape)}
    frames = read_npz(save(tmp_path / "ethanol_dft.npz", arrays)).frames
    assert [f.energy for f in frames] == (ethanol["energies"] * KCAL_PER_MOL).tolist()
    assert isinstance(frames[0].energy, float)


def test_sgdml_layout_with_text_arrays_beside_the_data(tmp_path: Path, ethanol: Arrays) -> None:
    extra = {"type": np.array(b"d"), "name": np.array(b"ethanol"), "theory": np.array("CCSD(T)")}
    frames = read_npz(save(tmp_path / "ccsd.npz", original(ethanol) | extra)).frames
    assert frames[3].energy == ethanol["energies"][3] * KCAL_PER_MOL


@pytest.mark.parametrize("as_bytes", [False, True])
def test_units_stated_in_the_file_count(tmp_path: Path, ethanol: Arrays, as_bytes: bool) -> None:
    texts = {"e_unit": "hartree", "r_unit": "bohr"}
    units = {k: np.array(v.encode() if as_bytes else v) for k, v in texts.items()}
    reading = read_npz(save(tmp_path / "own.npz", original(ethanol) | units))
    assert reading.energy_unit == HARTREE
    assert reading.frames[0].energy == ethanol["energies"][0] * HARTREE
    np.testing.assert_allclose(reading.frames[0].positions, ethanol["coords"][0] * BOHR)
    np.testing.assert_allclose(reading.frames[0].forces, ethanol["forces"][0] * HARTREE / BOHR)


def test_units_stated_by_the_user_come_before_those_of_the_file(
    tmp_path: Path, ethanol: Arrays
) -> None:
    arrays = original(ethanol) | {"e_unit": np.array("kcal/mol"), "r_unit": np.array("Ang")}
    path = save(tmp_path / "own.npz", arrays)
    assert read_npz(path).frames[0].energy == ethanol["energies"][0] * KCAL_PER_MOL
    frame = read_npz(path, ReadOptions(energy_unit="eV")).frames[0]
    assert frame.energy == ethanol["energies"][0]
    np.testing.assert_array_equal(frame.forces, ethanol["forces"][0])


def test_forces_in_a_unit_of_their_own(tmp_path: Path, ethanol: Arrays) -> None:
    path = save(tmp_path / "own.npz", original(ethanol))
    frame = read_npz(path, ReadOptions("Hartree", "Angstrom", "kcal/mol/Angstrom")).frames[0]
    assert frame.energy == ethanol["energies"][0] * HARTREE
    np.testing.assert_allclose(frame.forces, ethanol["forces"][0] * KCAL_PER_MOL)


def padded(ethanol: Arrays) -> Arrays:
    arrays = original(ethanol)
    z = np.zeros((20, 12), dtype=np.int64)
    z[:, :9] = arrays["z"]
    z[::2, 8] = 0  # every other molecule has one hydrogen less
    wide = np.zeros((20, 12, 3))
    wide[:, :9] = arrays["R"]
    forces = np.zeros((20, 12, 3))
    forces[:, :9] = arrays["F"]
    return arrays | {"z": z, "R": wide, "F": forces}


def test_padded_molecules_lose_their_padding(tmp_path: Path, ethanol: Arrays) -> None:
    path = save(tmp_path / "qm7x.npz", padded(ethanol))
    reading = read_npz(path, ReadOptions(energy_unit="eV"))
    assert reading.energy_unit == EV
    assert [len(f.atomic_numbers) for f in reading.frames] == [8, 9] * 10
    frame = reading.frames[5]
    np.testing.assert_array_equal(frame.positions, ethanol["coords"][5])
    np.testing.assert_array_equal(frame.forces, ethanol["forces"][5])
    assert frame.energy == ethanol["energies"][5]


def test_padded_molecules_need_their_unit_stated(tmp_path: Path, ethanol: Arrays) -> None:
    path = save(tmp_path / "qm7x.npz", padded(ethanol))
    with pytest.raises(DataError, match=r"qm7x\.npz.*energy_unit=eV"):
        read_npz(path)
    with_unit = save(tmp_path / "own.npz", padded(ethanol) | {"e_unit": np.array("eV")})
    assert read_npz(with_unit).frames[0].energy == ethanol["energies"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"F": np.zeros((20, 8, 3))}, r"F do not fit 20 frames of 9 atoms; found .*F \(20, 8, 3\)"),
        ({"E": np.zeros(19)}, r"E do not fit"),
        ({"E": np.zeros((20, 2))}, r"E do not fit"),
        ({"z": np.zeros(7, dtype=int)}, r"z do not fit"),
        ({"R": np.zeros((20, 27))}, r"R must have shape \(frames, atoms, 3\); found .*\(20, 27\)"),
        ({"R": np.zeros((0, 9, 3))}, r"R must have shape"),
    ],
)
def test_wrong_shapes_are_shown(
    tmp_path: Path, ethanol: Arrays, change: Arrays, words: str
) -> None:
    path = save(tmp_path / "bad.npz", original(ethanol) | change)
    with pytest.raises(DataError, match=r"bad\.npz: " + words):
        read_npz(path)


def test_unknown_layout_shows_the_arrays_found(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", {"xyz": np.zeros((2, 3, 3)), "charges": np.zeros(3)})
    with pytest.raises(DataError, match=r"\['charges', 'xyz'\].*nuclear_charges, coords"):
        read_npz(path)


@pytest.mark.parametrize("name", ["lattice", "cell", "pbc"])
def test_a_cell_is_not_dropped(tmp_path: Path, ethanol: Arrays, name: str) -> None:
    path = tmp_path / "periodic.npz"
    np.savez(path, **ethanol, **{name: 10.0 * np.eye(3)})
    with pytest.raises(DataError, match=rf"holds a cell \({name}\).*extxyz"):
        read_npz(path)


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="cannot be read as an npz archive"):
        read_npz(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        read_npz(tmp_path / "single.npy")
    whole = EMBEDDED / "rmd17_ethanol_train_01.npz"
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cut\.npz: cannot be read"):
        read_npz(tmp_path / "cut.npz")


def test_pickled_objects_are_not_run(tmp_path: Path, ethanol: Arrays) -> None:
    arrays = original(ethanol) | {"E": np.array([object()] * 20)}
    np.savez(tmp_path / "pickle.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path / "pickle.npz")


def test_unknown_units_name_the_nearest_known(tmp_path: Path, ethanol: Arrays) -> None:
    path = save(tmp_path / "own.npz", original(ethanol))
    with pytest.raises(ConfigError, match=r"energy unit 'kcal/mole'; did you mean 'kcal/mol'"):
        read_npz(path, ReadOptions(energy_unit="kcal/mole"))
    with pytest.raises(ConfigError, match=r"length unit 'Angstroem'; did you mean 'Angstrom'"):
        read_npz(path, ReadOptions(length_unit="Angstroem"))
    with pytest.raises(ConfigError, match="not an energy over a length"):
        read_npz(path, ReadOptions(forces_unit="eV"))


def test_a_damaged_archive(tmp_path: Path) -> None:
    content = bytearray((EMBEDDED / "rmd17_ethanol_train_01.npz").read_bytes())
    content[200_000:200_100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.npz: cannot be read"):
        read_npz(tmp_path / "damaged.npz")
