"""``analyze-trajectory`` as a user calls it: features of alanine dipeptide to states and a report."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from featurizers import TrajectoryFeatures, TrajectoryFeaturizer
from featurizers.analysis import AnalysisSettings, analyze
from featurizers.analyze_cli import EXIT_MISTAKE, app
from featurizers.featurize import featurize
from featurizers.store import read_features, write_features
from forcefield.errors import ConfigError

mdtraj = pytest.importorskip("mdtraj")
pytest.importorskip("deeptime")

ROOT = Path(__file__).resolve().parents[2]
PDB = ROOT / "examples" / "alanine_dipeptide.pdb"
TRAJECTORIES, FRAMES = 3, 240
QUICK = ["--coordinates", "1", "--folds", "3", "--clusters", "20", "--threads", "1", "--quiet"]


def psi_walk(seed: int) -> "mdtraj.Trajectory":
    """Alanine dipeptide whose ψ stays around one of two values, and rarely goes to the other."""
    random = np.random.default_rng(seed)
    start = mdtraj.load(str(PDB))
    atoms = [a.index for a in start.topology.atoms]
    name = {f"{a.residue.name}-{a.name}": a.index for a in start.topology.atoms}
    axis = name["ALA-CA"], name["ALA-C"]
    # What turns about the bond from CA to C: the carbonyl oxygen and the last residue.
    turning = [name["ALA-O"], *(i for i in atoms if start.topology.atom(i).residue.name == "NME")]
    states = (np.cumsum(random.random(FRAMES) < 0.06) + seed) % 2
    angles = np.radians(np.where(states, 0.0, 150.0) + random.normal(0, 12, FRAMES))
    xyz = start.xyz[:1].repeat(FRAMES, axis=0).astype(np.float64)
    now = mdtraj.compute_psi(start)[1][0, 0]
    for frame, angle in zip(xyz, angles, strict=True):
        unit = frame[axis[1]] - frame[axis[0]]
        unit /= np.linalg.norm(unit)
        turn = angle - now
        arms = frame[turning] - frame[axis[1]]
        frame[turning] = frame[axis[1]] + (
            arms * np.cos(turn)
            + np.cross(unit, arms) * np.sin(turn)
            + np.outer(arms @ unit, unit) * (1 - np.cos(turn))
        )
    xyz += random.normal(0, 0.002, xyz.shape)
    return mdtraj.Trajectory(xyz, start.topology, time=2.0 * np.arange(FRAMES))


@pytest.fixture(scope="module")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of trajectories on disk, by the shipped weights."""
    folder = tmp_path_factory.mktemp("peptide")
    files = []
    for seed in range(TRAJECTORIES):
        files.append(folder / f"run-{seed}.xtc")
        psi_walk(seed).save(str(files[-1]))
    featurize(
        TrajectoryFeaturizer.pretrained(),
        files,
        folder / "features.h5",
        PDB,
        tokens="atom",
        hydrogens=False,
    )
    return folder / "features.h5"


def small(frames: int = 300, **description: object) -> tuple[list[TrajectoryFeatures], dict]:
    """Features without trajectories: two states in noise."""
    random = np.random.default_rng(0)
    parts = []
    for k in range(2):
        states = (np.cumsum(random.random(frames) < 0.05) + k) % 2
        scalars = states[:, None, None] + 0.2 * random.normal(size=(frames, 2, 3))
        arrays = (scalars, np.zeros((frames, 2, 3, 0)), np.zeros((frames, 2, 3)))
        parts.append(TrajectoryFeatures(*(a.astype(np.float32) for a in arrays), ("A", "B")))
    return parts, description


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_report_from_trajectories(peptide, tmp_path):
    """The whole way, as a process of its own."""
    out = tmp_path / "report"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "featurizers.analyze_cli", peptide, "--lag", "2ps"),
            *("--out", out, *QUICK[:-1], "--epochs", "4", "--states", "2"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fold 1/3" in done.stdout
    assert re.search(r"VAMP-2: 1\.\d+ ± 0\.\d+", done.stdout)

    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == TRAJECTORIES * FRAMES
    assert (summary["lag_frames"], summary["lag_ps"]) == (1, 2.0)
    assert 1.5 < summary["score"]["vamp2_mean"] < 2.0
    assert len(summary["score"]["vamp2_folds"]) == 3
    # A switch with probability 0.06 in each frame of 2 ps: -2 ps / ln(1 - 2 · 0.06).
    assert summary["slowest_timescale"]["ps"] == pytest.approx(15.6, rel=0.5)
    assert summary["states"]["populations"] == pytest.approx([0.5, 0.5], abs=0.2)
    assert sum(summary["states"]["populations"]) == pytest.approx(1.0)

    dihedrals = np.concatenate([mdtraj.compute_psi(psi_walk(k))[1] for k in range(TRAJECTORIES)])
    with np.load(out / "coordinates.npz") as file:
        coordinates = [file[f"coordinates_{k}"] for k in range(TRAJECTORIES)]
        states = np.concatenate([file[f"states_{k}"] for k in range(TRAJECTORIES)])
    assert [part.shape for part in coordinates] == [(FRAMES, 1)] * TRAJECTORIES
    extended = np.abs(dihedrals[:, 0]) > np.radians(75)
    agreement = (states == extended).mean()
    assert max(agreement, 1 - agreement) > 0.98

    for state in range(2):
        structures = mdtraj.load(str(out / "structures" / f"state-{state + 1}.pdb"))
        assert structures.n_frames == 5
        assert structures.topology.n_atoms == mdtraj.load(str(PDB)).n_atoms
        psi = mdtraj.compute_psi(structures)[1]
        shown = np.abs(psi[:, 0]) > np.radians(75)
        assert (shown == (extended[states == state].mean() > 0.5)).all()

    page = (out / "report.html").read_text(encoding="utf-8")
    for title in (
        "Slow coordinates",
        "Free energy",
        "Backbone dihedrals",
        "Implied timescales",
        "Mean first passage times",
        "Chapman-Kolmogorov test",
        "Importance of tokens",
        "Scores on held-out frames",
    ):
        assert title in page
    assert page.count("data:image/png;base64") == 7
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "structures/state-2.pdb" in page
    # ψ (N, CA, C and the next N) has moved, φ has not: what lies beyond its first atom knows little.
    losses = summary["importance_percent"]
    around_psi = ("ALA2-N", "ALA2-CA", "ALA2-C", "ALA2-O", "NME3-N", "NME3-C")
    assert max(losses, key=losses.get) in around_psi
    beyond = [loss for token, loss in losses.items() if token.startswith("ACE1")]
    assert max(beyond) < 0.5 * max(losses.values())


def test_spib_finds_the_same_states(peptide, tmp_path):
    code, output, errors = call(
        peptide, "--lag", "1", "--out", tmp_path, "--method", "spib", "--epochs", "12", *QUICK
    )
    assert code == 0, errors
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["states"]["populations"]) == 2
    assert summary["slowest_timescale"]["ps"] == pytest.approx(15.6, rel=0.5)
    assert f"report: {tmp_path / 'report.html'}" in output


def test_reports_are_repeatable_and_know_no_structures_without_trajectories(tmp_path):
    parts, _ = small()
    write_features(tmp_path / "f.h5", parts, sources=["gone.dcd", "lost.dcd"])
    arguments = (tmp_path / "f.h5", "--lag", "2", "--method", "vampnet", "--epochs", "2", *QUICK)
    summaries = []
    for name in ("one", "two"):
        code, output, errors = call(*arguments, "--out", tmp_path / name)
        assert code == 0, errors
        assert "note: No structures of the metastable states: gone.dcd is not there" in output
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["structures"] == []
        assert summary["lag_ps"] is None
        summaries.append({key: value for key, value in summary.items() if key != "seconds"})
        assert "No structures" in (tmp_path / name / "report.html").read_text(encoding="utf-8")
    assert summaries[0] == summaries[1]
    assert " frames, the slowest" in output


def test_a_folder_is_replaced_only_when_told(tmp_path):
    parts, _ = small()
    write_features(tmp_path / "f.npz", parts)
    out = tmp_path / "out"
    (out / "structures").mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    (out / "structures" / "state-7.pdb").write_text("old")
    arguments = (tmp_path / "f.npz", "--lag", "2", "--out", out, "--method", "linear", *QUICK)
    code, _, errors = call(*arguments)
    assert code == EXIT_MISTAKE
    assert "--overwrite" in errors
    assert not (out / "report.html").exists()
    code, _, errors = call(*arguments, "--force")
    assert code == 0, errors
    assert (out / "report.html").is_file()
    assert (out / "mine.txt").read_text() == "keep"
    assert not (out / "structures" / "state-7.pdb").exists()


def test_from_python_with_features_in_memory(tmp_path):
    parts, _ = small()
    write_features(tmp_path / "f.npz", parts, frame_time_ps=5.0)
    features = read_features(tmp_path / "f.npz")
    settings = AnalysisSettings("10ps", coordinates=2, method="linear", folds=2, clusters=30)
    result = analyze(features, settings, tmp_path / "out")
    assert result.analysis.lag == 2
    assert result.analysis.coordinates.shape == (600, 2)
    assert (np.diff(result.analysis.coordinate_timescales) < 0).all() or np.isnan(
        result.analysis.coordinate_timescales[1]
    )
    with pytest.raises(ConfigError, match="unknown device"):
        analyze(features, replace(settings, device="tpu"), tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"noise": True}, ["--lag", "2", "--method", "spib", "--epochs", "8"], "one state alone"),
        ({}, ["--lag", "1000"], "longer than the trajectories"),
        ({}, ["--lag", "280"], "choose a shorter lag"),
        (
            {},
            ["--lag", "40", "--folds", "4"],
            "each training divides the frames that its fold leaves",
        ),
        ({}, ["--lag", "10ps"], "do not say the time between their frames"),
        ({}, ["--lag", "soon"], "neither a time"),
        ({}, ["--lag", "2", "--mixer", "blender"], "unknown mixer 'blender'; known are mlp"),
        ({}, ["--lag", "2", "--method", "pca"], "unknown method 'pca'"),
        ({}, ["--lag", "2", "--states", "1"], "states starts at 2"),
        ({}, ["--lag", "2", "--threads", "0"], "threads starts at 1"),
        ({}, ["--lag", "2", "--device", "tpu"], "unknown device 'tpu'"),
        ({"frames": 12}, ["--lag", "2"], "at least 20 are needed"),
        ({"constant": True}, ["--lag", "2", "--method", "linear"], "the same in all frames"),
        ({"constant": True}, ["--lag", "2", "--epochs", "1"], "the same in all frames"),
        ({"nan": True}, ["--lag", "2"], "trajectory 1, frame 7"),
        ({"missing": True}, ["--lag", "2"], "there are no features at"),
    ],
)
def test_mistakes_are_told_in_a_sentence(change, arguments, message, tmp_path):
    parts, _ = small(change.get("frames", 300))
    if change.get("nan"):
        parts[1].scalars[7, 0, 0] = np.nan
    if change.get("constant"):
        for part in parts:
            part.scalars[:] = 1.0
    if change.get("noise"):
        for part in parts:
            part.scalars[:] = np.random.default_rng(1).normal(size=part.scalars.shape)
    file = tmp_path / "f.npz"
    if not change.get("missing"):
        write_features(file, parts)
    code, _, errors = call(file, "--out", tmp_path / "out", *arguments, "--quiet")
    assert code == EXIT_MISTAKE
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
