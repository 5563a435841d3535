"""Errors of several runs on the same test frames, and of the mean of their predictions.

    for k in 0 1 2 3; do train-potential rmd17-aspirin split_seed=0 seed=$k name=aspirin-$k; done
    python benchmarks/committee.py runs/aspirin-0 runs/aspirin-1 runs/aspirin-2 runs/aspirin-3

The mean is what ``calculators.CommitteeCalculator`` gives. Runs in another order have other means of the
first few, so look at the last line.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.evaluate import Predictions
from training.run_folder import RunFolder


def mean(members: list[Predictions]) -> Predictions:
    """Predictions of the committee."""
    return replace(
        members[0],
        predicted_energy=np.mean([m.predicted_energy for m in members], axis=0),
        predicted_forces=np.mean([m.predicted_forces for m in members], axis=0),
    )


def line(name: str, predictions: Predictions) -> str:
    """A line of the table."""
    errors = predictions.errors()
    return f"{name:<32} {errors['forces_mae_meV_per_A']:10.2f} {errors['energy_mae_meV']:10.2f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of train-potential")
    folders = parser.parse_args().runs
    members = [Predictions.load(RunFolder(folder).predictions) for folder in folders]
    for folder, member in zip(folders[1:], members[1:], strict=True):
        if not np.array_equal(member.forces, members[0].forces):
            raise SystemExit(f"{folder} was tested on other frames than {folders[0]}")
    print(f"{'MAE':<32} {'meV/Å':>10} {'meV':>10}")
    for folder, member in zip(folders, members, strict=True):
        print(line(folder.name, member))
    for number in range(2, len(members) + 1):
        print(line(f"mean of the first {number}", mean(members[:number])))


if __name__ == "__main__":
    main()
