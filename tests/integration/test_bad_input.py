"""What is said about each bad input, by ASE and by both of OpenMM's forces: the table of docs/ase.md."""

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from calculators import PotentialCalculator
from calculators.evaluator import Evaluator, open_potential
from forcefield import save_potential
from forcefield.errors import (
    CheckpointError,
    ConfigError,
    ForceFieldError,
    InvalidStructureError,
    NonFiniteForceError,
    UnknownElementError,
)

openmm = pytest.importorskip("openmm")

from calculators.openmm import create_system  # noqa: E402
from tests.integration.openmm_systems import context_of, evaluate, topology_of  # noqa: E402

ENGINES = ("ase", "torch", "python")


def forces(engine: str, potential: Path, atoms: Atoms, **options: object) -> np.ndarray:
    """Forces on the atoms, eV/Å."""
    if engine == "ase":
        atoms.calc = PotentialCalculator(potential, **options)
        return atoms.get_forces()
    system = create_system(topology_of(atoms), potential, engine, **options)
    return evaluate(context_of(system, atoms))[1]


def complaint(engine: str, potential: Path, atoms: Atoms, **options: object) -> str:
    """The kind and the sentence of the error; OpenMM has one kind and puts ours into the sentence."""
    with pytest.raises((ForceFieldError, openmm.OpenMMException, ValueError)) as caught:
        forces(engine, potential, atoms, **options)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_element(engine, float32_potential):
    with pytest.raises(UnknownElementError, match=r"atom 1 is Cl .*trained on H, C, O only"):
        forces(engine, float32_potential.path, molecule("CH3Cl"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_position_that_is_not_finite(value, engine, float32_potential, ethanol, water_box):
    for atoms in (ethanol, water_box):
        atoms.positions[2, 1] = value
        found = complaint(engine, float32_potential.path, atoms)
        symbol = atoms.symbols[2]
        assert "InvalidStructureError" in found
        assert f"the position of atom 2 ({symbol}) is not finite" in found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("periodic", [False, True])
def test_atoms_on_top_of_each_other(periodic, engine, float32_potential, ethanol):
    """Both atoms are named; inside TorchScript, where nobody looks for a pair, one."""
    ethanol.positions[5] = ethanol.positions[2]
    if periodic:
        ethanol.set_cell(9.0 * np.eye(3))
        ethanol.pbc = True
        ethanol.positions[5, 0] -= 9.0
    found = complaint(engine, float32_potential.path, ethanol)
    if engine == "torch":
        assert re.search(r"NonFiniteForceError: the force on atom \d \(\w\) is not finite", found)
    else:
        where = (
            "lie on top of each other across the cell" if periodic else "lie on top of each other"
        )
        assert f"atom 2 (O) and atom 5 (H) {where} (0.000 Å apart)" in found
        assert "InvalidStructureError" in found


@pytest.mark.parametrize("engine", ENGINES)
def test_atoms_too_close(engine, float32_potential, ethanol):
    ethanol.positions[5] = ethanol.positions[2] + [0.2, 0.0, 0.1]
    found = complaint(engine, float32_potential.path, ethanol, max_force=0.05)
    assert re.search(r"AbsurdForceError.*the force on atom \d \(\w\) is [\d.]+ eV/Å", found)
    if engine != "torch":
        assert "atom 2 (O) and atom 5 (H) are 0.22 Å apart" in found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("skin", [-0.5, np.nan, np.inf])
def test_a_skin_below_zero(skin, engine, float32_potential, ethanol):
    """Also where no list is built, at once: another structure may need one."""
    build = PotentialCalculator
    if engine != "ase":
        build = partial(create_system, topology_of(ethanol), engine=engine)
    with pytest.raises(ConfigError, match=f"skin is a length in Å, .* found {skin}"):
        build(potential=float32_potential.path, skin=skin)


def test_forces_that_overflow(broken_potential, ethanol):
    ethanol.calc = PotentialCalculator(broken_potential)
    with pytest.raises(
        NonFiniteForceError, match=r"atom \d \(\w\) is not finite.*starting structure"
    ):
        ethanol.get_forces()


@pytest.mark.parametrize(
    "cell", [np.zeros((3, 3)), np.diag([9.0, 9.0, 0.0]), np.diag([40.0, 40.0, 0.05])]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_cell_without_volume(engine, cell, float32_potential, ethanol):
    ethanol.set_cell(cell)
    ethanol.pbc = True
    found = complaint(engine, float32_potential.path, ethanol)
    if cell[2, 2] > 0.0 and engine == "torch":
        # OpenMM takes a box that is 0.05 Å thin for a box; every atom is near its own image.
        assert "AbsurdForceError" in found or "NonFiniteForceError" in found
    elif engine == "ase" or cell[2, 2] > 0.0:
        assert "InvalidStructureError" in found
        assert "zero, linearly dependent or far too short" in found
    else:
        assert found == "ValueError: Periodic box vectors must be in reduced form."


@pytest.mark.parametrize("engine", ["ase", "python"])
def test_cell_that_is_not_finite(engine, float32_potential, ethanol):
    ethanol.set_cell([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, np.nan]])
    ethanol.pbc = True
    found = complaint(engine, float32_potential.path, ethanol)
    assert "InvalidStructureError" in found
    assert "the cell is not finite" in found


@pytest.mark.parametrize("engine", ENGINES)
def test_cell_smaller_than_the_cutoff_is_right(engine, float64_potential, water_box):
    """No error and no minimum image: every image within the cutoff counts."""
    small = water_box[:3]
    small.set_cell([[3.0, 0.0, 0.0], [0.4, 3.1, 0.0], [-0.3, 0.5, 3.2]])
    repeated = small.repeat((3, 3, 3))
    expected = PotentialCalculator(float64_potential.path).get_forces(repeated)[:3]
    found = forces(engine, float64_potential.path, small)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("engine", ["torch", "python"])
def test_wrong_number_of_atoms_in_openmm(engine, float32_potential, ethanol):
    system = create_system(topology_of(ethanol), float32_potential.path, engine)
    system.addParticle(1.0)
    more = ethanol + Atoms("H", [[9.0, 9.0, 9.0]])
    with pytest.raises(openmm.OpenMMException, match=r"made for 9 atoms, the System has 10"):
        evaluate(context_of(system, more))


def test_wrong_number_of_atoms_in_an_evaluator(float32_potential, ethanol):
    evaluator = Evaluator(open_potential(float32_potential.path), ethanol.numbers)
    with pytest.raises(InvalidStructureError, match="made for 9 atoms, found 8 positions"):
        evaluator(ethanol.positions[:8])


def write_text(path: Path, _: Path) -> None:
    path.write_text("3\n\nO 0 0 0\nH 1 0 0\nH 0 1 0\n")


def write_other_module(path: Path, _: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def write_half(path: Path, potential: Path) -> None:
    path.write_bytes(potential.read_bytes()[:-5000])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (None, "no exported potential at"),
        (write_text, "is not a TorchScript file"),
        (write_half, "is not a TorchScript file"),
        (write_other_module, "but not one written by export-potential"),
    ],
)
def test_wrong_file(
    engine,
    write: Callable[[Path, Path], None] | None,
    sentence,
    float32_potential,
    ethanol,
    tmp_path,
):
    path = tmp_path / "other.pt"
    if write is not None:
        write(path, float32_potential.path)
    with pytest.raises(CheckpointError, match=rf"other\.pt.*{sentence}|{sentence}.*other\.pt"):
        forces(engine, path, ethanol)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_not_a_potential_to_simulate_with(engine, float32_potential, ethanol, tmp_path):
    path = tmp_path / "potential.safetensors"
    save_potential(float32_potential.eager, path)
    with pytest.raises(CheckpointError, match="a weights file: run export-potential on it"):
        forces(engine, path, ethanol)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an exported file with some of its records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def of_torch(version: str, source: Path, target: Path) -> Path:
    """As a later torch would write it: a newer format, and operators that this one does not know."""

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("hegnn-forcefield.json"):
            assert torch.__version__.encode() in data
            return data.replace(torch.__version__.encode(), version.encode())
        if name.endswith(".py"):
            return data.replace(b"torch.index_select", b"torch.index_select_of_tomorrow")
        return data

    return rewritten(source, target, change)


@pytest.mark.parametrize("engine", ENGINES)
def test_file_of_another_torch(engine, float32_potential, ethanol, tmp_path):
    path = of_torch("9.8.7+cpu", float32_potential.path, tmp_path / "newer.pt")
    with pytest.raises(
        CheckpointError,
        match=rf"newer\.pt was exported with torch 9\.8\.7\+cpu and does not load with torch "
        rf"{re.escape(torch.__version__)}: export it again here .*, or install torch 9\.8\.7$",
    ):
        forces(engine, path, ethanol)
    # One that was written by another torch and loads all the same is welcome.
    again = rewritten(
        float32_potential.path,
        tmp_path / "older.pt",
        lambda name, data: data.replace(torch.__version__.encode(), b"2.10.0"),
    )
    expected = forces("ase", float32_potential.path, ethanol.copy())
    np.testing.assert_allclose(forces(engine, again, ethanol), expected, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_file_of_a_later_version_of_the_package(engine, float32_potential, ethanol, tmp_path):
    path = rewritten(
        float32_potential.path,
        tmp_path / "later.pt",
        lambda name, data: data.replace(b'"format_version": 1', b'"format_version": 99').replace(
            torch.__version__.encode(), b"9.8.7"
        ),
    )
    with pytest.raises(CheckpointError, match=r"later\.pt has format 99.*update the package"):
        forces(engine, path, ethanol)
