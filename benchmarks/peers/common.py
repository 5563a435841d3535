"""What every peer shares: rMD17 frames, the split, errors, and the JSON file that a run leaves.

The split follows this project's own training, so that the rows of a table compare the same frames: training
and validation frames come from one shuffle of the 1000 published training frames. The peers live in
environments without this project, hence nothing of it is imported here.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from numpy.typing import NDArray

Array = NDArray[np.float64]
KCAL_PER_MOL = units.kcal / units.mol
"""In eV."""
MEV = 1e-3
WARMUP, REPEATS = 10, 30


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one molecule: positions (f, n, 3) in Å, energies (f,) in eV, forces (f, n, 3) in eV/Å."""

    positions: Array
    energies: Array
    forces: Array

    def __len__(self) -> int:
        return len(self.energies)

    def take(self, indices: NDArray[np.int64]) -> "Frames":
        """Some of the frames."""
        return Frames(self.positions[indices], self.energies[indices], self.forces[indices])


@dataclass(frozen=True, eq=False)
class Data:
    """Atomic numbers (n,) and the three parts of a split."""

    numbers: NDArray[np.int64]
    train: Frames
    valid: Frames
    test: Frames


def read_options(description: str) -> argparse.Namespace:
    """The command line, the same for every peer; sets the number of torch's threads."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of rmd17_*.npz")
    parser.add_argument("--molecule", default="ethanol")
    parser.add_argument("--train", type=int, default=950, help="training frames")
    parser.add_argument("--valid", type=int, default=50, help="validation frames")
    parser.add_argument("--budget-minutes", type=float, default=15.0, help="with validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file with the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def read_data(options: argparse.Namespace) -> Data:
    """The published split of one molecule, training and validation frames shuffled apart."""
    numbers, published = _read(options.data / f"rmd17_{options.molecule}_train_01.npz")
    _, test = _read(options.data / f"rmd17_{options.molecule}_test_01.npz")
    if options.train + options.valid > len(published):
        raise SystemExit(f"only {len(published)} frames for training and validation")
    order = np.random.default_rng(options.seed).permutation(len(published))
    train = published.take(order[::-1][: options.train])
    return Data(numbers, train, published.take(order[: options.valid]), test)


def _read(path: Path) -> tuple[NDArray[np.int64], Frames]:
    with np.load(path) as file:
        frames = Frames(
            file["coords"].astype(np.float64),
            file["energies"].astype(np.float64) * KCAL_PER_MOL,
            file["forces"].astype(np.float64) * KCAL_PER_MOL,
        )
        return file["nuclear_charges"].astype(np.int64), frames


def errors(energies: Array, forces: Array, labels: Frames) -> dict[str, float]:
    """Errors of total energies (f,) in eV and forces (f, n, 3) in eV/Å, in meV and meV/Å."""
    energy_error = (energies - labels.energies) / MEV
    forces_error = (forces - labels.forces) / MEV
    return {
        "energy_mae_meV": float(np.abs(energy_error).mean()),
        "energy_rmse_meV": float(np.sqrt(np.square(energy_error).mean())),
        "forces_mae_meV_per_A": float(np.abs(forces_error).mean()),
        "forces_rmse_meV_per_A": float(np.sqrt(np.square(forces_error).mean())),
    }


def median_milliseconds(evaluate: Callable[[int], Any]) -> float:
    """Median time of ``evaluate(k)``, k = 0, 1, ..., after a warm-up."""
    times = []
    for k in range(WARMUP + REPEATS):
        start = time.perf_counter()
        evaluate(k)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[WARMUP:]))


def write_result(
    options: argparse.Namespace, peer: str, package: str, result: dict[str, Any]
) -> None:
    """Write the JSON file, and print it."""
    record = {
        "peer": peer,
        "package": package,
        "version": version(package),
        "molecule": options.molecule,
        "train": options.train,
        "valid": options.valid,
        "budget_minutes": options.budget_minutes,
        **result,
        "torch": torch.__version__,
        "threads": options.threads,
        "seed": options.seed,
        "processor": _processor(),
    }
    text = json.dumps(record, indent=2)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _processor() -> str:
    """The processor's name; Python itself knows only its architecture on Linux."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
