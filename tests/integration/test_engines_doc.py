"""The Python in docs/engines.md does what it says; what Phonopy makes of the forces is right."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from calculators import PotentialCalculator
from forcefield import export_potential, load_potential
from forcefield.pretrained import BACKBONE

DOCUMENT = Path(__file__).parents[2] / "docs/engines.md"
LAMMPS = Path(__file__).parents[2] / "examples/lammps/in.metatomic"
INVERSE_CM = 33.35641
"""cm⁻¹ in one THz."""


def snippet(word: str) -> str:
    """The one block of Python that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


@pytest.fixture(scope="module")
def general(tmp_path_factory) -> Path:
    """The weights that ship with the package, exported."""
    path = tmp_path_factory.mktemp("general") / "potential.pt"
    export_potential(*load_potential(BACKBONE)[:1], path)
    return path


@pytest.fixture
def folder(general, tmp_path, monkeypatch) -> Path:
    """A working folder in which the potential lies where the document has it."""
    monkeypatch.chdir(tmp_path)
    for path in (Path("potential.pt"), Path("runs/rmd17-ethanol/potential.pt")):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(general, path)
    return tmp_path


def test_export_to_metatomic_and_back_to_ase(folder, capsys):
    pytest.importorskip("metatomic.torch")
    names: dict[str, object] = {}
    exec(snippet("export_metatomic("), names)
    exec(snippet("MetatomicCalculator("), names)
    atoms = molecule("CH3CH2OH")
    atoms.calc = PotentialCalculator("potential.pt")
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(
        atoms.get_potential_energy(), abs=1e-4
    )


def test_lammps_reads_the_types_in_the_order_of_the_input(folder, water_box):
    water_box.write("liquid.extxyz")
    exec(snippet("lammps-data"), {})
    text = (folder / "liquid.data").read_text()
    masses = [line.split()[:2] for line in text.split("Masses")[1].strip().splitlines()[:2]]
    assert [(index, round(float(mass))) for index, mass in masses] == [("1", 1), ("2", 16)]
    commands = [line.split() for line in LAMMPS.read_text().splitlines() if line]
    (coefficients,) = [words for words in commands if words[0] == "pair_coeff"]
    assert coefficients[1:5] == ["*", "*", "1", "8"]
    back = read("liquid.data", format="lammps-data", units="metal")
    assert back.get_chemical_formula() == water_box.get_chemical_formula()
    distances = water_box.get_all_distances(mic=True)
    np.testing.assert_allclose(back.get_all_distances(mic=True), distances, atol=1e-6)


def test_phonopy_finds_the_vibrations_of_water(folder):
    pytest.importorskip("phonopy")
    water = molecule("H2O", vacuum=6.0)
    water.pbc = True
    water.calc = PotentialCalculator("potential.pt", dtype=torch.float64)
    BFGS(water, logfile=None).run(fmax=1e-3, steps=100)
    water.write("crystal.extxyz")
    names: dict[str, object] = {}
    exec(snippet("phonopy").replace("[2, 2, 2]", "[1, 1, 1]"), names)
    found = INVERSE_CM * np.asarray(names["frequencies"])
    vibrations = Vibrations(water, name="vibrations")
    vibrations.run()
    expected = vibrations.get_frequencies().real
    np.testing.assert_allclose(found[-3:], expected[-3:], rtol=0, atol=3.0)
    assert 1500.0 < found[-3] < 1800.0 < 3500.0 < found[-2] < found[-1] < 4200.0
    # Translations cost nothing.
    assert np.sort(np.abs(found[:-3]))[:3] == pytest.approx(0.0, abs=0.01)


def test_phonopy_knows_a_crystal_by_its_supercell(folder, float64_potential, water_box):
    """Its force constants are those that displacing one atom of the supercell gives."""
    pytest.importorskip("phonopy")
    small = water_box[:6]
    small.set_cell([[3.5, 0.0, 0.0], [0.4, 3.8, 0.0], [-0.5, 0.9, 6.5]])
    small.wrap()
    small.write("crystal.extxyz")
    program = snippet("phonopy").replace("[2, 2, 2]", "[2, 1, 1]")
    program = program.replace('"potential.pt"', repr(str(float64_potential.path)))
    names: dict[str, object] = {}
    exec(program, names)
    phonons = names["phonons"]
    supercell = phonons.supercell
    atoms = Atoms(supercell.symbols, cell=supercell.cell, positions=supercell.positions, pbc=True)
    atoms.calc = PotentialCalculator(float64_potential.path)
    sides = []
    for sign in (1.0, -1.0):
        atoms.positions[0, 1] = supercell.positions[0, 1] + sign * 1e-3
        sides.append(atoms.get_forces())
    expected = -(sides[0] - sides[1]) / 2e-3
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        phonons.force_constants[0, :, 1, :], expected, rtol=0, atol=0.02 * np.abs(expected).max()
    )
    assert np.sort(np.abs(names["frequencies"]))[:3] == pytest.approx(0.0, abs=1e-3)


def test_replicas_in_torchsim(folder):
    ts = pytest.importorskip("torch_sim")
    program = snippet("TorchSimModel").replace("range(100)", "range(3)").replace("2000", "5")
    if not hasattr(ts, "Integrator"):
        program = program.replace("ts.Integrator.nvt_langevin", "ts.nvt_langevin")
    names: dict[str, object] = {}
    exec(program, names)
    assert names["end"].positions.shape == (27, 3)
    assert bool(torch.isfinite(names["end"].positions).all())
