"""How much of the slow motion of alanine dipeptide features hold that know nothing of dihedrals.

    python benchmarks/slow_coordinates.py --data FOLDER --work features --out rows.jsonl
    python benchmarks/slow_coordinates.py --work features --table rows.jsonl

FOLDER holds ``ala2.pdb`` and eight trajectories, ``trajectory-<k>.dcd``, of 10 ns with a frame each ps
(figshare 1026131). Two, then three slow coordinates are found on six of the trajectories and scored on
the other two (VAMP-2 at a lag of 10 ps; the constant function counts 1), four times over. Beside features
of backbones stand sines and cosines of φ and ψ, distances and aligned coordinates of the heavy atoms.

``linear`` is TICA on principal components of the scalars; anything else is the name of a mixer that is
trained as a VAMPNet.
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import mdtraj
import numpy as np
import torch

from featurizers import TrajectoryFeatures, TrajectoryFeaturizer
from featurizers.analysis import AnalysisSettings, analyze
from featurizers.analysis.frames import Frames, evaluate, join
from featurizers.analysis.lagged import cross_validation, whole_trajectories
from featurizers.analysis.learning import TrainingOptions
from featurizers.analysis.linear import fit_linear
from featurizers.analysis.scores import held_out_scores
from featurizers.analysis.slow import slow_coordinates
from featurizers.analysis.vampnet import train_vampnet
from featurizers.backbone import Backbone
from featurizers.featurize import featurize
from featurizers.mixers import build_network
from featurizers.pretrained import WEIGHTS
from featurizers.store import FeatureSet, read_features
from forcefield import build_potential
from forcefield.checkpoint import read_header

REFERENCES = ("dihedrals", "distances", "aligned")
FOLDS = 4


def read_trajectories(folder: Path, stride: int) -> list[mdtraj.Trajectory]:
    """The heavy atoms of the eight trajectories."""
    top = mdtraj.load(str(folder / "ala2.pdb")).topology
    heavy = [a.index for a in top.atoms if a.element.atomic_number > 1]
    return [
        mdtraj.load(str(path), top=top, atom_indices=heavy, stride=stride)
        for path in sorted(folder.glob("trajectory-*.dcd"))
    ]


def reference(
    name: str, trajectory: mdtraj.Trajectory, start: mdtraj.Trajectory
) -> TrajectoryFeatures:
    """Coordinates that people take, as the scalars of one token."""
    if name == "dihedrals":
        angles = np.hstack([mdtraj.compute_phi(trajectory)[1], mdtraj.compute_psi(trajectory)[1]])
        values = np.hstack([np.sin(angles), np.cos(angles)])
    elif name == "distances":
        pairs = list(combinations(range(trajectory.n_atoms), 2))
        values = mdtraj.compute_distances(trajectory, pairs)
    else:
        values = trajectory[:].superpose(start).xyz.reshape(len(trajectory), -1)
    frames = len(values)
    return TrajectoryFeatures(
        values[:, None].astype(np.float32),
        np.zeros((frames, 1, 3, 0), np.float32),
        np.zeros((frames, 1, 3), np.float32),
        (name,),
    )


def backbone_file(name: str, work: Path) -> Path:
    """Weights by name: general, denoising, untrained (of the same architecture), or a file."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    if name != "untrained":
        return Path(name)
    path = work / "untrained.safetensors"
    if not path.is_file():
        header = read_header(WEIGHTS["general"])
        torch.manual_seed(0)
        potential = build_potential(header["architecture"], header["species"])
        Backbone.of(potential, "untrained").save(path)
    return path


def load(name: str, arguments: argparse.Namespace) -> Frames:
    """Features of all trajectories."""
    if name in REFERENCES:
        trajectories = read_trajectories(arguments.data, arguments.stride)
        return join([reference(name, t, trajectories[0][0]) for t in trajectories])
    path = backbone_file(name, arguments.work)
    file = arguments.work / f"{Path(name).stem}.h5"
    featurizer = TrajectoryFeaturizer.from_file(path, compile=not file.exists())
    if not file.exists():
        sources = sorted(arguments.data.glob("trajectory-*.dcd"))
        done = featurize(
            featurizer,
            sources,
            file,
            arguments.data / "ala2.pdb",
            frame_time=1.0,
            tokens="atom",
            hydrogens=False,
        )
        print(f"{name}: {done.frames_per_second:.0f} frames/s", flush=True)
    return join([part[:: arguments.stride] for part in read_features(file).trajectories])


def run(frames: Frames, method: str, dimension: int, arguments: argparse.Namespace) -> dict:
    """Cross-validated scores, and time scales of all folds, ps."""
    lag = round(arguments.lag / arguments.stride)
    splits = cross_validation(whole_trajectories(frames.bounds), lag, FOLDS)
    start = time.process_time()
    scores, timescales = [], []
    for fold, split in enumerate(splits):
        if method == "linear":
            model = fit_linear(frames, split.train, lag, dimension)
        else:
            torch.manual_seed(fold)
            network = build_network(
                method,
                frames.scalars.shape[2],
                frames.vectors.shape[3],
                frames.scalars.shape[1],
                outputs=dimension,
                width=arguments.width,
            )
            options = TrainingOptions(epochs=arguments.epochs, seed=fold)
            train_vampnet(network, frames, split.train, lag, dimension, options)
            outputs = evaluate(network, frames)
            model = slow_coordinates(network, outputs, split.train, lag, dimension)
        coordinates = evaluate(model, frames)
        scores.append(held_out_scores(coordinates, split, lag).vamp2)
        timescales.append(float(model.timescales[0]) * arguments.stride)
    return {
        "vamp2": float(np.mean(scores)),
        "vamp2_std": float(np.std(scores)),
        "vamp2_folds": scores,
        "timescale_ps": float(np.mean(timescales)),
        "timescale_ps_std": float(np.std(timescales)),
        "cpu_s": time.process_time() - start,
    }


def markov(name: str, method: str, arguments: argparse.Namespace) -> dict:
    """The slowest implied timescale of the Markov model of an analysis, with its error, ps."""
    frames = load(name, arguments)
    arrays = [frames.cut(x.numpy()) for x in (frames.scalars, frames.vectors, frames.positions)]
    parts = [TrajectoryFeatures(*values, frames.labels) for values in zip(*arrays, strict=True)]
    result = analyze(
        FeatureSet(parts, {"frame_time_ps": float(arguments.stride), "labels": frames.labels}),
        AnalysisSettings(f"{arguments.lag}ps", method=method, epochs=arguments.epochs),
        arguments.work / f"{Path(name).stem}-{method}",
        name=name,
        overwrite=True,
    )
    slowest = result.summary["slowest_timescale"]
    return {
        "features": Path(name).stem,
        "method": method,
        "markov_ps": slowest["ps"],
        "markov_error_ps": slowest["standard_error_ps"],
        "states": result.summary["states"]["populations"],
    }


def table(rows: list[dict]) -> str:
    """Scores by features and method, Markdown."""
    markov = {(r["features"], r["method"]): r for r in rows if "markov_ps" in r}
    rows = [r for r in rows if "vamp2" in r]
    reference = {
        r["dimension"]: r["vamp2"]
        for r in rows
        if r["features"] == "dihedrals" and r["method"] == "linear"
    }
    lines = [
        "| features | method | VAMP-2, 2 coordinates | VAMP-2, 3 coordinates | slowest, TICA, ps "
        "| slowest, Markov model, ps |",
        "|---|---|---|---|---|---|",
    ]
    for features, method in dict.fromkeys((r["features"], r["method"]) for r in rows):
        cells, slowest = [], ""
        for dimension in (2, 3):
            found = [
                r
                for r in rows
                if (r["features"], r["method"], r["dimension"]) == (features, method, dimension)
            ]
            if not found:
                cells.append("")
                continue
            row = found[-1]
            share = (
                f" ({100 * row['vamp2'] / reference[dimension]:.2f} %)"
                if dimension in reference
                else ""
            )
            cells.append(f"{row['vamp2']:.4f} ± {row['vamp2_std']:.4f}{share}")
            slowest = f"{row['timescale_ps']:.0f} ± {row['timescale_ps_std']:.0f}"
        model = markov.get((features, method))
        time = f"{model['markov_ps']:.0f} ± {model['markov_error_ps']:.0f}" if model else ""
        lines.append(f"| {features} | {method} | {cells[0]} | {cells[1]} | {slowest} | {time} |")
    return "\n".join(lines)


def write(row: dict, out: Path | None) -> None:
    """Print a row, and append it to a file."""
    print(json.dumps(row), flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Print, and append to a file, a row for each kind of features, method and number of coordinates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the trajectories")
    parser.add_argument("--work", type=Path, default=Path("features"), help="folder for features")
    parser.add_argument("--features", nargs="+", default=[*REFERENCES, *WEIGHTS, "untrained"])
    parser.add_argument("--methods", nargs="+", default=["linear"])
    parser.add_argument("--dimensions", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--lag", type=int, default=10, help="ps")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markov", action="store_true", help="timescales of Markov models instead")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print a table of these rows and leave")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]))
        return
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.markov:
        for name in arguments.features:
            for method in arguments.methods:
                write(markov(name, method, arguments), arguments.out)
        return
    for name in arguments.features:
        frames = load(name, arguments)
        for method in arguments.methods:
            for dimension in arguments.dimensions:
                row = {"features": Path(name).stem, "method": method, "dimension": dimension}
                row |= {"lag_ps": arguments.lag, "stride": arguments.stride}
                row |= run(frames, method, dimension, arguments)
                write(row, arguments.out)


if __name__ == "__main__":
    main()
