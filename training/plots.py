"""Figures of a training: learning curves, parity of energies and forces, errors by element.

Each function returns a matplotlib figure of its own; no global state of matplotlib is touched.
"""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from forcefield.axes import BLUE, GREY, ORANGE, finish
from forcefield.units import MEV
from training.evaluate import Predictions
from training.history import Row

_COLORS = {1: "#6fb1d6", 6: "#343a40"}
"""Hydrogen and carbon, which Jmol paints white and grey."""

MAX_POINTS = 20_000
"""Points drawn per element; more only make the file larger."""


def learning_curves(history: Sequence[Row]) -> Figure:
    """Force and energy errors and the learning rate over the epochs."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    forces, energies, rates = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 0.8])
    for axes, quantity, label in (
        (forces, "forces_mae_meV_per_A", "force MAE (meV/Å)"),
        (energies, "energy_mae_meV_per_atom", "energy MAE (meV/atom)"),
    ):
        for part, color in (("train", GREY), ("valid", BLUE)):
            points = [
                (r["epoch"], r[f"{part}_{quantity}"]) for r in history if f"{part}_{quantity}" in r
            ]
            if points:
                marker = "o" if len(points) < 3 else None
                axes.plot(*zip(*points, strict=True), color=color, label=part, marker=marker, ms=4)
        if axes.lines:
            axes.set_yscale("log")
            axes.legend(frameon=False)
        finish(axes, "epoch", label)
    rates.plot([r["epoch"] for r in history], [r["learning_rate"] for r in history], color=ORANGE)
    finish(rates, "epoch", "learning rate")
    return figure


def energy_parity(predictions: Predictions) -> Figure:
    """Predicted against labelled energies per atom, counted from the mean label."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    atoms = predictions.num_atoms
    label = predictions.energy / atoms / MEV
    predicted = predictions.predicted_energy / atoms / MEV
    origin = label.mean()
    axes.scatter(label - origin, predicted - origin, s=9, alpha=0.6, color=BLUE, linewidths=0)
    _diagonal(axes, label - origin, predicted - origin)
    finish(axes, "label (meV/atom)", "prediction (meV/atom)")
    return figure


def forces_parity(predictions: Predictions) -> Figure:
    """Predicted against labelled force components, a colour for each element."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    random = np.random.default_rng(0)
    for element in np.unique(predictions.atomic_numbers):  # Hydrogen, the most common, at the back.
        chosen = predictions.atomic_numbers == element
        label = predictions.forces[chosen].ravel()
        predicted = predictions.predicted_forces[chosen].ravel()
        if len(label) > MAX_POINTS:
            shown = random.choice(len(label), MAX_POINTS, replace=False)
            label, predicted = label[shown], predicted[shown]
        axes.scatter(
            label,
            predicted,
            s=5,
            alpha=0.5,
            color=element_color(int(element)),
            linewidths=0,
            label=chemical_symbols[element],
        )
    _diagonal(axes, predictions.forces, predictions.predicted_forces)
    axes.legend(frameon=False, markerscale=3)
    finish(axes, "label (eV/Å)", "prediction (eV/Å)")
    return figure


def error_histogram(predictions: Predictions) -> Figure:
    """Distribution of the errors of force components, by element, on a logarithmic scale."""
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    errors = np.abs(predictions.predicted_forces - predictions.forces) / MEV
    positive = errors[errors > 0]
    low, high = np.quantile(positive, [0.001, 1.0]) if positive.size else (0.1, 1.0)
    bins = np.geomspace(low, max(high, 1.001 * low), 60)
    for element in np.unique(predictions.atomic_numbers):
        values = errors[predictions.atomic_numbers == element].ravel()
        weights = np.full(len(values), 100.0 / max(1, len(values)))
        axes.hist(
            values,
            bins=bins.tolist(),
            weights=weights,
            histtype="step",
            linewidth=1.8,
            color=element_color(int(element)),
            label=chemical_symbols[element],
        )
    axes.set_xscale("log")
    axes.legend(frameon=False, loc="upper left")
    finish(axes, "absolute error of a force component (meV/Å)", "share (%)")
    return figure


def energy_error_histogram(predictions: Predictions) -> Figure:
    """Distribution of the signed errors of the energies."""
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    errors = (predictions.predicted_energy - predictions.energy) / predictions.num_atoms / MEV
    axes.hist(errors, bins=min(60, max(5, len(errors) // 5)), color=BLUE, alpha=0.8)
    axes.axvline(0.0, color=GREY, linewidth=1)
    finish(axes, "prediction - label (meV/atom)", "frames")
    return figure


def reliability(estimated: NDArray[np.float64], true: NDArray[np.float64], unit: str) -> Figure:
    """True against estimated errors in bins.

    Args:
        estimated: Root mean square estimate of each bin, eV or eV/Å.
        true: Root mean square error of each bin, likewise.
        unit: What the axes show, meV or meV/Å.
    """
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    x, y = estimated / MEV, true / MEV
    limits = (0.0, 1.05 * float(max(x.max(), y.max())) or 1.0)
    axes.plot(limits, limits, color=GREY, linewidth=1, zorder=0)
    axes.plot(x, y, marker="o", ms=5, color=BLUE)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    finish(axes, f"estimated error ({unit})", f"true error ({unit})")
    return figure


def element_color(atomic_number: int) -> str:
    """Jmol's colour of an element; where that would vanish on white, a darker one."""
    if atomic_number in _COLORS:
        return _COLORS[atomic_number]
    color = np.array(jmol_colors[atomic_number])
    luminance = float(color @ [0.30, 0.59, 0.11])
    if luminance > 0.6:
        color = color * 0.6 / luminance
    return to_hex(np.clip(color, 0.0, 1.0).tolist())


def _diagonal(axes: Axes, label: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    low = float(min(label.min(), predicted.min()))
    high = float(max(label.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1, zorder=0)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
