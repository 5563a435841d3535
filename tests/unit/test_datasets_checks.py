"""What is wrong with a frame, a unit or a split is said before any training, by file and frame."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forcefield.errors import DataError
from forcefield.units import ENERGY_UNITS, HARTREE, KCAL_PER_MOL, LENGTH_UNITS
from training.datasets import Frame, Reading, load_split
from training.datasets.checks import (
    check_frames,
    check_no_overlap,
    drop_repeated,
    geometry_key,
    without_geometries,
)
from training.datasets.pairs import close_pairs
from training.datasets.plausibility import all_electron_energy, implausible


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return load_split("rmd17:ethanol", train=300, valid=5, test=5).train


def own(frames: list[Frame]) -> list[Frame]:
    """The frames as they would come from a file of one's own."""
    return [replace(frame, index=k, source="own.extxyz") for k, frame in enumerate(frames)]


def changed(array: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    copy = array.copy()
    copy[place] = value
    return copy


BROKEN: list[tuple[Callable[[Frame], Frame], str]] = [
    (lambda f: replace(f, energy=float("nan")), "the energy is nan"),
    (lambda f: replace(f, energy=float("-inf")), "the energy is -inf"),
    (lambda f: replace(f, forces=changed(f.forces, (4, 1), np.nan)), "the forces of atom 4 are"),
    (lambda f: replace(f, positions=changed(f.positions, (8, 0), np.inf)), "positions of atom 8"),
    (lambda f: replace(f, forces=f.forces[:-1]), r"forces have shape \(8, 3\), but 9 atoms need"),
    (lambda f: replace(f, positions=f.positions[:, :2]), r"positions have shape \(9, 2\)"),
    (lambda f: replace(f, atomic_numbers=f.atomic_numbers * 100), "atom 0 has the atomic number"),
    (lambda f: replace(f, cell=np.eye(2)), r"the cell has shape \(2, 2\)"),
    (lambda f: replace(f, stress=np.full((3, 3), np.nan)), "the stress is not finite"),
    (lambda f: replace(f, pbc=np.array([True] * 3)), r"periodic along \[0, 1, 2\], but the cell"),
    (
        lambda f: replace(f, positions=np.repeat(f.positions[:1], 9, axis=0)),
        "atoms 0 and 1 are 0\\.000 Å apart",
    ),
]


@pytest.mark.parametrize(("breaking", "words"), BROKEN)
def test_a_broken_frame_is_named(
    frames: list[Frame], breaking: Callable[[Frame], Frame], words: str
) -> None:
    data = own(frames[:20])
    check_frames(data)
    data[13] = breaking(data[13])
    with pytest.raises(DataError, match=r"own\.extxyz, frame 13: .*" + words):
        check_frames(data)


def test_atoms_on_top_of_each_other(frames: list[Frame]) -> None:
    data = own(frames[:20])
    positions = data[3].positions.copy()
    positions[7] = positions[2] + [0.1, 0.1, 0.1]
    data[3] = replace(data[3], positions=positions)
    with pytest.raises(DataError, match=r"frame 3: atoms 2 and 7 are 0\.173 Å apart; remove"):
        check_frames(data)


def test_atoms_on_top_of_each_other_through_a_cell_wall(frames: list[Frame]) -> None:
    cell = np.diag([12.0, 12.0, 12.0])
    data = [replace(f, cell=cell, pbc=np.array([True, True, False])) for f in own(frames[:5])]
    check_frames(data)
    for axis, clashes in ((0, True), (2, False)):
        positions = data[2].positions.copy()
        positions[8] = positions[0] + 12.0 * np.eye(3)[axis] + 0.05
        moved = [*data[:2], replace(data[2], positions=positions), *data[3:]]
        if clashes:
            with pytest.raises(DataError, match=r"frame 2: atoms 0 and 8 are 0\.087 Å apart"):
                check_frames(moved)
        else:
            check_frames(moved)
    tiny = replace(data[2], cell=np.diag([0.2, 30.0, 30.0]), index=7)
    with pytest.raises(DataError, match=r"frame 7: atom 0 and its periodic image are 0\.200 Å"):
        check_frames([tiny])


def test_findings_are_collected_and_counted(frames: list[Frame]) -> None:
    data = own(frames[:40])
    data = [replace(f, energy=float("nan")) if f.index >= 20 else f for f in data]
    with pytest.raises(DataError) as error:
        check_frames(data)
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("own.extxyz, frame 20:")
    assert lines[-1] == "and 10 more of this kind"
    with pytest.raises(DataError, match="no frames"):
        check_frames([])


@pytest.mark.parametrize("cutoff", [0.5, 1.2, 3.0])
def test_close_pairs_dense_and_listed_agree(frames: list[Frame], cutoff: float) -> None:
    """A molecule in a wide periodic cell has the pairs that it has outside."""
    wide = np.diag([30.0, 30.0, 30.0])
    boxed = [replace(f, cell=wide, pbc=np.array([True] * 3)) for f in frames[:6]]
    free, listed = close_pairs(frames[:6], cutoff), close_pairs(boxed, cutoff)
    for pairs in (free, listed):
        assert (pairs.distance < cutoff).all()
        np.testing.assert_allclose(np.linalg.norm(pairs.vector, axis=1), pairs.distance)
    expected = {
        (k, i, j)
        for k, f in enumerate(frames[:6])
        for i in range(9)
        for j in range(i + 1, 9)
        if np.linalg.norm(f.positions[i] - f.positions[j]) < cutoff
    }
    for pairs in (free, listed):
        found = zip(pairs.frame.tolist(), pairs.i.tolist(), pairs.j.tolist(), strict=True)
        assert sorted(found) == sorted(expected)
        for k, i, j, vector in zip(pairs.frame, pairs.i, pairs.j, pairs.vector, strict=True):
            f = frames[k]
            np.testing.assert_allclose(vector, f.positions[j] - f.positions[i], atol=1e-12)


def test_overlap_between_parts_is_refused(frames: list[Frame]) -> None:
    data = own(frames[:30])
    check_no_overlap({"train": data[:20], "valid": data[20:25], "test": data[25:]})
    # The same geometry with other labels, from a file with fewer digits.
    leaked = replace(
        data[4], positions=data[4].positions.round(7), energy=0.0, index=2, source="test.xyz"
    )
    for name in ("valid", "test"):
        parts = {"train": data[:20], name: [*data[20:], leaked]}
        with pytest.raises(DataError) as error:
            check_no_overlap(parts)
        assert f"test.xyz, frame 2 ({name}) has the geometry of own.extxyz, frame 4 (train)" in str(
            error.value
        )
        assert "remove them from one part" in str(error.value)


def test_geometry_key_sees_elements_positions_and_cell(frames: list[Frame]) -> None:
    frame = frames[0]
    moved = replace(frame, positions=frame.positions + 0.01)
    other = replace(frame, atomic_numbers=frame.atomic_numbers[::-1].copy())
    boxed = replace(frame, cell=np.eye(3) * 20.0, pbc=np.array([True] * 3))
    keys = {geometry_key(f) for f in (frame, moved, other, boxed)}
    assert len(keys) == 4
    assert geometry_key(replace(frame, energy=0.0, index=99)) == geometry_key(frame)


def test_repeated_frames_are_left_out_with_a_warning(frames: list[Frame]) -> None:
    data = own([*frames[:5], frames[1], replace(frames[3], energy=0.0)])
    kept, warnings = drop_repeated(data)
    assert [frame.index for frame in kept] == [0, 1, 2, 3, 4]
    assert len(warnings) == 1
    assert "2 repeated frames were left out: 5 (of 1), 6 (of 3)" in warnings[0]
    assert "1 of them have another energy" in warnings[0]
    assert drop_repeated(data[:5]) == (data[:5], [])


def test_frames_that_recur_in_a_published_test_set_are_left_out(frames: list[Frame]) -> None:
    kept, warnings = without_geometries(frames[:10], frames[8:20])
    assert kept == frames[:8]
    assert "2 frames recur" in warnings[0]
    assert without_geometries(frames[:10], frames[10:20]) == (frames[:10], [])


def read_as(
    frames: list[Frame],
    energy: tuple[float, float] = (1.0, 1.0),
    length: tuple[float, float] = (1.0, 1.0),
    forces: tuple[float, float] = (1.0, 1.0),
) -> Reading:
    """The frames as read in one unit (second) while the file is in another (first)."""
    e, r, f = (read / true for true, read in (energy, length, forces))
    wrong = [
        replace(k, energy=k.energy * e, positions=k.positions * r, forces=k.forces * f)
        for k in own(frames)
    ]
    return Reading(wrong, {}, energy[1], length[1], forces[1])


def test_right_units_raise_nothing(frames: list[Frame]) -> None:
    assert implausible(read_as(frames)) == []
    assert implausible(read_as(frames, energy=(KCAL_PER_MOL, KCAL_PER_MOL))) == []
    assert implausible(Reading([], {}, 1.0, 1.0, 1.0)) == []


MISREAD = [
    (true, read)
    for true in ("eV", "kcal/mol", "kJ/mol", "Hartree")
    for read in ("eV", "meV", "kcal/mol", "kJ/mol", "Hartree")
    if true != read
]


@pytest.mark.parametrize(("true", "read"), [*MISREAD, ("Hartree", "Rydberg")])
def test_every_wrong_energy_unit_is_found_and_the_right_one_named(
    frames: list[Frame], true: str, read: str
) -> None:
    findings = implausible(read_as(frames, energy=(ENERGY_UNITS[true], ENERGY_UNITS[read])))
    assert findings[0].startswith("own.extxyz: the energies are ")
    assert f"energy_unit={true}" in findings[0]


@pytest.mark.parametrize(("true", "read"), MISREAD)
def test_every_wrong_forces_unit_is_found_and_the_right_one_named(
    frames: list[Frame], true: str, read: str
) -> None:
    findings = implausible(read_as(frames, forces=(ENERGY_UNITS[true], ENERGY_UNITS[read])))
    assert findings[0].startswith("own.extxyz: bonds to hydrogen have a stiffness")
    assert f"{true}/Angstrom" in findings[0]


def test_forces_in_atomic_units_beside_energies_in_ev(frames: list[Frame]) -> None:
    atomic = HARTREE / LENGTH_UNITS["Bohr"]
    findings = implausible(read_as(frames, forces=(atomic, 1.0)))
    assert any("Hartree/Bohr" in finding for finding in findings)


@pytest.mark.parametrize(
    ("true", "read"),
    [(a, b) for a in ("Angstrom", "Bohr", "nm") for b in ("Angstrom", "Bohr", "nm") if a != b],
)
def test_every_wrong_length_unit_is_found(frames: list[Frame], true: str, read: str) -> None:
    findings = implausible(read_as(frames, length=(LENGTH_UNITS[true], LENGTH_UNITS[read])))
    assert len(findings) == 1
    assert "State length_unit" in findings[0]
    if read == "Angstrom":
        assert f"length_unit={true}" in findings[0]


def test_gradients_instead_of_forces(frames: list[Frame]) -> None:
    findings = implausible(read_as(frames, forces=(-1.0, 1.0)))
    assert len(findings) == 1
    assert "change their sign" in findings[0]


def test_large_energies_beside_tiny_or_no_forces(frames: list[Frame]) -> None:
    heavy = [replace(f, atomic_numbers=f.atomic_numbers + 20) for f in frames]  # no hydrogen
    tiny = implausible(read_as(heavy, length=(0.5, 1.0), forces=(1000.0, 1.0)))
    assert any("RMS force component is 0.00" in finding for finding in tiny)
    zero = implausible(Reading([replace(f, forces=0 * f.forces) for f in frames], {}, 1, 1, 1))
    assert any("all forces are zero" in finding for finding in zero)


def test_energies_and_forces_that_do_not_belong_together(frames: list[Frame]) -> None:
    flat = [replace(f, energy=frames[0].energy + 1e-4 * k) for k, f in enumerate(frames)]
    findings = implausible(Reading(own(flat), {}, 1.0, 1.0, 1.0))
    assert len(findings) == 1
    assert "do not belong to the same frames" in findings[0]


def test_pseudopotential_energies_and_noble_gases_pass(frames: list[Frame]) -> None:
    valence = own([replace(f, energy=f.energy + 4209.0 - 46.0) for f in frames])
    assert implausible(Reading(valence, {}, 1.0, 1.0, 1.0)) == []
    argon = Frame(
        np.array([18, 18]), np.array([[0.0] * 3, [3.9, 0.0, 0.0]]), -0.1, np.full((2, 3), 0.02)
    )
    assert implausible(Reading([argon], {}, 1.0, 1.0, 1.0)) == []


def test_statistical_atom_energies_against_known_totals() -> None:
    known = {2: -2.862, 6: -37.69, 7: -54.40, 8: -74.81, 17: -459.48, 18: -526.82}  # Hartree-Fock
    for number, hartree in known.items():
        tolerance = 0.05 if number == 2 else 0.01
        found = all_electron_energy(np.array([number])) / HARTREE
        assert found == pytest.approx(hartree, rel=tolerance)


def test_a_file_in_the_wrong_unit_is_refused_unless_allowed(
    tmp_path: Path, frames: list[Frame]
) -> None:
    path = tmp_path / "own.npz"
    np.savez(
        path,
        z=frames[0].atomic_numbers,
        R=np.stack([f.positions for f in frames]),
        E=np.array([f.energy for f in frames]),  # in eV, where the layout means kcal/mol
        F=np.stack([f.forces for f in frames]),
    )
    with pytest.raises(DataError, match=r"own\.npz.*State energy_unit=eV(.|\n)*allow_unusual"):
        load_split(path)
    assert load_split(path, energy_unit="eV").warnings == ()
    warnings = load_split(path, allow_unusual=True).warnings
    assert len(warnings) == 2


@pytest.fixture(scope="module")
def strained() -> list[Frame]:
    """Copper under strain, shaken, by effective-medium theory."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    random = np.random.default_rng(0)
    found = []
    for _ in range(60):
        atoms = bulk("Cu", cubic=True)
        strain = np.eye(3) * random.uniform(0.95, 1.06) + random.normal(0.0, 0.01, (3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += random.normal(0.0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        found.append(
            Frame(
                atomic_numbers=atoms.numbers,
                positions=atoms.positions,
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                cell=atoms.cell.array,
                pbc=atoms.pbc,
                stress=atoms.get_stress(voigt=False),
            )
        )
    return found


@pytest.mark.parametrize(
    ("factor", "finding"),
    [
        (1.0, None),
        (-1.0, "opposite sign"),
        (1 / 0.00624151, "stress times volume is"),
        (1 / 183.631, "Hartree/Bohr^3 would fit"),
        (5.0, "read in the wrong unit"),
    ],
)
def test_stresses_of_the_wrong_sign_or_unit_are_found(strained, factor, finding) -> None:
    wrong = [replace(frame, stress=factor * frame.stress) for frame in strained]
    found = [text for text in implausible(Reading(wrong, {}, 1.0, 1.0, 1.0)) if "stress" in text]
    assert len(found) == (finding is not None)
    assert finding is None or finding in found[0]


def test_stresses_say_nothing_at_one_volume(strained) -> None:
    same = [replace(frame, cell=strained[0].cell, stress=-frame.stress) for frame in strained]
    assert not [text for text in implausible(Reading(same, {}, 1.0, 1.0, 1.0)) if "stress" in text]
