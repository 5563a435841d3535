"""Files that ASE reads: extxyz under several names and units, db, traj, isolated atoms."""

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from forcefield.errors import DataError
from forcefield.units import BOHR, HARTREE, KCAL_PER_MOL
from training.datasets import Frame, ReadOptions, load_split
from training.datasets.ase_files import read_ase


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return load_split("rmd17:ethanol", train=60, valid=5, test=5).train


def to_atoms(frame: Frame, labels: bool = True) -> Atoms:
    atoms = Atoms(frame.atomic_numbers, frame.positions)
    if labels:
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    return atoms


def renamed(
    frame: Frame, energy: str, forces: str, energy_unit: float = 1.0, forces_unit: float = 1.0
) -> Atoms:
    atoms = to_atoms(frame, labels=False)
    atoms.info[energy] = frame.energy / energy_unit
    atoms.arrays[forces] = frame.forces / forces_unit
    return atoms


def assert_same(found: list[Frame], expected: list[Frame], atol: float = 1e-7) -> None:
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.index == index
        assert a.energy == pytest.approx(b.energy, abs=atol)
        np.testing.assert_array_equal(a.atomic_numbers, b.atomic_numbers)
        np.testing.assert_allclose(a.positions, b.positions, atol=atol)
        np.testing.assert_allclose(a.forces, b.forces, atol=atol)


@pytest.mark.parametrize("name", ["own.extxyz", "own.xyz", "own.traj", "own.db", "own.json"])
def test_formats_that_carry_ases_results(tmp_path: Path, frames: list[Frame], name: str) -> None:
    path = tmp_path / name
    ase.io.write(path, [to_atoms(frame) for frame in frames[:6]])
    reading = read_ase(path)
    assert_same(reading.frames, frames[:6])
    assert reading.isolated_atoms == {}
    assert reading.frames[2].source == str(path)


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("REF_energy", "REF_forces"), ("TotEnergy", "force"), ("dft_energy", "dft_force")],
)
def test_labels_under_other_names(
    tmp_path: Path, frames: list[Frame], energy: str, forces: str
) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, [renamed(frame, energy, forces) for frame in frames[:4]])
    with pytest.raises(DataError) as error:
        read_ase(path)
    message = str(error.value)
    assert f"{path}, frames 0, 1, 2, 3: no energy; it holds {energy}: name" in message
    assert f"no forces; it holds {forces}: name the right one with forces_key" in message
    reading = read_ase(path, ReadOptions(energy_key=energy, forces_key=forces))
    assert_same(reading.frames, frames[:4])


def test_a_name_that_is_not_there(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, [renamed(frame, "REF_energy", "REF_forces") for frame in frames[:2]])
    with pytest.raises(DataError, match="no energy under the name 'ref_energy'; it holds REF_ener"):
        read_ase(path, ReadOptions(energy_key="ref_energy", forces_key="REF_forces"))


def test_database_with_labels_in_its_rows_data(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "own.db"
    with ase.db.connect(path) as database:
        for frame in frames[:3]:
            data = {"U0": np.array([frame.energy]), "F": frame.forces}
            database.write(to_atoms(frame, labels=False), data=data)
    reading = read_ase(path, ReadOptions(energy_key="U0", forces_key="F"))
    assert_same(reading.frames, frames[:3])


def test_units_stated_by_the_user(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "own.extxyz"
    atoms = []
    for frame in frames[:3]:
        item = renamed(frame, "E_ha", "G", HARTREE, HARTREE / BOHR)
        item.positions /= BOHR
        atoms.append(item)
    ase.io.write(path, atoms)
    options = ReadOptions("Hartree", "Bohr", energy_key="E_ha", forces_key="G")
    assert_same(read_ase(path, options).frames, frames[:3], atol=1e-5)

    mixed = tmp_path / "mixed.extxyz"
    ase.io.write(mixed, [renamed(f, "E_ha", "G", HARTREE, KCAL_PER_MOL) for f in frames[:3]])
    options = ReadOptions(
        "Hartree", forces_unit="kcal/mol/Angstrom", energy_key="E_ha", forces_key="G"
    )
    assert_same(read_ase(mixed, options).frames, frames[:3], atol=1e-5)


def test_cells_periodicity_and_stress(tmp_path: Path, frames: list[Frame]) -> None:
    stress = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])  # xx yy zz yz xz xy
    periodic, slab, boxed = (to_atoms(frames[0]) for _ in range(3))
    for atoms, pbc in ((periodic, True), (slab, [True, True, False]), (boxed, False)):
        atoms.cell = [[9.0, 0.0, 0.0], [1.0, 9.5, 0.0], [0.0, 0.5, 10.0]]
        atoms.pbc = pbc
    periodic.calc.results["stress"] = stress
    path = tmp_path / "own.extxyz"
    ase.io.write(path, [periodic, slab, boxed])
    first, second, third = read_ase(path).frames
    assert first.cell is not None
    np.testing.assert_allclose(first.cell, periodic.cell[:])
    assert first.pbc.all()
    assert second.pbc.tolist() == [True, True, False]
    assert third.cell is None
    assert first.stress is not None
    np.testing.assert_allclose(
        first.stress, [[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]]
    )
    assert second.stress is None


STRESS = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])


@pytest.fixture
def with_stress(frames: list[Frame]) -> list[Atoms]:
    """A periodic frame with the stress under several names, and one without."""
    labelled, bare = (to_atoms(frame) for frame in frames[:2])
    for atoms in (labelled, bare):
        atoms.cell = [[9.0, 0.0, 0.0], [1.0, 9.5, 0.0], [0.0, 0.5, 10.0]]
        atoms.pbc = True
    labelled.info["REF_stress"] = STRESS
    labelled.info["dft_virial"] = -STRESS * labelled.get_volume()
    return [bare, labelled]


@pytest.mark.parametrize("key", ["REF_stress", "dft_virial"])
def test_stresses_under_other_names(tmp_path: Path, with_stress: list[Atoms], key: str) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, with_stress)
    bare, labelled = read_ase(path, ReadOptions(stress_key=key)).frames
    assert bare.stress is None
    assert labelled.stress is not None
    np.testing.assert_allclose(labelled.stress, STRESS, rtol=1e-7)


def test_virials_in_other_units(tmp_path: Path, with_stress: list[Atoms]) -> None:
    for atoms in with_stress:
        atoms.set_cell(atoms.cell[:] / BOHR, scale_atoms=True)
        atoms.calc.atoms = atoms.copy()
        if "dft_virial" in atoms.info:
            atoms.info["dft_virial"] /= HARTREE
    path = tmp_path / "own.traj"
    ase.io.write(path, with_stress)
    options = ReadOptions("Hartree", "Bohr", stress_key="dft_virial")
    frame = read_ase(path, options).frames[1]
    assert frame.stress is not None
    np.testing.assert_allclose(frame.stress, STRESS, rtol=1e-7)


def test_stresses_that_are_passed_over_are_named(tmp_path: Path, with_stress: list[Atoms]) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, with_stress)
    (warning,) = read_ase(path).warnings
    assert (
        "no stresses are learned, but it holds REF_stress, dft_virial: name the right one"
        in warning
    )
    split = load_split(path, train=1, valid=1, test=0, allow_unusual=True)
    assert warning in split.warnings
    with pytest.raises(
        DataError, match="no periodic frame has a stress under the name 'stresses'; it"
    ):
        load_split(path, stress_key="stresses", allow_unusual=True)
    # Other files need not have any.
    ase.io.write(tmp_path / "test.extxyz", with_stress[:1])
    ase.io.write(tmp_path / "train.extxyz", with_stress[1:])
    alone = Atoms("H")
    alone.calc = SinglePointCalculator(alone, energy=-13.0, forces=np.zeros((1, 3)))
    ase.io.write(tmp_path / "isolated.extxyz", alone)
    parts = load_split(
        tmp_path / "train.extxyz",
        test_file=tmp_path / "test.extxyz",
        isolated_atoms_file=tmp_path / "isolated.extxyz",
        valid=0,
        stress_key="REF_stress",
        allow_unusual=True,
    )
    assert parts.train[0].stress is not None
    assert parts.isolated_atoms == {1: -13.0}
    for atoms in with_stress:
        atoms.pbc = False  # A molecule in a box has none.
    ase.io.write(path, with_stress)
    assert read_ase(path).warnings == ()


def test_a_constrained_structure_keeps_its_true_forces(tmp_path: Path, frames: list[Frame]) -> None:
    from ase.constraints import FixAtoms

    atoms = to_atoms(frames[0])
    atoms.set_constraint(FixAtoms([0, 1]))
    path = tmp_path / "own.traj"
    ase.io.write(path, atoms)
    np.testing.assert_allclose(read_ase(path).frames[0].forces, frames[0].forces)


def isolated(symbol: str, energy: float, **info: str) -> Atoms:
    atoms = Atoms(symbol, [[0.0, 0.0, 0.0]])
    atoms.info.update(info)
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_isolated_atoms_are_reference_energies(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "own.extxyz"
    in_a_box = isolated("O", -2037.8, config_type="IsolatedAtom")
    in_a_box.cell, in_a_box.pbc = [20.0, 20.0, 20.0], True
    in_a_box.calc.results["forces"] = np.zeros((1, 3))
    atoms = [isolated("H", -13.5, config_type="isolated_atom"), isolated("C", -1026.8), in_a_box]
    ase.io.write(path, [atoms[0], *(to_atoms(f) for f in frames[:4]), *atoms[1:], atoms[0]])
    reading = read_ase(path)
    assert reading.isolated_atoms == {1: -13.5, 6: -1026.8, 8: -2037.8}
    assert [frame.index for frame in reading.frames] == [1, 2, 3, 4]


def test_isolated_atoms_share_the_unit_and_the_name_of_the_energies(tmp_path: Path) -> None:
    path = tmp_path / "atoms.extxyz"
    atoms = Atoms("N", [[0.0, 0.0, 0.0]])
    atoms.info["REF_energy"] = -54.5
    ase.io.write(path, atoms)
    reading = read_ase(path, ReadOptions("Hartree", energy_key="REF_energy"))
    assert reading.isolated_atoms == {7: -54.5 * HARTREE}


def test_contradicting_isolated_atoms(tmp_path: Path) -> None:
    path = tmp_path / "atoms.extxyz"
    ase.io.write(path, [isolated("H", -13.5), isolated("H", -13.6)])
    with pytest.raises(DataError, match=r"frame 1: the isolated H atom has -13\.600000 eV here"):
        read_ase(path)


def test_a_periodic_crystal_of_one_atom_is_no_isolated_atom(tmp_path: Path) -> None:
    crystal = Atoms("Cu", [[0.0, 0.0, 0.0]], cell=np.eye(3) * 2.3, pbc=True)
    crystal.calc = SinglePointCalculator(crystal, energy=-3.7, forces=np.zeros((1, 3)))
    ase.io.write(tmp_path / "cu.extxyz", crystal)
    reading = read_ase(tmp_path / "cu.extxyz")
    assert len(reading.frames) == 1
    assert reading.isolated_atoms == {}


@pytest.mark.parametrize("name", ["own.extxyz", "own.db"])
def test_frames_of_one_composition_in_two_states_are_noted(
    tmp_path: Path, frames: list[Frame], name: str
) -> None:
    structures = [to_atoms(frame) for frame in frames[:6]]
    ion = Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    ion.calc = SinglePointCalculator(ion, energy=-100.0, forces=np.zeros((2, 3)))
    all_states = [(atoms, 0) for atoms in structures] + [(ion, -1)]
    for charges in (all_states, [*all_states, (structures[0].copy(), 1)]):
        atoms, _ = charges[-1]
        atoms.calc = atoms.calc or structures[0].calc
        path = tmp_path / f"{len(charges)}-{name}"
        if path.suffix == ".db":
            with ase.db.connect(path) as database:
                for atoms, charge in charges:
                    database.write(atoms, key_value_pairs={"total_charge": charge})
        else:
            for atoms, charge in charges:
                atoms.info["total_charge"] = charge
            ase.io.write(path, [atoms for atoms, _ in charges])
        mixed = len(charges) > len(all_states)
        warnings = read_ase(path).warnings
        assert any("one composition differ in total_charge (0, 1)" in w for w in warnings) == mixed


def test_gradients_are_not_passed_off_as_forces(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, [renamed(frame, "energy", "gradient") for frame in frames[:3]])
    with pytest.raises(DataError, match=r"it holds gradient \(a gradient is minus the force\)"):
        read_ase(path)
    reading = read_ase(path, ReadOptions(forces_key="gradient"))
    assert any("a gradient is minus the force" in warning for warning in reading.warnings)


def test_an_at_sign_in_a_name_is_part_of_it(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "md@300K.extxyz"
    ase.io.write(path, [to_atoms(frame) for frame in frames[:3]], format="extxyz")
    assert_same(read_ase(path).frames, frames[:3])


def test_some_frames_without_labels_are_all_counted(tmp_path: Path, frames: list[Frame]) -> None:
    atoms = [to_atoms(frame, labels=k % 2 == 0) for k, frame in enumerate(frames[:30])]
    path = tmp_path / "own.extxyz"
    ase.io.write(path, atoms)
    with pytest.raises(DataError, match=r"frames 1, 3, 5, 7, 9, 11, 13, 15 and 7 more: no energy"):
        read_ase(path)


def test_plain_xyz_without_labels(tmp_path: Path, frames: list[Frame]) -> None:
    path = tmp_path / "plain.xyz"
    ase.io.write(path, to_atoms(frames[0], labels=False), format="xyz")
    with pytest.raises(DataError, match=r"frame 0: no forces; nothing else there has the shape"):
        read_ase(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_ase(tmp_path / "none.extxyz")
    with pytest.raises(DataError, match="no such file"):
        read_ase(tmp_path)
    (tmp_path / "cut.extxyz").write_text("9\nProperties=species:S:1:pos:R:3\nC 0.0 0.0\n")
    with pytest.raises(DataError, match=r"cut\.extxyz: ASE cannot read this file"):
        read_ase(tmp_path / "cut.extxyz")
    (tmp_path / "own.unknown").write_bytes(b"\x00\x01\x02")
    with pytest.raises(DataError, match="does its name end in its format"):
        read_ase(tmp_path / "own.unknown")
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(DataError, match=r"empty\.extxyz"):
        read_ase(tmp_path / "empty.extxyz")
