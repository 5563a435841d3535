"""What each choice in model and training is worth: one setting changed at a time, JSON lines, and a table.

    python benchmarks/ablation.py --molecules ethanol aspirin --seeds 0 1 --jobs 2 --out ablation.jsonl
    python benchmarks/ablation.py --table ablation.jsonl

Random weights, 950 training frames of rMD17's first split, 50 for validation, so many epochs on one core
each, with the loss ``mse``, which was the default when the table was begun; errors are those on the
validation frames. Rows that are in the file already are not run again. A setting changes the configuration,
or is one of the variants of the network in ``ablation_blocks.py`` or of training in
``ablation_training.py``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ablation_blocks
import ablation_training

SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "published HEGNN": ["model=hegnn-published", "layers=4"],
    "EGNN": ["model=egnn", "layers=4"],
    "lmax 1": ["lmax=1"],
    "lmax 2": ["lmax=2"],
    "lmax 4": ["lmax=4"],
    "lmax 6": ["lmax=6"],
    "2 layers": ["layers=2"],
    "4 layers": ["layers=4"],
    "8 channels": ["channels=8"],
    "32 channels": ["channels=32"],
    "32 features": ["features=32"],
    "128 features": ["features=128"],
    "5 radial functions": ["radial=5"],
    "12 radial functions": ["radial=12"],
    "tensor product at atoms": ["tensor_product=true"],
    "cutoff 4 Å": ["cutoff=4.0"],
    "cutoff 6 Å": ["cutoff=6.0"],
    "AdamW, 2e-3": ["optimizer=adamw", "learning_rate=2e-3"],
    "Muon, 2e-3": ["learning_rate=2e-3"],
    "Muon, 1e-2": ["learning_rate=1e-2"],
    "weight decay 0.1": ["weight_decay=0.1"],
    "L1 loss": ["loss=l1"],
    "Huber loss": ["loss=huber"],
    "energies weigh 10": ["energy_weight=10"],
    "no averaging": ["ema_decay=0"],
    "constant learning rate": ["schedule=constant"],
    "batches of 2": ["batch_size=2"],
    "batches of 10": ["batch_size=10"],
    "double precision": ["precision=float64"],
    "plateau": ["schedule=plateau", "plateau_epochs=2", "plateau_factor=0.5"],
    **ablation_training.SETTINGS,
    **{name: [] for name in ablation_blocks.VARIANTS},
}


def run(name: str, molecule: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train once."""
    from training import load_config, train

    for variants in (ablation_blocks, ablation_training):
        if name in variants.VARIANTS:
            variants.use(name)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            None,
            [
                f"dataset=rmd17:{molecule}",
                "train=950",
                "valid=50",
                "test=0",
                f"epochs={epochs}",
                "start=scratch",
                "loss=mse",
                "threads=1",
                f"seed={seed}",
                f"output={folder}",
                "name=run",
                *SETTINGS[name],
            ],
        )
        summary = train(config, show_progress=False).summary
    return {
        "setting": name,
        "molecule": molecule,
        "seed": seed,
        "epochs": epochs,
        "valid_forces_mae_meV_per_A": summary["valid"]["forces_mae_meV_per_A"],
        "valid_energy_mae_meV": summary["valid"]["energy_mae_meV"],
        "seconds": summary["train"]["seconds"],
        "parameters": summary["model"]["parameters"],
        "torch": summary["versions"]["torch"],
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a file holds; nothing if it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over seeds with the range, and how they compare with the model as it is."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["setting"], row["molecule"]].append(row)
    molecules = sorted({molecule for _, molecule in found})
    lines = [
        "| | "
        + " | ".join(f"{m}, forces, meV/Å | energy, meV" for m in molecules)
        + " | parameters |",
        "|---" * (2 * len(molecules) + 2) + "|",
    ]
    for name in SETTINGS:
        cells = [name]
        parameters = ""
        for molecule in molecules:
            chosen = found.get((name, molecule), [])
            if not chosen:
                cells += ["", ""]
                continue
            forces = [row["valid_forces_mae_meV_per_A"] for row in chosen]
            energies = [row["valid_energy_mae_meV"] for row in chosen]
            spread = f" ({min(forces):.1f} to {max(forces):.1f})" if len(forces) > 1 else ""
            cells += [f"{statistics.mean(forces):.1f}{spread}", f"{statistics.mean(energies):.2f}"]
            parameters = f"{chosen[0]['parameters']:,}"
        if any(cells[1:]):
            lines.append("| " + " | ".join([*cells, parameters]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, each run in a process of its own, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", nargs="+", default=["ethanol", "aspirin"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("ablation.jsonl"))
    parser.add_argument("--table", type=Path, help="file of rows to print as a table")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(rows_of(arguments.table)))
        return
    if arguments.one:
        name, molecule, seed = arguments.one
        print(json.dumps(run(name, molecule, int(seed), arguments.epochs)))
        return
    done = {(row["setting"], row["molecule"], row["seed"]) for row in rows_of(arguments.out)}
    wanted = [
        (name, molecule, seed)
        for seed in arguments.seeds
        for name in arguments.settings
        for molecule in arguments.molecules
        if (name, molecule, seed) not in done
    ]

    def start(case: tuple[str, str, int]) -> None:
        command = [sys.executable, __file__, "--epochs", str(arguments.epochs), "--one"]
        result = subprocess.run(
            [*command, *map(str, case)], capture_output=True, text=True, check=False
        )
        if result.returncode:
            print(*case, result.stderr.strip().splitlines()[-1:], flush=True)
            return
        line = result.stdout.strip().splitlines()[-1]
        print(line, flush=True)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(start, wanted))


if __name__ == "__main__":
    main()
