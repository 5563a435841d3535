"""Stability of simulations: how long molecules stay whole, what is conserved, how dense water is.

    python benchmarks/stability.py --potential potential.pt --molecule aspirin --data DIR \
        --time 300ps --temperature 500 --seeds 0 1 2 3 4 --out rows.jsonl
    python benchmarks/stability.py --nve --potential potential.pt --molecule ethanol --data DIR \
        --time 100ps --temperature 300 --out rows.jsonl
    python benchmarks/stability.py --water --potential water.pt --data DIR --time 50ps --out rows.jsonl

The first, after X. Fu et al., "Forces are not Enough", Transactions on Machine Learning Research (2023):
each seed starts from a frame of the data set; a run has collapsed when a bond differs by more than 0.5 Å
from its mean over the data set, and ends there; distances are compared with those of the data set's
frames. DIR holds rmd17_<molecule>_train_01.npz and _test_01.npz, or is one npz file. The second
thermalises, then runs at constant energy; DIR of the third (``stability_water.py``) is a periodic data
set. One JSON line for each run; ``stability_table.py`` makes tables of them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from stability_nve import nve_row
from stability_water import water_rows

from calculators.simulation import SimulationResult, make_settings, simulate
from calculators.simulation.quantities import parse_time
from calculators.simulation.stability import (
    DISTANCE_EDGES,
    Bonds,
    distance_distribution,
    distribution_error,
    mean_bonds,
)
from calculators.simulation.trajectory import read_dcd
from forcefield.axes import LIGHT
from training.datasets.md17 import read_npz


def reference_frames(data: Path, molecule: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (n,) and positions (f, n, 3), Å, of a molecule's data set."""
    paths = [data] if data.is_file() else sorted(data.glob(f"rmd17_{molecule}_*_01.npz"))
    if not paths:
        raise SystemExit(f"no rmd17_{molecule}_*_01.npz in {data}")
    frames = [frame for path in paths for frame in read_npz(path).frames]
    return frames[0].atomic_numbers, np.array([frame.positions for frame in frames])


def settings_of(arguments: argparse.Namespace, seed: int, **more: Any) -> dict[str, Any]:
    """Settings that all modes share, by name."""
    names = (
        *("potential", "engine", "platform", "force", "dtype", "compile", "threads"),
        *("temperature", "timestep", "thermostat", "friction", "every"),
    )
    values = {name: getattr(arguments, name) for name in names}
    values |= {"time": arguments.time, "seed": seed, "checkpoint": "5min", **more}
    return {name: value for name, value in values.items() if value is not None}


def facts(arguments: argparse.Namespace, result: SimulationResult) -> dict[str, Any]:
    """What every row says of where it comes from."""
    run = json.loads(result.folder.settings.read_text(encoding="utf-8"))
    summary = result.summary
    return {
        "label": arguments.label or Path(arguments.potential).stem,
        "engine": run["engine"]["engine"],
        "integrator": run["engine"]["integrator"],
        "platform": run["engine"]["platform"],
        "dtype": arguments.dtype or run["potential"]["header"]["dtype"],
        "timestep_fs": 1000.0 * parse_time(arguments.timestep),
        "temperature_K": float(arguments.temperature),
        "outcome": summary["outcome"],
        "time_ps": summary["time_ps"],
        "ns_per_day": summary["speed"]["ns_per_day"],
        "ms_per_step": summary["speed"]["ms_per_step"],
        "mean_temperature_K": summary["temperature"]["mean_K"],
        "processor": run["machine"]["processor"],
        "threads": run["machine"]["threads"],
        "versions": run["versions"],
    }


def molecule_rows(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """A run for each seed at constant temperature, from frames of the data set."""
    numbers, frames = reference_frames(arguments.data, arguments.molecule)
    bonds = mean_bonds(numbers, frames)
    reference = distance_distribution(frames)
    halves = distribution_error(
        distance_distribution(frames[::2]), distance_distribution(frames[1::2]), DISTANCE_EDGES
    )
    averages = []
    for seed in arguments.seeds:
        chosen = int(np.random.default_rng(seed).integers(len(frames)))
        settings = make_settings(
            settings_of(arguments, seed, ensemble="nvt", stop_at_collapse=True)
        )
        result = simulate(
            settings,
            scratch / f"{arguments.molecule}-seed-{seed}",
            structure=Atoms(numbers, frames[chosen]),
            bonds=bonds,
            overwrite=True,
            show_progress=arguments.verbose,
            plot=False,
        )
        stability, drift = result.summary["stability"], result.summary["drift"]
        collapse = stability["collapse_time_ps"]
        average = average_distances(result, collapse)
        averages.append(average)
        yield {
            "kind": "stability",
            "molecule": arguments.molecule,
            "seed": seed,
            "thermostat": arguments.thermostat,
            "friction": arguments.friction,
            "asked_ps": settings.steps * settings.timestep,
            "stable_ps": result.summary["time_ps"] if collapse is None else collapse,
            "stable": stability["stable"],
            "verdict": stability["verdict"],
            "largest_bond_change_A": stability["largest_bond_change_A"],
            "h_mae": distribution_error(average, reference, DISTANCE_EDGES),
            "h_mae_halves_of_data": halves,
            "conserved_drift_meV_per_atom_per_ps": drift and drift["meV_per_atom_per_ps"],
            **facts(arguments, result),
        }
    if arguments.plot:
        plot_distances(arguments, numbers, reference, averages, bonds)


def average_distances(result: SimulationResult, collapse: float | None) -> np.ndarray:
    """h(r) of a run's frames before a collapse."""
    positions, _ = read_dcd(result.folder.trajectory("dcd"))
    run = np.loadtxt(result.folder.energies, delimiter=",", skiprows=1, usecols=1, ndmin=1)
    whole = slice(None) if collapse is None else run < collapse
    return distance_distribution(positions[whole].astype(np.float64))


def plot_distances(
    arguments: argparse.Namespace,
    numbers: np.ndarray,
    reference: np.ndarray,
    averages: list[np.ndarray],
    bonds: Bonds,
) -> None:
    """h(r) of the data set and of every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.stairs(reference, DISTANCE_EDGES, fill=True, color=LIGHT, label="data set")
    for seed, average in zip(arguments.seeds, averages, strict=True):
        axes.stairs(average, DISTANCE_EDGES, linewidth=0.8, label=f"seed {seed}")
    filled = np.flatnonzero(reference)
    axes.set_xlim(DISTANCE_EDGES[filled[0]] - 0.3, DISTANCE_EDGES[filled[-1]] + 0.5)
    axes.set_xlabel("distance of two atoms (Å)")
    axes.set_ylabel("h(r) (1/Å)")
    name = f"{arguments.molecule}, {len(numbers)} atoms, {len(bonds.pairs)} bonds"
    axes.set_title(f"{name}, {arguments.temperature} K", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(arguments.plot, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--potential", required=True, help="exported potential")
    add("--molecule", default="ethanol", help="name in the files of the data set")
    add("--data", type=Path, required=True, help="folder of the data set, or an npz file")
    add("--nve", action="store_true", help="constant energy: drifts, and reversing the time")
    add("--water", action="store_true", help="a periodic box: density and g(r)")
    add("--ensembles", nargs="+", default=["nvt", "npt"], help="of --water")
    add("--time", default="300ps", help="length of each run")
    add("--equilibrate", default="5ps", help="thermostat before --nve")
    add("--reverse-steps", type=int, default=1000, help="of --nve: there, and back")
    add("--temperature", default="500", help="K")
    add("--pressure", default="1bar", help="of --water")
    add("--timestep", default="0.5fs")
    add("--thermostat", default="langevin", choices=("langevin", "nose-hoover"))
    add("--friction", default="1/ps")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--every", type=int, default=20, help="steps between frames")
    add("--engine", default="openmm", choices=("openmm", "ase"))
    add("--platform", default="auto")
    add("--force", default="auto", choices=("auto", "torch", "python"))
    add("--dtype", choices=("float32", "float64"))
    add("--compile", action="store_true", help="compile the potential for this processor")
    add("--threads", type=int)
    add("--label", help="name of the rows in tables; the potential's if none is given")
    add("--folder", type=Path, help="keep the runs here")
    add("--plot", type=Path, help="PNG file of h(r), of the energies (--nve), of g(r) (--water)")
    add("--out", type=Path, help="file that the rows are appended to")
    add("--verbose", action="store_true", help="show the progress of the runs")
    return parser.parse_args()


def main() -> None:
    """Print, and append to a file, one row for each run."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.folder or Path(temporary)
        if arguments.water:
            rows = water_rows(arguments, settings_of, facts, scratch)
        elif arguments.nve:
            numbers, frames = reference_frames(arguments.data, arguments.molecule)
            start = Atoms(numbers, frames[0])
            rows = (
                nve_row(arguments, start, seed, settings_of, facts, scratch)
                for seed in arguments.seeds
            )
        else:
            rows = molecule_rows(arguments, scratch)
        for row in rows:
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
