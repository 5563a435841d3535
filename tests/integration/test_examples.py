"""Every example runs as its first lines say, from the folder that a user would be in."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

ROOT = Path(__file__).parents[2]
SMALL = ["train=60", "valid=20", "test=20", "epochs=30", "layers=2", "features=16", "channels=4"]


def run_example(name: str, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which train_from_python has been run."""
    folder = tmp_path_factory.mktemp("examples")
    output = run_example("train_from_python.py", folder, *SMALL)
    assert re.search(r"forces on the test frames: MAE \d+\.\d meV/Å", output)
    return folder


@pytest.fixture(scope="module")
def potential(folder: Path) -> Path:
    """The potential that it left."""
    path = folder / "runs/from-python/potential.pt"
    assert path.is_file()
    assert path.with_name("report.html").is_file()
    return path


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    programs = [path.name for path in (ROOT / "examples").glob("*.py")]
    parts_of_the_demo = {name for name in programs if name.startswith("demo_")}
    assert all(f'"{name}"' in tested for name in set(programs) - parts_of_the_demo)


def test_ase_md(folder, potential):
    from ase.io import read

    run_example("ase_md.py", folder, str(potential), "--picoseconds", "0.02")
    frames = read(folder / "runs/ase-md/nve.traj", index=":")
    assert len(frames) == 3
    totals = [frame.get_total_energy() for frame in frames]
    assert np.ptp(totals) < 0.01 * len(frames[0])
    assert len((folder / "runs/ase-md/nve.log").read_text().splitlines()) == 4


def test_ase_relax(folder, potential):
    from ase.io import read

    output = run_example("ase_relax.py", folder, str(potential), "--fmax", "0.05")
    assert re.search(r"^converged after \d+ steps; the energy changed by -\d", output)
    relaxed = read(folder / "runs/ase-relax/relaxed.extxyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05


def test_ase_vibrations(folder, potential):
    output = run_example("ase_vibrations.py", folder, str(potential))
    assert len(re.findall(r"cm⁻¹", output)) == 27
    assert re.search(r"zero-point energy [12]\.\d+ eV", output)
    assert "Gibbs energy" in output or "not a minimum" in output
    assert (folder / "runs/ase-vibrations/modes.xyz").is_file()


def test_openmm_md(folder, potential):
    pytest.importorskip("openmm")
    from openmm.app import PDBFile

    run_example("openmm_md.py", folder, str(potential), "--picoseconds", "0.05")
    results = folder / "runs/openmm-md"
    assert PDBFile(str(results / "topology.pdb")).topology.getNumAtoms() == 9
    with (results / "log.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 5
    assert np.isfinite(np.array(rows[1:], dtype=float)).all()
    # Five frames of nine atoms, three float32 each, in either format.
    assert (results / "trajectory.dcd").stat().st_size > 5 * 9 * 12
    assert (results / "trajectory.xtc").stat().st_size > 0


def test_openmm_mixed(folder):
    pytest.importorskip("openmm")
    mdtraj = pytest.importorskip("mdtraj")
    run_example("openmm_mixed.py", folder, "--picoseconds", "0.005", "--platform", "CPU")
    results = folder / "runs/openmm-mixed"
    trajectory = mdtraj.load(results / "trajectory.dcd", top=results / "topology.pdb")
    peptide = trajectory.topology.select("resname ACE ALA NME")
    assert (trajectory.n_frames, len(peptide)) == (5, 22)
    assert trajectory.n_atoms > 1000
    with (results / "log.csv").open() as file:
        densities = [float(row[-1]) for row in list(csv.reader(file))[1:]]
    assert all(0.8 < density < 1.1 for density in densities)
    # Wrapped by molecule: the peptide is whole in every frame.
    pairs = [(a.index, b.index) for a, b in trajectory.topology.bonds if a.index in set(peptide)]
    distances = mdtraj.compute_distances(trajectory, pairs, periodic=False)
    assert distances.max() < 0.18  # nm


def test_train_own_extxyz(folder):
    output = run_example("train_own_extxyz.py", folder, "epochs=1", *SMALL[4:])
    assert "a stand-in for your own" in output
    assert (folder / "runs/own/potential.pt").is_file()


def test_demo(folder):
    pytest.importorskip("openmm")
    output = run_example("demo.py", folder, "--picoseconds", "0.03", *SMALL)
    for promised in (
        "force MAE",
        "forces   MAE",
        "energy drift",
        "all engines agree",
        "ms per step",
    ):
        assert promised in output
    agreement = re.search(r"agree with the model to (\S+) eV and (\S+) eV/Å", output)
    assert agreement is not None
    assert all(float(value) < 1e-4 for value in agreement.groups())
    run = folder / "runs/demo"
    report = (run / "report.html").read_text(encoding="utf-8")
    for part in ("Learning curves", "Parity", "Simulations", "Engines", 'id="molecule"'):
        assert part in report
    # Self-contained: nothing is fetched when it is opened.
    assert not re.search(r"""(src|href)=["']?(https?:|//|\w+\.)""", report)
    assert (run / "overview.png").read_bytes().startswith(b"\x89PNG")
    for engine in ("ase", "openmm"):
        with np.load(run / f"{engine}.npz") as data:
            assert data["frames"].shape[1:] == (9, 3)
            assert data["constant"].sum() == 4
            assert np.isfinite(data["energy"]).all()


def test_featurize_simulation(folder, potential):
    molecule("CH3CH2OH").write(folder / "ethanol.xyz")
    output = run_example(
        "featurize_simulation.py", folder, str(potential.parent), "ethanol.xyz", "--time", "4ps"
    )
    assert re.search(r"slowest motion \d+\.\d+ ± \d+\.\d+ ps", output)
    assert (folder / "runs/featurized/report/report.html").is_file()


@pytest.fixture(scope="module")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working folder in which the peptide example has simulated alanine."""
    pytest.importorskip("rdkit")
    folder = tmp_path_factory.mktemp("peptide")
    output = run_example(
        "featurize_peptide.py", folder, "--sequence", "AAA", "--nanoseconds", "0.2", "--lag", "2ps"
    )
    return folder, output


def test_featurize_peptide(peptide):
    folder, output = peptide
    assert "200 frames of 3 residues" in output
    assert re.search(r"slowest motion \d+ ± \d+ ps", output)
    assert (folder / "runs/peptide/report/report.html").is_file()


def test_dipeptide_states(peptide):
    folder, _ = peptide
    arguments = ["runs/peptide/trajectory.dcd", "--top", "runs/peptide/peptide.pdb"]
    output = run_example(
        "dipeptide_states.py",
        folder,
        *arguments,
        *("--frame-time", "1", "--lag", "2ps", "--epochs", "2"),
    )
    shares = [float(share) for share in re.findall(r"state \d: ([\d.]+) % of the time", output)]
    assert len(shares) >= 2
    assert sum(shares) == pytest.approx(100.0, abs=0.5)
