"""Train on a molecule of rMD17 for a given time and test it: one JSON line for each seed.

    python benchmarks/rmd17.py --molecule aspirin --budget-minutes 15
    python benchmarks/rmd17.py --molecule ethanol --train 50 --start scratch --seeds 0 1 --out rows.jsonl

The published split: training and validation frames come from its 1000 training frames, errors are those
on its 1000 test frames, which are read once, by the weights that the validation frames chose. The time
includes validation and the compilation of the training step. ``rmd17_table.py`` makes tables of the rows.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from training import load_config, train

MOLECULES = (
    *("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde"),
    *("naphthalene", "paracetamol", "salicylic", "toluene", "uracil"),
)


def run(arguments: argparse.Namespace, seed: int, output: str | Path) -> dict[str, Any]:
    """Train with one seed and describe the result in a flat row."""
    config = load_config(
        None,
        [
            f"dataset=rmd17:{arguments.molecule}",
            f"train={arguments.train}",
            f"valid={arguments.valid}",
            f"minutes={arguments.budget_minutes}",
            f"model={arguments.model}",
            f"start={arguments.start}",
            f"threads={arguments.threads}",
            f"seed={seed}",
            f"output={output}",
            f"name={arguments.molecule}-{arguments.train}-seed-{seed}",
            *arguments.set,
        ],
    )
    result = train(config, show_progress=arguments.verbose)
    if result.interrupted:
        raise SystemExit("interrupted: no row is written for less than the time given")
    summary = result.summary
    test, xtb = summary["test"], summary["xtb"]
    return {
        "label": arguments.label or arguments.model,
        "version": summary["versions"]["hegnn-forcefield"],
        "molecule": arguments.molecule,
        "train": arguments.train,
        "valid": arguments.valid,
        "start": summary["data"]["start"],
        # Labelling with GFN2-xTB comes on top of the time for training.
        "budget_minutes": round(
            arguments.budget_minutes + xtb.get("labelling_seconds", 0.0) / 60, 1
        ),
        "seconds": summary["train"]["seconds"] + xtb.get("training_seconds", 0.0),
        "xtb_frames": xtb.get("frames", 0),
        "epochs": summary["train"]["epochs"],
        "steps": summary["train"]["steps"],
        "parameters": summary["model"]["parameters"],
        "energy_mae_meV": test["energy_mae_meV"],
        "energy_rmse_meV": test["energy_rmse_meV"],
        "forces_mae_meV_per_A": test["forces_mae_meV_per_A"],
        "forces_rmse_meV_per_A": test["forces_rmse_meV_per_A"],
        "valid_forces_mae_meV_per_A": summary["valid"]["forces_mae_meV_per_A"],
        "ms_per_evaluation": summary["inference"]["ms_per_step"],
        "settings": arguments.set,
        "threads": arguments.threads,
        "seed": seed,
        "torch": summary["versions"]["torch"],
        "processor": summary["machine"].get("gpu", summary["machine"]["processor"]),
    }


def main() -> None:
    """Print, and append to a file, one row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecule", choices=MOLECULES, required=True)
    parser.add_argument("--train", type=int, default=950, help="training frames")
    parser.add_argument("--valid", type=int, default=50, help="validation frames")
    parser.add_argument("--budget-minutes", type=float, default=15.0, help="time for training")
    parser.add_argument("--model", default="hegnn", help="hegnn, hegnn-published or egnn")
    parser.add_argument(
        "--start", default="auto", help="auto, pretrained, large, scratch or a file"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--label", help="name of the row in tables, the model's if none is given")
    parser.add_argument("--out", type=Path, help="file that the rows are appended to")
    parser.add_argument("--keep", type=Path, help="folder that keeps each run with its potential")
    parser.add_argument("--verbose", action="store_true", help="show the progress of training")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            line = json.dumps(run(arguments, seed, arguments.keep or temporary))
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
