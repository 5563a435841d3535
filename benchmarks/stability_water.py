"""A periodic box of water at constant temperature and pressure: density and O-O distances."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from calculators.simulation import SimulationResult, make_settings, simulate
from calculators.simulation.record import density, read_energies
from calculators.simulation.statistics import block_average, linear_drift
from calculators.simulation.trajectory import read_dcd
from forcefield.axes import LIGHT, finish
from forcefield.neighbors import neighbor_pairs
from training.datasets import read_frames

RANGE, BINS = 6.0, 120
"""Å of g(r), and its bins; half the box of 64 molecules is 6.2 Å."""

EQUILIBRATION = 0.2
"""Share of a run that the averages leave out."""


def radial_distribution(
    positions: np.ndarray, cells: np.ndarray, cutoff: float = RANGE, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """g(r) of like particles in periodic cells.

    Args:
        positions: (f, n, 3), Å.
        cells: (f, 3, 3), Å.
        cutoff: Å.
        bins: Their number.

    Returns:
        Edges (bins + 1,), Å, and g (bins,), 1 for an ideal gas.
    """
    edges = np.linspace(0.0, cutoff, bins + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    g = np.zeros(bins)
    for r, cell in zip(positions, cells, strict=True):
        (j, i), shifts = neighbor_pairs(r, cell, np.ones(3, dtype=bool), cutoff)
        distances = np.linalg.norm(r[j] - r[i] + shifts @ cell, axis=1)
        volume = abs(np.linalg.det(cell))
        pairs = 0.5 * len(r) * (len(r) - 1)
        g += np.histogram(distances, edges)[0] / shells * volume / pairs
    return edges, g / len(positions)


def water_rows(
    arguments: argparse.Namespace,
    settings_of: Callable[..., dict[str, Any]],
    facts: Callable[..., dict[str, Any]],
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    """A run for each ensemble and seed, from the first frame of the data set."""
    data = read_frames(arguments.data).frames
    numbers = data[0].atomic_numbers
    frames = np.array([frame.positions for frame in data])
    cells = np.array([frame.cell for frame in data])
    oxygen = numbers == 8
    edges, reference = radial_distribution(frames[:, oxygen], cells)
    measured = density(
        float(Atoms(numbers).get_masses().sum()), float(np.abs(np.linalg.det(cells)).mean())
    )
    curves, tracks = {}, {}
    for ensemble in arguments.ensembles:
        for seed in arguments.seeds:
            settings = make_settings(
                settings_of(arguments, seed, ensemble=ensemble, pressure=arguments.pressure)
            )
            result = simulate(
                settings,
                scratch / f"water-{ensemble}-{seed}",
                structure=Atoms(numbers, frames[0], cell=cells[0], pbc=True),
                overwrite=True,
                show_progress=arguments.verbose,
                plot=False,
            )
            g = oxygen_distances(result, oxygen)
            curves[f"{ensemble}, seed {seed}"] = g
            rows = read_energies(result.folder.energies)
            if ensemble == "npt":
                tracks[f"seed {seed}"] = rows["time_ps"], rows["density_g_per_cm3"]
            yield {
                "kind": "water",
                "ensemble": ensemble,
                "seed": seed,
                "molecules": int(oxygen.sum()),
                "stable": result.summary["stability"]["stable"],
                "verdict": result.summary["stability"]["verdict"],
                **densities(rows),
                "density_of_data_g_per_cm3": measured,
                "g_max": float(g.max()),
                "g_max_at_A": float(edges[g.argmax()] + 0.5 * (edges[1] - edges[0])),
                "g_mae_to_data": float(np.abs(g - reference).mean()),
                **facts(arguments, result),
            }
    if arguments.plot:
        plot(arguments.plot, edges, reference, curves, measured, tracks)


def densities(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean density with its statistical error, and its drift, after equilibration."""
    start = int(EQUILIBRATION * len(rows["time_ps"]))
    values = rows["density_g_per_cm3"][start:]
    mean = block_average(values)
    drift = linear_drift(rows["time_ps"][start:], values)
    return {
        "density_g_per_cm3": mean.value,
        "density_standard_error": mean.error,
        "density_drift_per_ps": drift.value,
        "density_drift_standard_error": drift.error,
    }


def oxygen_distances(result: SimulationResult, oxygen: np.ndarray) -> np.ndarray:
    """g(r) of the oxygen atoms after equilibration."""
    positions, cells = read_dcd(result.folder.trajectory("dcd"))
    assert cells is not None
    start = int(EQUILIBRATION * len(positions))
    return radial_distribution(positions[start:, oxygen].astype(float), cells[start:])[1]


def plot(
    path: Path,
    edges: np.ndarray,
    reference: np.ndarray,
    curves: dict[str, np.ndarray],
    measured: float,
    tracks: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """g(r) of the data set and of every run; densities, g/cm³, at constant pressure over the time, ps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 if not tracks else 10.0, 3.6), layout="constrained")
    distances, *more = np.atleast_1d(figure.subplots(1, 2 if tracks else 1))
    distances.stairs(reference, edges, fill=True, color=LIGHT, label="data set")
    for name, g in curves.items():
        distances.stairs(g, edges, linewidth=1.2, label=name)
    finish(distances, "distance of two oxygen atoms (Å)", "g(r)")
    distances.legend(frameon=False)
    for axes in more:
        axes.axhline(measured, color=LIGHT, linewidth=4, label="data set")
        for name, (time, values) in tracks.items():
            axes.plot(time, values, linewidth=0.8, label=name)
        finish(axes, "time (ps)", "density (g/cm³)")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
