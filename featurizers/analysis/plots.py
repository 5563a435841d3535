"""Figures of an analysis, each a matplotlib figure of its own; no global state is touched."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from featurizers.analysis.learning import Epoch
from featurizers.analysis.markov import Timescales
from featurizers.analysis.metastable import ChapmanKolmogorov
from featurizers.analysis.times import Clock
from forcefield.axes import BLUE, GREY, ORANGE, finish

MAX_POINTS = 20_000
"""Points drawn; more only make the file larger."""


def state_color(state: int) -> str:
    """Colour of a metastable state; grey for frames without one."""
    return "#bfc4cc" if state < 0 else to_hex(colormaps["tab10"](state % 10))


def coordinates_over_time(
    coordinates: np.ndarray, states: np.ndarray, bounds: Sequence[int], clock: Clock
) -> Figure:
    """Each coordinate over time, in the colours of the states, trajectories one behind the other.

    Args:
        coordinates: (f, k).
        states: (f,).
        bounds: First frame of each trajectory, and the number of frames.
        clock: For the axis.
    """
    number = coordinates.shape[1]
    figure = Figure(figsize=(10, 1.1 + 1.5 * number), layout="constrained")
    rows = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
    shown = _thinned(len(coordinates))
    factor, unit = clock.unit(len(coordinates))
    colors = [state_color(int(state)) for state in states[shown]]
    for k, axes in enumerate(rows):
        axes.scatter(factor * shown, coordinates[shown, k], s=1.5, c=colors, linewidths=0)
        for bound in bounds[1:-1]:
            axes.axvline(factor * bound, color=GREY, linewidth=0.6)
        finish(axes, "", f"coordinate {k + 1}")
    rows[-1].set_xlabel(f"time ({unit})")
    return figure


def free_energy(coordinates: np.ndarray, weights: np.ndarray, states: np.ndarray) -> Figure:
    """Free energy in kT over the first two coordinates (or the only one), and where the states are.

    Args:
        coordinates: (f, k).
        weights: Of frames in equilibrium, (f,).
        states: (f,).
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    energy, places = figure.subplots(1, 2)
    if coordinates.shape[1] == 1:
        _profile(energy, coordinates[:, 0], weights)
        _histograms(places, coordinates[:, 0], weights, states)
        return figure
    _surface(figure, energy, coordinates[:, :2], weights, ("coordinate 1", "coordinate 2"))
    _scatter_states(places, coordinates[:, :2], states)
    finish(places, "coordinate 1", "coordinate 2")
    places.legend(frameon=False, markerscale=6, loc="best")
    return figure


def dihedral_states(dihedrals: np.ndarray, weights: np.ndarray, states: np.ndarray) -> Figure:
    """Free energy in kT over φ and ψ, and where the states are.

    Args:
        dihedrals: φ and ψ of each frame, radians, (f, 2).
        weights: Of frames in equilibrium, (f,).
        states: (f,).
    """
    degrees = np.degrees(dihedrals)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    energy, places = figure.subplots(1, 2)
    _surface(figure, energy, degrees, weights, ("φ (°)", "ψ (°)"), limits=(-180.0, 180.0))
    _scatter_states(places, degrees, states)
    finish(places, "φ (°)", "ψ (°)")
    for axes in (energy, places):
        axes.set(xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
        axes.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    places.legend(frameon=False, markerscale=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def implied_timescales(timescales: Timescales, lag: int, clock: Clock) -> Figure:
    """Implied timescales with error bars over the lag; what is in the grey is faster than the lag."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    finite = timescales.values[np.isfinite(timescales.values)]
    factor, unit = clock.unit(float(np.max(finite, initial=1.0)))
    lags = factor * timescales.lags
    for p in range(timescales.values.shape[1]):
        axes.errorbar(
            lags,
            factor * timescales.values[:, p],
            factor * timescales.errors[:, p],
            marker="o",
            ms=4,
            lw=1.3,
            capsize=2,
            color=colormaps["tab10"](p % 10),
        )
    axes.set(xscale="log", yscale="log")
    line = np.array(axes.get_xlim())
    bottom, top = axes.get_ylim()
    bottom = min(bottom, 0.8 * float(lags[0]))
    axes.plot(line, line, color=GREY, linewidth=1)
    axes.fill_between(line, min(bottom, line[0]), line, color=GREY, alpha=0.25, linewidth=0)
    axes.axvline(factor * lag, color=ORANGE, linewidth=1, linestyle="--")
    axes.set(xlim=tuple(line), ylim=(bottom, top))
    finish(axes, f"lag ({unit})", f"implied timescale ({unit})")
    return figure


def chapman_kolmogorov(test: ChapmanKolmogorov, clock: Clock) -> Figure:
    """Probability of staying in each state: predicted with two standard errors, and observed."""
    number = test.predicted.shape[1]
    columns = min(4, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(2.5 * columns + 0.5, 2.3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    factor, unit = clock.unit(float(test.lags[-1]))
    times = factor * test.lags
    for state, axes in enumerate(grid.flat):
        if state >= number:
            axes.set_visible(False)
            continue
        value, error = test.predicted[:, state], 2.0 * test.predicted_errors[:, state]
        axes.fill_between(times, value - error, value + error, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(times, value, color=BLUE, label="predicted")
        axes.plot(times, test.observed[:, state], "o", ms=4, color=ORANGE, label="observed")
        axes.set_title(f"state {state + 1}", fontsize=10)
        finish(axes, f"time ({unit})", "probability of staying")
        axes.label_outer()
    grid.flat[0].set_ylim(0.0, 1.05)
    grid.flat[0].legend(frameon=False)
    return figure


def importance(losses: np.ndarray, labels: Sequence[str]) -> Figure:
    """Loss of score without each token, percent."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(losses))
    axes.bar(places, losses, color=BLUE, width=0.8)
    step = max(1, len(losses) // 40)
    axes.set_xticks(places[::step], [labels[k] for k in places[::step]], rotation=90, fontsize=8)
    axes.axhline(0.0, color=GREY, linewidth=1)
    finish(axes, "", "loss of VAMP-2 (%)")
    return figure


def training_course(history: Sequence[Epoch], label: str) -> Figure:
    """Scores over the epochs, the label says which."""
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(history) + 1)
    for name, values, color in (
        ("mini-batches", [epoch.train for epoch in history], GREY),
        ("held-out blocks", [epoch.valid for epoch in history], BLUE),
    ):
        axes.plot(epochs, values, color=color, label=name, marker="o", ms=3)
    axes.legend(frameon=False)
    finish(axes, "epoch", label)
    return figure


def _surface(
    figure: Figure,
    axes: Axes,
    points: np.ndarray,
    weights: np.ndarray,
    labels: tuple[str, str],
    limits: tuple[float, float] | None = None,
) -> None:
    """Free energy in kT from a weighted histogram of points (f, 2)."""
    bins = int(np.clip(np.sqrt(len(points)) / 2, 15, 80))
    first, second = points.T
    bounds = None if limits is None else [limits, limits]
    density, x, y = np.histogram2d(first, second, bins=bins, range=bounds, weights=weights)
    with np.errstate(divide="ignore"):
        energy = -np.log(density)
    energy = np.where(np.isfinite(energy), energy - energy[density > 0].min(), np.nan)
    image = axes.pcolormesh(x, y, energy.T, cmap="viridis", shading="flat")
    figure.colorbar(image, ax=axes, label="free energy (kT)")
    finish(axes, *labels)


def _profile(axes: Axes, values: np.ndarray, weights: np.ndarray) -> None:
    density, edges = np.histogram(values, bins=60, weights=weights)
    visited = density > 0
    energy = -np.log(density[visited])
    centers = 0.5 * (edges[1:] + edges[:-1])[visited]
    axes.plot(centers, energy - energy.min(), color=BLUE, marker="o", ms=3)
    finish(axes, "coordinate 1", "free energy (kT)")


def _histograms(axes: Axes, values: np.ndarray, weights: np.ndarray, states: np.ndarray) -> None:
    bins = np.linspace(values.min(), values.max(), 61).tolist()
    for state in range(states.max() + 1):
        chosen = states == state
        axes.hist(
            values[chosen],
            bins=bins,
            weights=weights[chosen],
            color=state_color(state),
            alpha=0.7,
            label=f"state {state + 1}",
        )
    axes.legend(frameon=False)
    finish(axes, "coordinate 1", "probability")


def _scatter_states(axes: Axes, points: np.ndarray, states: np.ndarray) -> None:
    shown = _thinned(len(points))
    for state in range(-1, states.max() + 1):
        chosen = shown[states[shown] == state]
        if len(chosen):
            label = "no state" if state < 0 else f"state {state + 1}"
            axes.scatter(
                points[chosen, 0],
                points[chosen, 1],
                s=1.5,
                color=state_color(state),
                linewidths=0,
                label=label,
            )


def _thinned(frames: int) -> np.ndarray:
    """Evenly spaced frames, no more than can be drawn."""
    return np.arange(0, frames, max(1, -(-frames // MAX_POINTS)))
