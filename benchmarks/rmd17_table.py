"""Make a table of rows from ``rmd17.py`` and ``peers/``, beside published figures.

    python benchmarks/rmd17_table.py rmd17.jsonl

Rows with the same label, molecule, frames and time are seeds of one figure: the median is shown, and the
range where there are several.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PUBLISHED = {
    ("aspirin", 950): {"MACE": (2.2, 6.6), "NequIP l=3": (2.3, 8.2), "Allegro": (2.3, 7.3)},
    ("azobenzene", 950): {"MACE": (1.2, 3.0), "NequIP l=3": (0.7, 2.9), "Allegro": (1.2, 2.6)},
    ("benzene", 950): {"MACE": (0.4, 0.3), "NequIP l=3": (0.04, 0.3), "Allegro": (0.3, 0.2)},
    ("ethanol", 950): {"MACE": (0.4, 2.1), "NequIP l=3": (0.4, 2.8), "Allegro": (0.4, 2.1)},
    ("malonaldehyde", 950): {"MACE": (0.8, 4.1), "NequIP l=3": (0.8, 5.1), "Allegro": (0.6, 3.6)},
    ("naphthalene", 950): {"MACE": (0.5, 1.6), "NequIP l=3": (0.9, 1.3), "Allegro": (0.2, 0.9)},
    ("paracetamol", 950): {"MACE": (1.3, 4.8), "NequIP l=3": (1.4, 5.9), "Allegro": (1.5, 4.9)},
    ("salicylic", 950): {"MACE": (0.9, 3.1), "NequIP l=3": (0.7, 4.0), "Allegro": (0.9, 2.9)},
    ("toluene", 950): {"MACE": (0.5, 1.5), "NequIP l=3": (0.3, 1.6), "Allegro": (0.4, 1.8)},
    ("uracil", 950): {"MACE": (0.5, 2.1), "NequIP l=3": (0.4, 3.1), "Allegro": (0.6, 1.8)},
    ("aspirin", 50): {"MACE": (17.0, 43.9), "NequIP": (19.5, 52.0)},
    ("ethanol", 50): {"MACE": (6.7, 32.6), "NequIP": (8.7, 40.2)},
}
"""Energy (meV) and force (meV/Å) MAE by molecule and training frames, after training to convergence.

I. Batatia et al., "MACE: Higher order equivariant message passing neural networks for fast and accurate
force fields", NeurIPS 2022, arXiv 2206.07697, tables of rMD17.
"""

Row = dict[str, Any]


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Rows of JSON-lines files, or of files with one JSON object each."""
    rows = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            rows += [json.loads(line) for line in text.splitlines() if line.strip()]
    return rows


def figure(rows: Sequence[Row], key: str) -> str:
    """Median of a figure over seeds, with the range."""
    values = sorted(row[key] for row in rows)
    digits = 2 if values[0] < 10 else 1
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"
    return text


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: a block for each molecule and number of frames, measured rows first."""
    groups: dict[tuple[str, int], dict[tuple[str, float], list[Row]]] = defaultdict(dict)
    for row in rows:
        name = row.get("label") or row["peer"]
        # sGDML takes as many of the frames as its time allows: its row belongs to the 950.
        frames = 950 if row["train"] > 50 else row["train"]
        block = groups[row["molecule"], frames]
        block.setdefault((name, row["budget_minutes"]), []).append(row)
    lines = [
        "| molecule, training frames | model | time, min | epochs | forces, meV/Å | energy, meV "
        "| ms per evaluation | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (molecule, frames), block in groups.items():
        for (name, minutes), seeds in block.items():
            first = seeds[0]
            # sGDML solves its system once, sooner than its time is over.
            epochs = f"{first['epochs']:.0f}" if first["epochs"] else ""
            time = f"{minutes if epochs else first['seconds'] / 60:.3g}"
            lines.append(
                f"| {molecule}, {first['train']} | {name} | {time} | {epochs} "
                f"| {figure(seeds, 'forces_mae_meV_per_A')} | {figure(seeds, 'energy_mae_meV')} "
                f"| {figure(seeds, 'ms_per_evaluation')} | {first['parameters'] or 0:,} |"
            )
        for name, (energy, forces) in PUBLISHED.get((molecule, frames), {}).items():
            lines.append(
                f"| {molecule}, {frames} | {name}, published | converged | | {forces} | {energy} | | |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON or JSON lines")
    print(table(read_rows(parser.parse_args().files)))


if __name__ == "__main__":
    main()
