"""Tables of the rows that ``stability.py`` appends to a file.

python benchmarks/stability_table.py rows.jsonl
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stability_table(rows: Sequence[Row]) -> str:
    """One line for each molecule and potential: ps until collapse of each seed, and means."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        key = (row["molecule"], row["label"], row["integrator"], f"{row['temperature_K']:g}")
        groups[key].append(row)
    lines = []
    for (molecule, label, integrator, temperature), group in sorted(groups.items()):
        lines.append(
            [
                molecule,
                label,
                f"{group[0]['engine']}, {integrator}",
                temperature,
                f"{group[0]['asked_ps']:g}",
                ", ".join(f"{row['stable_ps']:g}" for row in group),
                f"{sum(row['stable'] for row in group)} of {len(group)}",
                f"{max(row['largest_bond_change_A'] for row in group):.2f}",
                f"{statistics.mean(row['h_mae'] for row in group):.3f}",
                f"{group[0]['h_mae_halves_of_data']:.3f}",
                f"{statistics.mean(row['mean_temperature_K'] for row in group):.0f}",
                f"{statistics.median(row['ms_per_step'] for row in group):.2f}",
                f"{statistics.median(row['ns_per_day'] for row in group):.1f}",
            ]
        )
    header = (
        *("molecule", "potential", "engine", "K", "asked, ps", "stable, ps", "whole runs"),
        *("largest change of a bond, Å", "MAE of h(r)", "the same, halves of the data", "mean, K"),
        *("ms per step", "ns/day"),
    )
    return table(header, lines)


def nve_table(rows: Sequence[Row]) -> str:
    """One line for each run at constant energy."""
    lines = []
    for row in rows:
        back = row["reversal_max_deviation_A"]
        turned = (
            row["angular_momentum_change_amu_A2_per_ps"] / row["angular_momentum_amu_A2_per_ps"]
        )
        lines.append(
            [
                row["molecule"],
                row["label"],
                f"{row['engine']}, {row['dtype']}",
                f"{row['time_ps']:g}",
                f"{row['mean_temperature_K']:.0f}",
                f"{row['drift_meV_per_atom_per_ps']:+.5f} ± {row['drift_standard_error']:.5f}",
                f"{row['fluctuation_meV_per_atom']:.3f}",
                f"{row['momentum_change_amu_A_per_ps']:.1e}",
                f"{turned:.1e}",
                f"{row['reverse_steps']}",
                " / ".join(
                    "-" if back[d] is None else f"{back[d]:.0e}" for d in ("float32", "float64")
                ),
            ]
        )
    header = (
        *("molecule", "potential", "engine", "ps", "mean, K", "drift, meV/atom/ps"),
        *("fluctuation, meV/atom", "change of momentum, amu Å/ps"),
        *("relative change of angular momentum", "steps there and back"),
        "off by, Å, float32 / float64",
    )
    return table(header, lines)


def water_table(rows: Sequence[Row]) -> str:
    """One line for each run of water."""
    lines = [
        [
            row["label"],
            row["ensemble"],
            f"{row['engine']}",
            f"{row['time_ps']:g}",
            f"{row['mean_temperature_K']:.0f}",
            f"{row['density_g_per_cm3']:.4f} ± {row['density_standard_error'] or 0.0:.4f}",
            f"{row['density_drift_per_ps']:+.1e} ± {row['density_drift_standard_error'] or 0.0:.1e}",
            f"{row['density_of_data_g_per_cm3']:.4f}",
            f"{row['g_max']:.2f} at {row['g_max_at_A']:.2f} Å",
            f"{row['g_mae_to_data']:.3f}",
            "yes" if row["stable"] else row["verdict"],
            f"{row['ns_per_day']:.2f}",
        ]
        for row in rows
    ]
    header = (
        *("potential", "ensemble", "engine", "ps", "mean, K", "density, g/cm³"),
        *("drift of the density, g/cm³/ps", "density of the data", "first peak of g(OO)"),
        *("MAE of g to the data", "whole", "ns/day"),
    )
    return table(header, lines)


def main() -> None:
    """Print a table for each kind of row in the files."""
    rows = [
        json.loads(line)
        for name in sys.argv[1:]
        for line in Path(name).read_text(encoding="utf-8").splitlines()
    ]
    makers = {"stability": stability_table, "nve": nve_table, "water": water_table}
    for kind, make in makers.items():
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            print(f"{make(chosen)}\n")


if __name__ == "__main__":
    main()
