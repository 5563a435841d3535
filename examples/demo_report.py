"""The demo's report: the training's, followed by what the simulations showed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from demo_animation import animation_html, bonds
from demo_checks import Agreement
from demo_dynamics import FRAME_INTERVAL, TIME_STEP
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training import plots
from training.evaluate import Predictions
from training.history import read_history
from training.html import Card, Section, cards, figure_html, number, page, row, table
from training.report import errors_section, learning_section, parity_section
from training.run_folder import RunFolder

NAMES = {"ase": "ASE", "openmm": "OpenMM TorchForce"}
COLORS = {"ase": plots.ORANGE, "openmm": plots.BLUE}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One engine's run: a thermalised part, then one at constant energy.

    Attributes:
        time: (t,), ps.
        temperature: (t,), K.
        energy: Total energy, (t,), eV.
        constant: Whether the energy should be constant, (t,), bool.
        frames: (f, n, 3), Å, from the start of the constant part.
        numbers: Atomic numbers, (n,).
    """

    time: np.ndarray
    temperature: np.ndarray
    energy: np.ndarray
    constant: np.ndarray
    frames: np.ndarray
    numbers: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """Read what demo_dynamics wrote."""
        with np.load(path) as data:
            return cls(**data)

    @property
    def picoseconds(self) -> float:
        """Length of the constant part, ps."""
        time = self.time[self.constant]
        return float(time[-1] - time[0])

    @property
    def deviation(self) -> np.ndarray:
        """Total energy of the constant part from its first value, meV per atom."""
        energy = self.energy[self.constant]
        return 1000.0 * (energy - energy[0]) / len(self.numbers)

    @property
    def drift(self) -> float:
        """Change over the constant part by a fitted line, meV per atom."""
        time = self.time[self.constant]
        return float(np.polyfit(time, self.deviation, 1)[0] * self.picoseconds)

    @property
    def fluctuation(self) -> float:
        """Root mean square of the deviation from its mean, meV per atom."""
        return float(self.deviation.std())

    @property
    def mean_temperature(self) -> float:
        """Of the constant part, K."""
        return float(self.temperature[self.constant].mean())


def write_report(
    folder: RunFolder,
    trajectories: Mapping[str, Trajectory],
    agreements: Sequence[Agreement],
    times: Mapping[str, float],
) -> Path:
    """Write report.html into the run's folder, and overview.png beside it."""
    summary, predictions = folder.read_summary(), Predictions.load(folder.predictions)
    history = read_history(folder.log)
    sections = [
        headline(summary, trajectories, times),
        animation_section(trajectories["openmm"]),
        dynamics_section(trajectories),
        learning_section(history, summary),
        parity_section(predictions, summary["test"]),
        engines_section(agreements, times),
        errors_section(predictions),
    ]
    frames = summary["data"]["frames"]
    subtitle = (
        f"{summary['model']['name'].upper()} trained on {frames['train']} frames of ethanol (revised "
        f"MD17) in {summary['train']['seconds']:.0f} s, and simulated in ASE and OpenMM"
    )
    html = page(
        "From labelled geometries to running simulations",
        sections,
        subtitle,
        f"hegnn-forcefield {summary['versions']['hegnn-forcefield']}",
    )
    temporary = folder.report.with_suffix(".part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(folder.report)
    overview(predictions, trajectories).savefig(
        folder.path / "overview.png", dpi=150, facecolor="white"
    )
    return folder.report


def headline(
    summary: Mapping, trajectories: Mapping[str, Trajectory], times: Mapping[str, float]
) -> Section:
    """The figures that matter, large."""
    errors = summary["test"]
    items = [
        Card("force MAE, test frames", number(errors["forces_mae_meV_per_A"]), "meV/Å"),
        Card("energy MAE, test frames", number(errors["energy_mae_meV"]), "meV"),
    ]
    items += [
        Card(
            f"energy drift in {run.picoseconds:.0f} ps, {NAMES[engine]}",
            f"{run.drift:+.3f}",
            "meV/atom",
        )
        for engine, run in trajectories.items()
    ]
    items.append(Card("a step in OpenMM TorchForce", number(times["OpenMM TorchForce"]), "ms"))
    return Section("", cards(items))


def animation_section(run: Trajectory) -> Section:
    """The molecule, moving."""
    interval = FRAME_INTERVAL * TIME_STEP
    return Section(
        f"Ethanol at {run.mean_temperature:.0f} K, the first {len(run.frames) * interval:.0f} fs "
        "at constant energy in OpenMM",
        animation_html(run.frames, run.numbers, interval),
    )


def dynamics_section(trajectories: Mapping[str, Trajectory]) -> Section:
    """Temperature and total energy over time."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    temperatures, energies = figure.subplots(2, 1, sharex=True)
    for engine, run in trajectories.items():
        temperatures.plot(
            run.time, run.temperature, color=COLORS[engine], lw=0.6, label=NAMES[engine]
        )
        energies.plot(run.time[run.constant], run.deviation, color=COLORS[engine], lw=0.8)
    start = run.time[run.constant][0]
    for axes, label in ((temperatures, "temperature (K)"), (energies, "total energy (meV/atom)")):
        axes.axvline(start, color=plots.GREY, lw=1, ls="--")
        _bare(axes, label)
    temperatures.legend(frameon=False, ncols=2)
    energies.set_xlabel("time (ps): thermostat at 300 K to the dashed line, then constant energy")
    rows = [
        [NAMES[e], run.picoseconds, run.mean_temperature, run.drift, run.fluctuation]
        for e, run in trajectories.items()
    ]
    header = ["engine", "ps", "mean temperature (K)", "drift (meV/atom)", "fluctuation (meV/atom)"]
    return Section(
        "Simulations",
        figure_html(
            figure, f"Time step {TIME_STEP} fs. The total energy counts from its first value."
        )
        + table(header, rows),
    )


def engines_section(agreements: Sequence[Agreement], times: Mapping[str, float]) -> Section:
    """Differences from the trained model, and the price of a step."""
    model = times["model alone"]
    return Section(
        "Engines",
        row(
            table(
                ["engine", "energy (eV)", "forces (eV/Å)"],
                [[a.engine, f"{a.energy:.1e}", f"{a.forces:.1e}"] for a in agreements],
            )
            + "<p>Largest differences from the trained model on test frames.</p>",
            table(
                ["", "ms per step", "over the model"],
                [[name, f"{t:.2f}", f"{t - model:+.2f}"] for name, t in times.items()],
            )
            + "<p>One thread, all taking turns.</p>",
        ),
    )


def overview(predictions: Predictions, trajectories: Mapping[str, Trajectory]) -> Figure:
    """Molecule, force parity and conserved energy in one picture."""
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    molecule, parity, energies = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    run = trajectories["openmm"]
    draw_molecule(molecule, aligned(run.frames[::10]), run.numbers)

    for element in np.unique(predictions.atomic_numbers):
        chosen = predictions.atomic_numbers == element
        label = predictions.forces[chosen].ravel()[::5]
        predicted = predictions.predicted_forces[chosen].ravel()[::5]
        parity.scatter(label, predicted, s=3, lw=0, alpha=0.5, color=plots.element_color(element))
    limits = np.array([predictions.forces.min(), predictions.forces.max()])
    parity.plot(limits, limits, color=plots.GREY, lw=0.8, zorder=0)
    error = predictions.errors()["forces_mae_meV_per_A"]
    parity.set_title(f"forces on test frames, MAE {error:.1f} meV/Å", fontsize=10)
    parity.set_xlabel("label (eV/Å)")
    _bare(parity, "prediction (eV/Å)")

    for engine, run in trajectories.items():
        label = f"{NAMES[engine]}: {run.drift:+.3f} meV/atom"
        energies.plot(
            run.time[run.constant] - run.time[run.constant][0],
            run.deviation,
            color=COLORS[engine],
            lw=0.7,
            label=label,
        )
    scale = max(float(np.abs(run.deviation).max()) for run in trajectories.values())
    energies.set_ylim(-2.2 * scale, 2.2 * scale)
    energies.legend(frameon=False, fontsize=9)
    energies.set_title(f"{run.picoseconds:.0f} ps at constant energy", fontsize=10)
    energies.set_xlabel("time (ps)")
    _bare(energies, "total energy (meV/atom)")
    return figure


def aligned(frames: np.ndarray) -> np.ndarray:
    """Frames (f, n, 3) turned onto the first one, centred (Kabsch)."""
    centred = frames - frames.mean(axis=1, keepdims=True)
    turned = []
    for frame in centred:
        u, _, vt = np.linalg.svd(frame.T @ centred[0])
        handedness = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
        turned.append(frame @ u @ handedness @ vt)
    return np.array(turned)


def draw_molecule(axes: Axes, frames: np.ndarray, numbers: np.ndarray) -> None:
    """The first frame as balls and sticks, the others as a faint cloud; frames (f, n, 3), Å."""
    plane = np.linalg.svd(frames[0])[2]
    if np.linalg.det(plane) < 0:
        plane[2] *= -1.0
    flat = frames @ plane.T
    colors = 0.95 * jmol_colors[numbers]
    for frame in flat[1:]:
        axes.scatter(*frame[:, :2].T, s=16, c=colors * 0.75, alpha=0.3, lw=0)
    first = flat[0]
    for i, j in bonds(frames[0], numbers):
        depth = 10.0 * (min(first[i, 2], first[j, 2]) + 5.0)
        axes.plot(*first[[i, j], :2].T, color="#8a97a6", lw=5, solid_capstyle="round", zorder=depth)
    for atom in range(len(numbers)):
        axes.scatter(
            *first[atom, :2],
            s=900.0 * covalent_radii[numbers[atom]],
            color=colors[atom],
            edgecolors="#4a5560",
            linewidths=0.8,
            zorder=10.0 * (first[atom, 2] + 5.0) + 1.0,
        )
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.axis("off")
    axes.set_title("ethanol at 300 K", fontsize=10)


def _bare(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(color="#e8ecf1", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
