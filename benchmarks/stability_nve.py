"""What a simulation at constant energy conserves, and whether it finds its way back."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from calculators.simulation import make_settings, simulate
from calculators.simulation.checkpoint import Checkpoint
from calculators.simulation.engine import State, angular_momentum, starting_velocities
from calculators.simulation.quantities import PICOSECOND
from calculators.simulation.record import read_energies
from calculators.simulation.start import load_potential, make_engine
from calculators.simulation.structure import prepare_structure


def nve_row(
    arguments: argparse.Namespace,
    start: Atoms,
    seed: int,
    settings_of: Callable[..., dict[str, Any]],
    facts: Callable[..., dict[str, Any]],
    scratch: Path,
) -> dict[str, Any]:
    """Thermalise, run at constant energy, and describe the run.

    Drifts of momentum (of the whole molecule) and of angular momentum are those between the first and
    the last step; the molecule turns as a thermostat left it.
    """
    folder = scratch / f"{arguments.molecule}-nve-{seed}"
    warm = settings_of(
        arguments, seed, ensemble="nvt", time=arguments.equilibrate, thermostat="langevin"
    )
    thermal = simulate(
        make_settings({**warm, "friction": "10/ps", "relax": True}),
        folder / "thermal",
        structure=start,
        overwrite=True,
        show_progress=arguments.verbose,
        plot=False,
    )
    atoms = _at_end(thermal.folder.checkpoint)
    settings = make_settings(settings_of(arguments, seed, ensemble="nve", velocities="file"))
    result = simulate(
        settings,
        folder / "nve",
        structure=atoms,
        overwrite=True,
        show_progress=arguments.verbose,
        plot=False,
    )
    end = _at_end(result.folder.checkpoint)
    # The run takes out what momentum the thermostat left.
    atoms.set_velocities(starting_velocities(atoms, settings))
    before, after = _momenta(atoms), _momenta(end)
    drift = result.summary["drift"]
    reversals = {
        dtype: reversal(arguments, atoms, seed, settings_of, dtype)
        for dtype in ("float32", "float64")
    }
    if arguments.plot:
        plot_energy(arguments.plot, read_energies(result.folder.energies), len(atoms))
    return {
        "kind": "nve",
        "molecule": arguments.molecule,
        "seed": seed,
        "drift_meV_per_atom_per_ps": drift["meV_per_atom_per_ps"],
        "drift_standard_error": drift["standard_error"],
        "fluctuation_meV_per_atom": drift["fluctuation_meV_per_atom"],
        "momentum_change_amu_A_per_ps": float(np.linalg.norm(after[0] - before[0])),
        "angular_momentum_amu_A2_per_ps": float(np.linalg.norm(before[1])),
        "angular_momentum_change_amu_A2_per_ps": float(np.linalg.norm(after[1] - before[1])),
        "reverse_steps": arguments.reverse_steps,
        "reversal_max_deviation_A": reversals,
        "stable": result.summary["stability"]["stable"],
        **facts(arguments, result),
    }


def reversal(
    arguments: argparse.Namespace,
    atoms: Atoms,
    seed: int,
    settings_of: Callable[..., dict[str, Any]],
    dtype: str,
) -> float | None:
    """Run forth, turn the velocities round, run back: how far off is the worst atom, Å.

    None for a precision in which the potential does not run.
    """
    values = settings_of(arguments, seed, ensemble="nve", velocities="file")
    stored = load_potential(make_settings({**values, "dtype": None}))
    if dtype == "float32" and str(stored.dtype) != "torch.float32":
        return None
    settings = make_settings({**values, "dtype": dtype})
    prepared = prepare_structure(atoms, settings)
    engine = make_engine(settings, prepared, load_potential(settings))
    first = engine.state().positions
    engine.advance(arguments.reverse_steps)
    there = engine.state()
    engine.restore(State(0, there.positions, -there.velocities, there.cell))
    engine.advance(arguments.reverse_steps)
    return float(np.linalg.norm(engine.state().positions - first, axis=1).max())


def _at_end(checkpoint: Path) -> Atoms:
    """The atoms of a run's last checkpoint, in full precision."""
    loaded = Checkpoint.load(checkpoint)
    atoms = loaded.atoms
    atoms.set_positions(loaded.state.positions)
    atoms.set_velocities(loaded.state.velocities)
    return atoms


def _momenta(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Momentum, amu Å/ps, and angular momentum about the centre of mass, amu Å²/ps."""
    velocities = atoms.get_velocities() * PICOSECOND
    masses = atoms.get_masses()
    return masses @ velocities, angular_momentum(masses, atoms.positions, velocities)


def plot_energy(path: Path, rows: dict[str, np.ndarray], atoms: int) -> None:
    """The total energy over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    energy = 1000.0 * (rows["total_eV"] - rows["total_eV"].mean()) / atoms
    axes.plot(rows["time_ps"], energy, linewidth=0.7, color="#1f6feb")
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("total energy (meV/atom)")
    figure.savefig(path, dpi=150)
