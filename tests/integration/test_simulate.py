"""``simulate-potential`` in both engines: files, continuing, stopping, mistakes, collapse."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from typer.testing import CliRunner

from calculators import PotentialCalculator
from calculators.simulation import SimulationResult, SimulationSettings, make_settings, simulate
from calculators.simulation.ase_engine import ASEEngine
from calculators.simulation.checkpoint import Checkpoint
from calculators.simulation.cli import EXIT_FAILED, EXIT_MISTAKE, app
from calculators.simulation.folder import SimulationFolder, alone_in
from calculators.simulation.record import read_energies
from calculators.simulation.stability import TOLERANCE
from calculators.simulation.start import make_engine
from calculators.simulation.trajectory import read_dcd
from forcefield import export_potential, load_exported, load_potential
from forcefield.errors import CheckpointError, ConfigError, EngineError
from forcefield.pieces import MANY_PAIRS
from tests.integration.conftest import way_of

pytest.importorskip("openmm")
mdtraj = pytest.importorskip("mdtraj")

ENGINES = ("ase", "openmm")
GENERAL = Path(__file__).parents[2] / "forcefield" / "pretrained" / "hegnn-general.safetensors"


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The general potential, exported, with an error estimate of no meaning."""
    potential, _ = load_potential(GENERAL)
    size = potential.posterior.factor.shape[0]
    potential.posterior.set(torch.eye(size, dtype=torch.float64), torch.tensor([0.1, 0.2]))
    path = tmp_path_factory.mktemp("general") / "general.pt"
    export_potential(potential, path)
    return path


def simulate_with(potential: Path, out: Path, atoms: Atoms | None, **values) -> SimulationResult:
    flags = {k: values.pop(k) for k in ("resume", "overwrite", "plot") if k in values}
    flags = {"plot": False, "show_progress": False, **flags}
    settings = make_settings({"potential": str(potential), "every": 5, "time": "0.02ps", **values})
    return simulate(settings, out, structure=atoms, **flags)


def contents(result: SimulationResult, suffix: str = "dcd") -> list[bytes]:
    folder = result.folder
    return [
        path.read_bytes() for path in (folder.energies, folder.trajectory(suffix), folder.final)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_leaves_files_that_agree(engine, general, tmp_path):
    ethanol = molecule("CH3CH2OH")
    write(tmp_path / "ethanol.xyz", ethanol)
    result = simulate_with(
        general,
        tmp_path / "run",
        None,
        structure=str(tmp_path / "ethanol.xyz"),
        engine=engine,
        ensemble="nve",
        time="0.05ps",
        every=10,
        uncertainty=engine == "ase",
        plot=True,
    )
    folder, summary = result.folder, result.summary
    assert summary == json.loads(folder.summary.read_text(encoding="utf-8"))
    assert summary["outcome"] == "complete"
    assert summary["stability"]["stable"]
    assert summary["frames"] == 11
    assert summary["speed"]["steps"] == 100
    # A molecule that starts as ethanol at 300 K keeps its energy.
    assert summary["drift"]["fluctuation_meV_per_atom"] < 0.3

    rows = read_energies(folder.energies)
    np.testing.assert_array_equal(rows["step"], 10 * np.arange(11))
    np.testing.assert_allclose(rows["time_ps"], 0.005 * np.arange(11))
    np.testing.assert_allclose(
        rows["total_eV"], rows["potential_eV"] + rows["kinetic_eV"], atol=2e-8
    )
    trajectory = mdtraj.load(str(folder.trajectory("dcd")), top=str(folder.topology))
    assert (trajectory.n_frames, trajectory.n_atoms, trajectory.topology.n_bonds) == (11, 9, 8)
    assert len({atom.name for atom in trajectory.topology.atoms}) == 9
    calculator = PotentialCalculator(general, uncertainty=engine == "ase")
    for frame in (0, 4, 10):
        atoms = Atoms(
            ethanol.numbers, 10 * trajectory.xyz[frame].astype(float), calculator=calculator
        )
        assert atoms.get_potential_energy() == pytest.approx(rows["potential_eV"][frame], abs=2e-5)
        if engine == "ase":
            largest = calculator.results["forces_uncertainty"].max()
            found = rows["max_force_uncertainty_eV_per_A"][frame]
            assert found == pytest.approx(largest, rel=1e-3)
        bonds = np.linalg.norm(atoms.positions[3] - atoms.positions[2])
        before = np.linalg.norm(ethanol.positions[3] - ethanol.positions[2])
        low, high = (rows[name][frame] for name in ("shortest_bond_A", "longest_bond_A"))
        assert low - 1e-3 <= bonds - before <= high + 1e-3
    final = read(folder.final)
    np.testing.assert_allclose(final.positions, 10 * trajectory.xyz[-1], atol=1e-4)
    assert final.get_kinetic_energy() == pytest.approx(rows["kinetic_eV"][-1], abs=1e-6)
    assert final.get_momenta().sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)

    settings = json.loads(folder.settings.read_text(encoding="utf-8"))
    assert settings["settings"]["temperature"] == "300.0 K"
    assert settings["degrees_of_freedom"] == 21
    assert len(settings["potential"]["sha256"]) == len(settings["structure"]["sha256"]) == 64
    assert settings["potential"]["header"]["cutoff"] == 5.0
    assert settings["versions"]["torch"] == torch.__version__
    assert folder.plot.read_bytes().startswith(b"\x89PNG")


CONTINUED = [
    ("ase", "nve", "langevin", "dcd"),
    ("ase", "nvt", "langevin", "extxyz"),
    ("ase", "nvt", "nose-hoover", "xtc"),
    ("openmm", "nvt", "langevin", "xtc"),
    ("openmm", "nvt", "nose-hoover", "dcd"),
]


@pytest.mark.parametrize(("engine", "ensemble", "thermostat", "suffix"), CONTINUED)
def test_a_continued_run_is_the_uninterrupted_one(
    engine, ensemble, thermostat, suffix, float32_potential, ethanol, tmp_path
):
    values = {
        "engine": engine,
        "ensemble": ensemble,
        "thermostat": thermostat,
        "format": suffix,
        "friction": "20/ps",
    }
    potential = float32_potential.path
    whole = simulate_with(potential, tmp_path / "whole", ethanol, **values)
    part = simulate_with(potential, tmp_path / "part", ethanol, time="0.01ps", **values)
    assert part.summary["frames"] == 5
    # What a killed run wrote after its last checkpoint
    for path in (part.folder.energies, part.folder.trajectory(suffix)):
        with path.open("ab") as file:
            file.write(b"25,0.0125,-1")
    part = simulate_with(potential, tmp_path / "part", None, resume=True, **values)
    assert part.summary["frames"] == whole.summary["frames"] == 9
    assert contents(part, suffix) == contents(whole, suffix)
    first, second = (Checkpoint.load(r.folder.checkpoint).state for r in (whole, part))
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.velocities, second.velocities)
    stored = json.loads(part.folder.settings.read_text(encoding="utf-8"))
    assert stored["settings"]["time"] == "0.02 ps"
    if suffix == "extxyz":
        frames = read(part.folder.trajectory(suffix), index=":")
        assert [frame.info["step"] for frame in frames] == list(range(0, 45, 5))
        calculator = PotentialCalculator(potential)
        np.testing.assert_allclose(
            frames[4].get_forces(), calculator.get_forces(frames[4]), atol=1e-4
        )
    elif suffix == "xtc":
        loaded = mdtraj.load(str(part.folder.trajectory(suffix)), top=str(part.folder.topology))
        assert loaded.n_frames == 9
        np.testing.assert_allclose(loaded.time, 0.0025 * np.arange(9), atol=1e-6)
        np.testing.assert_allclose(10 * loaded.xyz[-1], second.positions, atol=0.01)


def test_both_engines_give_the_same_trajectory(float64_potential, ethanol, tmp_path):
    ends = [
        simulate_with(
            float64_potential.path, tmp_path / engine, ethanol, engine=engine, ensemble="nve"
        )
        for engine in ENGINES
    ]
    states = [Checkpoint.load(end.folder.checkpoint).state for end in ends]
    np.testing.assert_allclose(states[0].positions, states[1].positions, atol=1e-9)
    np.testing.assert_allclose(states[0].velocities, states[1].velocities, atol=1e-9)
    assert np.abs(states[0].positions - ethanol.positions).max() > 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_constant_pressure(engine, float32_potential, water_box, tmp_path):
    values = {
        "engine": engine,
        "ensemble": "npt",
        "pressure": "20kbar",
        "friction": "10/ps",
        "timestep": "0.2fs",
        "every": 15,
    }
    # OpenMM's barostat tries every 25 steps.
    half = 0.006 if engine == "ase" else 0.012
    potential = float32_potential.path
    whole = simulate_with(potential, tmp_path / "whole", water_box, time=2 * half, **values)
    rows = read_energies(whole.folder.energies)
    assert len(rows["step"]) == 1 + round(2 * half / 0.003)
    assert len(np.unique(rows["volume_A3"])) > 1
    mass = water_box.get_masses().sum()
    np.testing.assert_allclose(
        rows["density_g_per_cm3"], mass / 0.602214 / rows["volume_A3"], rtol=1e-4
    )
    trajectory = mdtraj.load(str(whole.folder.trajectory("dcd")), top=str(whole.folder.topology))
    np.testing.assert_allclose(1000 * trajectory.unitcell_volumes, rows["volume_A3"], rtol=1e-4)
    assert {residue.name for residue in trajectory.topology.residues} == {"HOH"}
    assert trajectory.topology.n_residues == 27
    assert whole.summary["density"]["mean_g_per_cm3"] > 0.5

    part = simulate_with(potential, tmp_path / "part", water_box, time=half, **values)
    part = simulate_with(potential, tmp_path / "part", None, time=2 * half, resume=True, **values)
    np.testing.assert_array_equal(read_energies(part.folder.energies)["step"], rows["step"])
    if engine == "ase":  # OpenMM does not tell the random numbers of its barostat
        assert contents(part) == contents(whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_ends_a_run_that_can_go_on(engine, float32_potential, ethanol, tmp_path):
    out = tmp_path / "run"
    energies = out / "energies.csv"

    def terminate() -> None:
        for _ in range(2000):
            time.sleep(0.01)
            if energies.is_file() and energies.read_text(encoding="utf-8").count("\n") > 4:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=terminate)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    # A checkpoint after every frame puts the lines on the disk where the thread sees them.
    result = simulate_with(
        float32_potential.path, out, ethanol, engine=engine, time="1ns", checkpoint="0s"
    )
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert result.outcome == "interrupted"
    step = Checkpoint.load(result.folder.checkpoint).state.step
    assert 15 <= step < 1_999_000
    assert result.folder.final.is_file()
    longer = (step // 5 + 3) * 5 * 0.0005
    result = simulate_with(
        float32_potential.path, out, None, engine=engine, time=longer, resume=True, checkpoint="0s"
    )
    assert result.outcome == "complete"
    rows = read_energies(result.folder.energies)
    np.testing.assert_array_equal(rows["step"], 5 * np.arange(step // 5 + 4))
    assert len(read_dcd(result.folder.trajectory("dcd"))[0]) == len(rows["step"])


@pytest.mark.parametrize("engine", ENGINES)
def test_forces_that_are_absurd_end_the_run_with_a_verdict(engine, general, tmp_path):
    """A hydrogen atom is shot at the carbon atom that it is bonded to."""
    ethanol = molecule("CH3CH2OH")
    velocities = np.zeros((9, 3))
    velocities[6] = 10.0 * (ethanol.positions[0] - ethanol.positions[6])
    ethanol.set_velocities(velocities)
    write(tmp_path / "shot.xyz", ethanol)
    out = tmp_path / "run"
    arguments = [str(general), str(tmp_path / "shot.xyz"), "--out", str(out), "--engine", engine]
    arguments += ["--ensemble", "nve", "--velocities", "file", "--timestep", "0.2fs"]
    done = CliRunner().invoke(app, [*arguments, "--every", "1", "--time", "0.01ps", "--quiet"])
    assert done.exit_code == EXIT_FAILED, done.output
    assert "collapsed at t = " in done.output
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["outcome"] == "failed"
    assert re.match(r"the force on atom [06] \([CH]\) is", summary["failure"])
    assert "\n" not in summary["failure"]
    assert not summary["stability"]["stable"]
    rows = read_energies(out / "energies.csv")
    frames = read_dcd(out / "trajectory.dcd")[0]
    assert 2 <= len(frames) == len(rows["step"]) == summary["frames"]
    failed = read(out / "failed.extxyz")
    distances = [np.linalg.norm(r[0] - r[6]) for r in (*frames, failed.positions)]
    assert np.all(np.diff(distances) < 0.0)
    assert distances[-1] < 0.55
    assert (out / "plot.png").is_file()


def test_a_bond_that_breaks_is_found_at_its_time(general, tmp_path):
    """Ethanol so hot that it falls apart, with forces that are still those of molecules."""
    result = simulate_with(
        general,
        tmp_path,
        molecule("CH3CH2OH"),
        engine="ase",
        ensemble="nve",
        temperature=9000,
        timestep="0.25fs",
        time="1ps",
        stop_at_collapse=True,
    )
    assert result.outcome == "collapsed"
    rows = read_energies(result.folder.energies)
    change = np.maximum(-rows["shortest_bond_A"], rows["longest_bond_A"])
    assert (change[:-1] <= TOLERANCE).all()
    assert change[-1] > TOLERANCE
    stability = result.summary["stability"]
    assert stability["collapse_time_ps"] == rows["time_ps"][-1] < 1.0
    assert stability["largest_bond_change_A"] == pytest.approx(change[-1])


def test_relaxed_and_continued_in_another_ensemble(general, tmp_path):
    ethanol = molecule("CH3CH2OH")
    warm = simulate_with(
        general, tmp_path / "warm", ethanol, engine="ase", relax=True, friction="10/ps"
    )
    start = read_dcd(warm.folder.trajectory("dcd"))[0][0].astype(float)
    atoms = Atoms(ethanol.numbers, start, calculator=PotentialCalculator(general))
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.012
    free = simulate_with(
        general,
        tmp_path / "free",
        None,
        structure=str(warm.folder.final),
        ensemble="nve",
        velocities="file",
    )
    last, first = (read_energies(r.folder.energies) for r in (warm, free))
    assert first["potential_eV"][0] == pytest.approx(last["potential_eV"][-1], abs=1e-5)
    assert first["kinetic_eV"][0] == pytest.approx(last["kinetic_eV"][-1], abs=0.02)


def test_names_of_a_pdb_file_are_kept(float32_potential, tmp_path):
    (tmp_path / "w.pdb").write_text(
        "HETATM    1  OX  LIG A   7       0.000   0.000   0.000  1.00  0.00           O\n"
        "HETATM    2  HA  LIG A   7       0.960   0.000   0.000  1.00  0.00           H\n"
        "HETATM    3  HB  LIG A   7      -0.240   0.930   0.000  1.00  0.00           H\nEND\n"
    )
    arguments = [str(float32_potential.path), str(tmp_path / "w.pdb"), "--time", "0.002ps"]
    arguments += ["--every", "2", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "100%  0.00 of 0.002 ps" in done.output
    assert "3 frames" in done.output
    (residue,) = mdtraj.load(str(tmp_path / "run" / "topology.pdb")).topology.residues
    assert (residue.name, residue.resSeq) == ("LIG", 7)
    assert [atom.name for atom in residue.atoms] == ["OX", "HA", "HB"]


MISTAKES = {
    "unknown element": (["-s", "ne.xyz"], "atom 0 is Ne"),
    "overlapping atoms": (["-s", "overlap.xyz"], r"are 0.10 Å apart"),
    "no structure": (["-s", "nothing.xyz"], "no structure at"),
    "not a structure": (["-s", "notes.xyz"], "cannot be read as a structure"),
    "no potential": (["-p", "nothing.pt"], "no exported potential at"),
    "not a potential": (["-p", "notes.xyz"], "is not a TorchScript file"),
    "npt without a cell": (["--ensemble", "npt"], "has no cell; choose --ensemble nvt"),
    "no unit": (["--time", "10"], "--time: '10' has no unit; write it like 10ps"),
    "unknown platform": (["--platform", "abacus"], "this OpenMM has"),
    "platform of ASE": (["--platform", "reference", "--engine", "ase"], "auto, cpu or cuda"),
    "no velocities": (["--velocities", "file"], "--velocities file"),
    "no error estimate": (["--uncertainty"], "holds no error estimate"),
    "no barostat": (["--pressure", "1kbar"], "--pressure has no effect here"),
    "no thermostat": (["--friction", "2/ps", "--ensemble", "nve"], "it is for --ensemble nvt"),
    "nothing to continue": (["--resume"], "nothing to continue"),
    "contradiction": (["--resume", "--overwrite"], "exclude each other"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    mistake, float32_potential, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write("water.xyz", molecule("H2O"))
    write("ne.xyz", Atoms("NeH", [[0, 0, 0], [0, 0, 2]]))
    write("overlap.xyz", Atoms("OH", [[0, 0, 0], [0, 0, 0.1]]))
    Path("notes.xyz").write_text("to do\n", encoding="utf-8")
    options, message = MISTAKES[mistake]
    names = {"-p": str(float32_potential.path), "-s": "water.xyz"}
    if options[0] in names:
        names[options[0]] = options[1]
        options = []
    done = CliRunner().invoke(app, [names["-p"], names["-s"], "--out", "run", *options])
    assert done.exit_code == EXIT_MISTAKE, done.output
    assert done.output.startswith("error: ")
    assert message in done.output
    assert len(done.output.splitlines()) == 1
    assert not Path("run").exists()


def test_a_run_is_neither_replaced_nor_continued_by_mistake(
    float32_potential, float64_potential, tmp_path
):
    water, out = molecule("H2O"), tmp_path / "run"
    run = partial(simulate_with, engine="ase")  # starts in less time
    first = run(float32_potential.path, out, water, time="0.005ps")
    with pytest.raises(ConfigError, match="holds a simulation already"):
        run(float32_potential.path, out, water)
    with pytest.raises(ConfigError, match=r"friction = 1\.0 /ps, now 2\.0 /ps is asked for"):
        run(float32_potential.path, out, None, resume=True, friction=2.0)
    with pytest.raises(ConfigError, match="is not the potential that the run in"):
        run(float64_potential.path, out, None, resume=True)
    energies = first.folder.energies.read_bytes()
    first.folder.energies.write_bytes(energies[:-20])
    with pytest.raises(CheckpointError, match=r"energies\.csv has .* bytes"):
        run(float32_potential.path, out, None, resume=True)
    first.folder.energies.write_bytes(energies)
    again = run(float32_potential.path, out, None, resume=True)
    assert again.summary["frames"] == 9
    first.folder.checkpoint.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        run(float32_potential.path, out, None, resume=True)
    over = run(float32_potential.path, out, water, overwrite=True, time="0.005ps", seed=1)
    assert over.summary["frames"] == 3


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["summary.json", "topology.pdb", "trajectory.xtc", "settings.json"]
)
def test_the_files_of_something_else_are_left_alone(name, overwrite, float32_potential, tmp_path):
    """Such as a training run's summary, the user's own PDB file, an editor's settings."""
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"not the folder of a simulation, and its {name} would"):
        simulate_with(
            float32_potential.path, tmp_path, molecule("H2O"), engine="ase", overwrite=overwrite
        )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "{}"
    with pytest.raises(ConfigError, match="is a file: choose another --out"):
        simulate_with(float32_potential.path, tmp_path / name, molecule("H2O"), engine="ase")


def test_a_run_does_not_remove_its_own_input(float32_potential, tmp_path):
    out = tmp_path / "md"
    run = partial(simulate_with, engine="ase", time="0.005ps")
    first = run(float32_potential.path, out, molecule("H2O"))
    final = first.folder.final.read_bytes()
    (tmp_path / "link.extxyz").symlink_to(first.folder.final)
    arguments = ["--velocities", "file", "--out", str(out), "--overwrite", "--engine", "ase"]
    for structure in (first.folder.final, tmp_path / "link.extxyz"):
        done = CliRunner().invoke(
            app, [str(float32_potential.path), str(structure), *arguments, "--time", "0.005ps"]
        )
        assert done.exit_code == EXIT_MISTAKE, done.output
        assert f"{structure} belongs to the simulation that --overwrite would" in done.output
        assert first.folder.final.read_bytes() == final
        assert first.folder.checkpoint.is_file()
    # Other files in the folder may serve, and stay.
    potential, start = out / "potential.pt", out / "start.extxyz"
    potential.write_bytes(float32_potential.path.read_bytes())
    start.write_bytes(final)
    again = run(potential, out, None, structure=str(start), velocities="file", overwrite=True)
    assert again.outcome == "complete"
    assert start.read_bytes() == final
    # Nor a potential, should anyone call it so
    potential.rename(out / "failed.extxyz")
    with pytest.raises(ConfigError, match="belongs to the simulation"):
        run(out / "failed.extxyz", out, molecule("H2O"), overwrite=True)


def test_a_start_that_was_interrupted_can_be_repeated(float32_potential, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    run = partial(simulate_with, float32_potential.path, tmp_path / "run", molecule("H2O"))
    run(engine="ase", time="0.005ps")
    with monkeypatch.context() as patch:
        patch.setattr("calculators.simulation.start.write_pdb", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(engine="ase", time="0.005ps", overwrite=True)
    assert run(engine="ase", time="0.005ps", overwrite=True).outcome == "complete"


def test_a_writer_that_is_missing_does_not_cost_the_old_run(
    float32_potential, tmp_path, monkeypatch
):
    run = partial(simulate_with, float32_potential.path, tmp_path / "run", molecule("H2O"))
    first = run(engine="ase", time="0.005ps")
    before = contents(first)
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(EngineError, match=r"xtc files are written by OpenMM.*--format dcd"):
        run(engine="ase", time="0.005ps", format="xtc", overwrite=True)
    assert contents(first) == before


def test_an_engine_that_fails_is_no_collapse_of_the_molecule(
    float32_potential, tmp_path, monkeypatch
):
    run = partial(simulate_with, float32_potential.path, tmp_path / "run", engine="ase")

    def lost(self, steps):
        raise EngineError("OpenMM stopped: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ASEEngine, "advance", lost)
        with pytest.raises(EngineError, match="out of memory"):
            run(molecule("H2O"))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run(None, resume=True).outcome == "complete"


def test_one_process_at_a_time_in_a_folder(float32_potential, tmp_path, monkeypatch):
    run = partial(simulate_with, float32_potential.path, tmp_path / "run", engine="ase")
    folder = SimulationFolder(tmp_path / "run")

    def written_meanwhile(*_):
        with pytest.raises(ConfigError, match="another process is writing into"), alone_in(folder):
            pass

    with monkeypatch.context() as patch:
        patch.setattr("calculators.simulation.run.find_spec", written_meanwhile)
        run(molecule("H2O"), time="0.005ps", plot=True)
    assert not folder.plot.exists()  # It was asked whether there is something to plot with.
    with alone_in(folder):
        with pytest.raises(ConfigError, match="another process is writing into"):
            run(None, resume=True)
        with pytest.raises(ConfigError, match="another process is writing into"):
            run(molecule("H2O"), overwrite=True)
    assert run(None, resume=True).outcome == "complete"


def test_a_continued_run_keeps_paths_that_serve_from_anywhere(
    float32_potential, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    simulate_with(float32_potential.path, out, molecule("H2O"), engine="ase", time="0.005ps")
    monkeypatch.chdir(float32_potential.path.parent)
    name = Path(float32_potential.path.name)
    simulate_with(name, out, None, engine="ase", time="0.01ps", resume=True)
    stored = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert stored["settings"]["potential"] == str(float32_potential.path.resolve())
    assert stored["steps"] == 20


def test_a_checkpoint_of_another_platform_goes_on_with_other_random_numbers(
    float32_potential, tmp_path, caplog
):
    run = partial(simulate_with, float32_potential.path, tmp_path / "run", engine="openmm")
    run(molecule("H2O"), time="0.005ps")
    checkpoint = Checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    settings = make_settings({"potential": str(float32_potential.path), "every": 5})
    engine = make_engine(settings, checkpoint.atoms, load_exported(float32_potential.path))
    seed = engine.integrator.getRandomNumberSeed()
    engine.restore(checkpoint.state)
    assert "begin anew" not in caplog.text
    other = {**checkpoint.state.extra, "platform": np.array("CUDA of OpenMM 1.0")}
    engine.restore(replace(checkpoint.state, extra=other))
    assert "random numbers and the state of a thermostat begin anew" in caplog.text
    assert engine.integrator.getRandomNumberSeed() != seed
    engine.advance(2)
    assert engine.step == 12


def test_a_large_system_goes_in_pieces_by_itself(general, tmp_path, monkeypatch):
    pytest.importorskip("openmmtorch")
    whole = simulate_with(general, tmp_path / "whole", molecule("CH3CH2OH"), engine="openmm")
    monkeypatch.setitem(MANY_PAIRS, "cpu", 10)
    pieces = simulate_with(general, tmp_path / "pieces", molecule("CH3CH2OH"), engine="openmm")
    kinds = [
        json.loads(result.folder.settings.read_text(encoding="utf-8"))["engine"]["force"]
        for result in (whole, pieces)
    ]
    assert kinds == ["TorchForce", "PythonForce"]
    energies = [read_energies(result.folder.energies)["potential_eV"] for result in (whole, pieces)]
    np.testing.assert_allclose(*energies, atol=1e-4)


def test_a_compiled_potential_in_both_kinds_of_force(tmp_path, request):
    pytest.importorskip("openmmtorch")
    path = way_of(request, "compiled", "float32").potential.path
    results = [
        simulate_with(path, tmp_path / name, molecule("CH3CH2OH"), engine="openmm", **values)
        for name, values in (
            ("as it is", {}),
            ("compiled", {"compile": True}),
            ("torch", {"compile": True, "force": "torch"}),
        )
    ]
    kinds = [
        json.loads(result.folder.settings.read_text(encoding="utf-8"))["engine"]["force"]
        for result in results
    ]
    assert kinds == ["TorchForce", "PythonForce", "TorchForce"]
    energies = [read_energies(result.folder.energies)["potential_eV"] for result in results]
    np.testing.assert_allclose(energies, [energies[0]] * 3, atol=1e-4)


def test_the_snippets_of_the_documentation_run(float32_potential, tmp_path, monkeypatch, capsys):
    (tmp_path / "potential.pt").write_bytes(float32_potential.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    write("ethanol.xyz", molecule("CH3CH2OH"))
    text = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet.replace("10ps", "0.02ps"), {})
    assert re.search(r"(stable: in|collapsed at t =) 0\.", capsys.readouterr().out)
    assert len(mdtraj.load("run/trajectory.dcd", top="run/topology.pdb")) == 3


def test_every_option_is_in_the_table():
    text = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `--.*", text, flags=re.MULTILINE)
    options = [row.split("`")[1].removeprefix("--").replace("-", "_") for row in table]
    fields = SimulationSettings.model_fields
    assert set(options) == set(fields) - {"potential", "structure"} | {"out", "quiet"}
    for option in typer.main.get_command(app).params:
        if option.param_type_name == "option":
            assert f"`{option.opts[0]}`" in "\n".join(table), option.name
    speed = "three to four times as fast, larger systems two to three times"
    assert speed in table[options.index("compile")]
    assert speed.replace(", larger", ", of larger") in fields["compile"].description


@pytest.mark.slow
def test_the_stability_suite(general, tmp_path):
    root = Path(__file__).parents[2]
    common = ["--potential", str(general), "--data", str(root / "training" / "datasets" / "data")]
    rows = tmp_path / "rows.jsonl"
    for mode in (
        ["--time", "0.2ps", "--seeds", "0", "1", "--plot", str(tmp_path / "h.png")],
        ["--nve", "--time", "0.1ps", "--equilibrate", "0.1ps", "--reverse-steps", "50"],
    ):
        command = [sys.executable, str(root / "benchmarks" / "stability.py"), *common, *mode]
        subprocess.run([*command, "--out", str(rows)], check=True, cwd=root, capture_output=True)
    first, second, nve = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    assert first["stable_ps"] == second["stable_ps"] == 0.2
    assert first["stable"]
    assert first["h_mae"] != second["h_mae"]
    assert first["h_mae_halves_of_data"] < first["h_mae"] < 1.0
    assert (tmp_path / "h.png").is_file()
    assert nve["momentum_change_amu_A_per_ps"] < 1e-9
    spin = nve["angular_momentum_change_amu_A2_per_ps"] / nve["angular_momentum_amu_A2_per_ps"]
    assert spin < 1e-4
    assert max(nve["reversal_max_deviation_A"].values()) < 1e-9
    table = [sys.executable, str(root / "benchmarks" / "stability_table.py"), str(rows)]
    done = subprocess.run(table, check=True, capture_output=True, text=True)
    assert "| 2 of 2 |" in done.stdout
    assert done.stdout.count("ethanol") == 2
