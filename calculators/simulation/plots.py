"""plot.png of a run: energy, temperature, distances at the start and in the run, bonds, density."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from calculators.simulation.record import RANGE
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import TOLERANCE, pair_distances
from forcefield.axes import BLUE, GREY, ORANGE, finish
from forcefield.files import write_with
from forcefield.units import MEV

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_plot(
    path: Path,
    settings: SimulationSettings,
    atoms: Atoms,
    rows: Mapping[str, np.ndarray],
    edges: np.ndarray,
    counts: np.ndarray,
    verdict: str,
) -> None:
    """Draw a run.

    Args:
        path: The PNG file.
        settings: The simulation.
        atoms: Starting structure.
        rows: Columns of energies.csv.
        edges: Bins of distances, (k + 1,), Å.
        counts: Distances in them over the whole run, (k,).
        verdict: Title.
    """
    from matplotlib.figure import Figure

    dense = "density_g_per_cm3" in rows and settings.ensemble == "npt"
    figure = Figure(figsize=(10, 9.2 if dense else 6.4), layout="constrained")
    grid = figure.subplots(3 if dense else 2, 2)
    _energy(grid[0, 0], rows, len(atoms))
    _temperature(grid[0, 1], settings, rows)
    _distances(grid[1, 0], atoms, edges, counts)
    _bonds(grid[1, 1], rows)
    if dense:
        _density(grid[2, 0], rows)
        grid[2, 1].set_visible(False)
    title = verdict if len(verdict) < 110 else f"{verdict[:107]}..."
    figure.suptitle(f"{atoms.get_chemical_formula()}, {settings.ensemble}: {title}", fontsize=10)
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def _energy(axes: "Axes", rows: Mapping[str, np.ndarray], atoms: int) -> None:
    names = [("potential_eV", "potential", ORANGE), ("total_eV", "total", BLUE)]
    if "conserved_eV" in rows:
        names.append(("conserved_eV", "conserved", GREY))
    for name, label, color in names:
        energies = (rows[name] - rows[name][:1]) / MEV / atoms
        axes.plot(rows["time_ps"], energies, color=color, label=label, linewidth=0.9)
    axes.legend(frameon=False)
    finish(axes, "time (ps)", "energy from the start (meV/atom)")


def _temperature(
    axes: "Axes", settings: SimulationSettings, rows: Mapping[str, np.ndarray]
) -> None:
    axes.plot(rows["time_ps"], rows["temperature_K"], color=BLUE, linewidth=0.9)
    if settings.ensemble != "nve":
        axes.axhline(settings.temperature, color=GREY, linewidth=1)
    finish(axes, "time (ps)", "temperature (K)")


def _distances(axes: "Axes", atoms: Atoms, edges: np.ndarray, counts: np.ndarray) -> None:
    total = max(1.0, float(counts.sum()))
    axes.stairs(counts / total / np.diff(edges), edges, color=BLUE, label="run", fill=True)
    cutoff = RANGE if atoms.pbc.any() or edges[-1] <= RANGE else None
    start = pair_distances(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    if len(start) <= 1000:
        top = axes.get_ylim()[1]
        axes.vlines(start, 0.0, 0.12 * top, color=ORANGE, linewidth=0.8, label="start")
    else:
        share = np.histogram(start, edges)[0] / len(start) / np.diff(edges)
        axes.stairs(share, edges, color=ORANGE, label="start", linewidth=0.9)
    axes.legend(frameon=False)
    filled = np.flatnonzero(counts)
    if len(filled):
        axes.set_xlim(max(0.0, edges[filled[0]] - 0.5), edges[filled[-1]] + 0.5)
    finish(axes, "distance of two atoms (Å)", "h(r) (1/Å)")


def _bonds(axes: "Axes", rows: Mapping[str, np.ndarray]) -> None:
    for name, label, color in (
        ("longest_bond_A", "most stretched", ORANGE),
        ("shortest_bond_A", "most compressed", BLUE),
    ):
        axes.plot(rows["time_ps"], rows[name], color=color, label=label, linewidth=0.9)
    for limit in (-TOLERANCE, TOLERANCE):
        axes.axhline(limit, color=GREY, linewidth=1, linestyle="--")
    axes.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 0.95))
    finish(axes, "time (ps)", "change of a bond (Å)")


def _density(axes: "Axes", rows: Mapping[str, np.ndarray]) -> None:
    axes.plot(rows["time_ps"], rows["density_g_per_cm3"], color=BLUE, linewidth=0.9)
    finish(axes, "time (ps)", "density (g/cm³)")
