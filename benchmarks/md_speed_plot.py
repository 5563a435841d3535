"""Time of an evaluation against the number of atoms, from the rows of md_speed.py.

python benchmarks/md_speed_plot.py benchmarks/md_speed.jsonl --out docs/images/time-of-atoms.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from forcefield.axes import BLUE, GREY, ORANGE, finish

SHOWN = {
    "ase-compiled": ("ASE, compiled", BLUE, "o-"),
    "ase": ("ASE", BLUE, "o--"),
    "schnet": ("SchNet", ORANGE, "s-"),
    "painn": ("PaiNN", ORANGE, "s--"),
    "nequip": ("NequIP", GREY, "^-"),
    "mace": ("MACE", GREY, "^--"),
}
"""Ways of md_speed.py with their names, colours and lines."""


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    plain = [r for r in rows if r["threads"] == 1 and r["dtype"] == "float32" and "cpu_ms" in r]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for way, (label, colour, style) in SHOWN.items():
        points = sorted((row["atoms"], row["cpu_ms"]) for row in plain if row["way"] == way)
        if points:
            axes.loglog(*zip(*points, strict=True), style, color=colour, label=label, markersize=5)
    for row in plain:
        if row["way"] == "ase-compiled":
            place = (row["atoms"], row["cpu_ms"])
            axes.annotate(row["system"], place, (4, -12), textcoords="offset points", fontsize=8)
    finish(axes, "atoms", "CPU time of energy and forces, ms (one thread)")
    axes.legend(frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
