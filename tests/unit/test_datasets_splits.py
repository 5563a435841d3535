"""Splits: sizes, defaults, seeds, published files, one's own files, and the hash of the data."""

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st

from forcefield.errors import ConfigError, DataError
from training.datasets import Frame, data_hash, load_split
from training.datasets.splits import published_split, random_split, trajectory_split

NO_FRAME = Frame(np.array([1, 1]), np.array([[0.0, 0, 0], [0.7, 0, 0]]), 0.0, np.zeros((2, 3)))


def numbered(count: int) -> list[Frame]:
    return [replace(NO_FRAME, index=k, source="own.xyz") for k in range(count)]


def indices(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames]


def write(path: Path, frames: list[Frame]) -> Path:
    structures = []
    for frame in frames:
        atoms = Atoms(frame.atomic_numbers, frame.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        structures.append(atoms)
    ase.io.write(path, structures)
    return path


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return load_split("rmd17:ethanol", train=100, valid=5, test=5).train


def test_embedded_ethanol_needs_no_network() -> None:
    split = load_split("rmd17:ethanol")
    assert [len(part) for part in (split.train, split.valid, split.test)] == [950, 50, 1000]
    assert split.source == "rmd17:ethanol"
    assert split.license == "CC0 1.0"
    assert "Christensen" in split.notes
    assert split.warnings == ()
    assert split.isolated_atoms == {}
    assert indices(split.test) == list(range(1000))
    assert sorted(indices(split.train) + indices(split.valid)) == list(range(1000))
    assert {frame.source for frame in split.train} == {"rmd17_ethanol_train_01.npz"}


def test_seed_fixes_a_published_split() -> None:
    one, same, other = (load_split("rmd17:ethanol", seed=seed) for seed in (1, 1, 2))
    assert data_hash(one.train) == data_hash(same.train)
    assert data_hash(one.valid) == data_hash(same.valid)
    assert data_hash(one.train) != data_hash(other.train)
    assert data_hash(one.test) == data_hash(other.test)


def test_larger_training_sets_contain_smaller_ones() -> None:
    small, large = (load_split("rmd17:ethanol", train=n, valid=50, test=10) for n in (50, 900))
    assert indices(large.train)[:50] == indices(small.train)
    assert indices(large.valid) == indices(small.valid)
    assert indices(small.test) == list(range(10))


def test_more_than_the_published_thousand_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"train=1000 and valid=50 .* 1000 training frames.*train=950"
    ):
        load_split("rmd17:ethanol", train=1000)
    with pytest.raises(DataError, match="train=5000"):
        load_split("rmd17:ethanol", train=5000)
    with pytest.raises(DataError, match=r"test=1001 is asked, but the test file .* has 1000"):
        load_split("rmd17:ethanol", test=1001)
    assert len(load_split("rmd17:ethanol", train=1000, valid=0).train) == 1000


def test_published_split_of_a_short_file() -> None:
    train, valid, test = published_split(numbered(20), numbered(7), None, None, None, 0)
    assert (len(train), len(valid), len(test)) == (18, 2, 7)
    train, valid, test = published_split(numbered(20), numbered(10), 0.5, 0.25, 0.3, 0)
    assert (len(train), len(valid), len(test)) == (10, 5, 3)


def test_trajectory_default_is_the_literatures() -> None:
    parts = trajectory_split(numbered(2500), None, None, None, 0)
    assert [len(part) for part in parts] == [950, 50, 1000]


@pytest.mark.parametrize(
    ("total", "asked", "sizes"),
    [
        (500, (None, None, None), (400, 50, 50)),
        (10, (None, None, None), (8, 1, 1)),
        (3, (None, None, None), (1, 1, 1)),
        (500, (450, None, None), (450, 25, 25)),
        (500, (100, None, None), (100, 50, 50)),
        (500, (None, 20, None), (430, 20, 50)),
        (500, (None, 0, 0), (500, 0, 0)),
        (500, (0.8, 0.1, 0.1), (400, 50, 50)),
        (5, (0.8, 0.1, 0.1), (3, 1, 1)),
        (500, (0.5, 100, None), (250, 100, 50)),
        (500, (300, 100, 100), (300, 100, 100)),
    ],
)
def test_sizes(
    total: int,
    asked: tuple[int | float | None, ...],
    sizes: tuple[int, int, int],
) -> None:
    parts = random_split(numbered(total), *asked, seed=3)
    assert tuple(len(part) for part in parts) == sizes
    everything = [index for part in parts for index in indices(part)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize(
    ("total", "asked"),
    [
        (2, (None, None, None)),
        (10, (10, None, None)),
        (10, (8, 2, 1)),
        (10, (0, None, None)),
        (10, (None, 5, 5)),
        (100, (0.9, 0.2, 0.2)),
        (0, (None, None, None)),
    ],
)
def test_impossible_sizes(total: int, asked: tuple[int | float | None, ...]) -> None:
    with pytest.raises(DataError, match=f"{total} frames cannot be divided as asked"):
        random_split(numbered(total), *asked, seed=0)


@pytest.mark.parametrize("amount", [-1, 1.5, float("nan"), True])
def test_amounts_that_mean_nothing(amount: float) -> None:
    with pytest.raises(ConfigError, match="train="):
        random_split(numbered(10), amount, None, None, seed=0)


@given(
    total=st.integers(1, 60),
    train=st.none() | st.integers(0, 70) | st.floats(0.01, 0.99),
    valid=st.none() | st.integers(0, 70) | st.floats(0.01, 0.99),
    test=st.none() | st.integers(0, 70) | st.floats(0.01, 0.99),
)
def test_a_split_is_disjoint_and_keeps_what_was_asked(
    total: int, train: float | None, valid: float | None, test: float | None
) -> None:
    try:
        parts = random_split(numbered(total), train, valid, test, seed=0)
    except DataError:
        return
    everything = [index for part in parts for index in indices(part)]
    assert len(set(everything)) == len(everything) <= total
    assert parts[0]
    for part, amount in zip(parts, (train, valid, test), strict=True):
        if isinstance(amount, int):
            assert len(part) == amount
        elif amount is None:
            assert part


def test_own_file_end_to_end(tmp_path: Path, frames: list[Frame]) -> None:
    path = write(tmp_path / "own.extxyz", frames)
    split = load_split(path, seed=4)
    assert [len(p) for p in (split.train, split.valid, split.test)] == [80, 10, 10]
    assert split.source == str(path)
    again = load_split(str(path), seed=4)
    assert data_hash(again.train) == data_hash(split.train)
    assert data_hash(load_split(path, seed=5).train) != data_hash(split.train)


def test_all_frames_and_one_frame_are_told_apart(tmp_path: Path, frames: list[Frame]) -> None:
    path = write(tmp_path / "own.extxyz", frames[:10])
    with pytest.raises(ConfigError, match=r"train=1\.0 is all frames or one of them.*train=10"):
        load_split(path, train=1.0, valid=0, test=0)
    assert len(load_split(path, train=1, valid=1, test=1).train) == 1


def test_own_files_for_every_part(tmp_path: Path, frames: list[Frame]) -> None:
    train = write(tmp_path / "train.extxyz", frames[:70])
    valid = write(tmp_path / "valid.traj", frames[70:80])
    test = write(tmp_path / "test.db", frames[80:])
    atoms = tmp_path / "atoms.xyz"
    lone = Atoms("O", [[0.0, 0.0, 0.0]])
    lone.calc = SinglePointCalculator(lone, energy=-2037.8)
    ase.io.write(atoms, lone, format="extxyz")
    split = load_split(train, valid_file=valid, test_file=test, isolated_atoms_file=atoms)
    assert [len(p) for p in (split.train, split.valid, split.test)] == [70, 10, 20]
    assert split.isolated_atoms == {8: -2037.8}
    (warning,) = split.warnings
    assert warning.startswith("there are isolated atoms, but none of H, C: ")
    twice = write(tmp_path / "twice.extxyz", [*frames[80:], *frames[80:85]])
    again = load_split(train, valid_file=valid, test_file=twice)
    assert len(again.test) == 20
    assert any("5 repeated frames were left out" in warning for warning in again.warnings)
    with pytest.raises(ConfigError, match="exclude each other"):
        load_split(train, test_file=test, test=5)
    with pytest.raises(DataError, match="only isolated atoms; give the file"):
        load_split(atoms)
    with pytest.raises(DataError, match="no frame of a single atom"):
        load_split(train, isolated_atoms_file=test)


def test_overlapping_own_files_are_refused(tmp_path: Path, frames: list[Frame]) -> None:
    train = write(tmp_path / "train.extxyz", frames[:60])
    test = write(tmp_path / "test.extxyz", frames[55:80])
    with pytest.raises(
        DataError, match=r"test\.extxyz, frame 0 \(test\) has the geometry of .*train"
    ):
        load_split(train, valid=0, test_file=test)


def test_repeated_frames_cannot_reach_two_parts(tmp_path: Path, frames: list[Frame]) -> None:
    path = write(tmp_path / "own.extxyz", [*frames[:50], *frames[:50]])
    split = load_split(path)
    assert len(split.train) + len(split.valid) + len(split.test) == 50
    assert "50 repeated frames were left out" in split.warnings[0]


def test_elements_that_training_never_sees(tmp_path: Path, frames: list[Frame]) -> None:
    train = write(tmp_path / "train.extxyz", frames[:60])
    numbers = frames[0].atomic_numbers.copy()
    numbers[2] = 16
    test = write(tmp_path / "test.extxyz", [replace(frames[90], atomic_numbers=numbers)])
    with pytest.raises(
        DataError, match=r"test\.extxyz, frame 0: a test frame contains S, which no train"
    ):
        load_split(train, test_file=test, allow_unusual=True)


def test_a_broken_file_is_named_before_it_is_divided(tmp_path: Path, frames: list[Frame]) -> None:
    bad = list(frames)
    forces = bad[17].forces.copy()
    forces[3, 2] = np.nan
    bad[17] = replace(bad[17], forces=forces)
    arrays = {
        "z": bad[0].atomic_numbers,
        "R": np.stack([f.positions for f in bad]),
        "E": np.array([f.energy for f in bad]),
        "F": np.stack([f.forces for f in bad]),
    }
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"own\.npz, frame 17: the forces of atom 3 are"):
        load_split(path, energy_unit="eV")


def test_options_that_do_not_apply(tmp_path: Path, frames: list[Frame]) -> None:
    with pytest.raises(ConfigError, match="rmd17:ethanol has its units"):
        load_split("rmd17:ethanol", energy_unit="eV")
    with pytest.raises(ConfigError, match="leave out"):
        load_split("rmd17:ethanol", test_file="test.xyz")
    path = write(tmp_path / "own.extxyz", frames[:20])
    with pytest.raises(ConfigError, match="split=2 applies to public sets"):
        load_split(path, split=2)
    with pytest.raises(ConfigError, match="apply to files that ASE reads"):
        load_split(tmp_path / "own.npz", energy_key="E")


def test_hash_sees_every_number_and_the_order(frames: list[Frame]) -> None:
    data = frames[:3]
    reference = data_hash(data)
    assert len(reference) == 64
    assert data_hash([replace(f, index=f.index + 1, source="other") for f in data]) == reference
    cell = np.eye(3) * 20.0
    numbers = data[0].atomic_numbers.copy()
    numbers[0] = 7
    variants = [
        data[::-1],
        data[:2],
        [replace(data[0], energy=np.nextafter(data[0].energy, 0.0)), *data[1:]],
        [replace(data[0], forces=data[0].forces + 1e-12), *data[1:]],
        [replace(data[0], positions=data[0].positions + 1e-12), *data[1:]],
        [replace(data[0], atomic_numbers=numbers), *data[1:]],
        [replace(data[0], cell=cell, pbc=np.array([True] * 3)), *data[1:]],
        [replace(data[0], cell=cell, pbc=np.array([True, True, False])), *data[1:]],
        [replace(data[0], stress=np.zeros((3, 3))), *data[1:]],
    ]
    assert len({reference, *(data_hash(variant) for variant in variants)}) == 1 + len(variants)
