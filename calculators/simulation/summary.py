"""What a finished run comes to: speed, drift, temperature, stability."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from calculators.simulation.pace import Pace
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import TOLERANCE
from calculators.simulation.statistics import block_average, linear_drift
from forcefield.units import MEV


def summarize(
    settings: SimulationSettings,
    atoms: Atoms,
    rows: Mapping[str, np.ndarray],
    pace: Pace,
    outcome: str,
    failure: str | None,
    failure_time: float | None,
) -> dict[str, Any]:
    """Contents of summary.json.

    Args:
        settings: The simulation.
        atoms: Starting structure.
        rows: Columns of energies.csv.
        pace: Steps and seconds.
        outcome: complete, interrupted, collapsed (it was told to stop there) or failed.
        failure: The sentence of the error that ended the run, if any.
        failure_time: ps at which it did.
    """
    times = rows["time_ps"]
    stability = verdict(rows, failure, failure_time)
    temperature = block_average(rows["temperature_K"])
    summary: dict[str, Any] = {
        "outcome": outcome,
        "time_ps": float(times[-1]) if len(times) else 0.0,
        "frames": len(times),
        "atoms": len(atoms),
        "formula": atoms.get_chemical_formula(),
        "stability": stability,
        "failure": failure,
        "speed": {
            "ns_per_day": pace.ns_per_day(settings.timestep),
            "ms_per_step": pace.ms_per_step,
            "steps": pace.steps,
            "seconds": pace.seconds,
        },
        "drift": drift(rows, len(atoms), settings.ensemble, stability["collapse_time_ps"]),
        "temperature": {
            "mean_K": temperature.value,
            "standard_error_K": temperature.error,
            "asked_K": settings.temperature,
        },
    }
    if "density_g_per_cm3" in rows:
        density = block_average(rows["density_g_per_cm3"])
        summary["density"] = {
            "mean_g_per_cm3": density.value,
            "standard_error_g_per_cm3": density.error,
        }
    if "energy_uncertainty_eV" in rows:
        summary["uncertainty"] = {
            "mean_energy_meV": float(rows["energy_uncertainty_eV"].mean()) / MEV,
            "max_force_meV_per_A": float(rows["max_force_uncertainty_eV_per_A"].max()) / MEV,
        }
    return summary


def verdict(
    rows: Mapping[str, np.ndarray], failure: str | None, failure_time: float | None
) -> dict[str, Any]:
    """Whether the structure held together, and if not, since when.

    Args:
        rows: Columns of energies.csv.
        failure: Why the run ended, if it failed.
        failure_time: ps.
    """
    change = np.maximum(np.abs(rows["shortest_bond_A"]), np.abs(rows["longest_bond_A"]))
    broken = np.flatnonzero(~(change <= TOLERANCE))
    largest = float(change.max(initial=0.0))
    if len(broken):
        time = float(rows["time_ps"][broken[0]])
        reason = f"a bond had changed by {change[broken[0]]:.2f} Å"
    elif failure is not None:
        time = float(failure_time or 0.0)
        reason = failure
    else:
        length = float(rows["time_ps"][-1]) if len(change) else 0.0
        return {
            "stable": True,
            "collapse_time_ps": None,
            "largest_bond_change_A": largest,
            "verdict": f"stable: in {length:g} ps no bond changed by more than {largest:.2f} Å",
        }
    return {
        "stable": False,
        "collapse_time_ps": time,
        "largest_bond_change_A": largest,
        "verdict": f"collapsed at t = {time:g} ps: {reason}",
    }


def drift(
    rows: Mapping[str, np.ndarray], atoms: int, ensemble: str, until: float | None
) -> dict[str, Any] | None:
    """Linear drift of the energy that should be conserved, before a collapse.

    Args:
        rows: Columns of energies.csv.
        atoms: Their number.
        ensemble: At constant energy the total energy counts.
        until: ps of a collapse, or None.

    Returns:
        meV/atom/ps with standard error; None where nothing is conserved.
    """
    name = "total_eV" if ensemble == "nve" else "conserved_eV"
    if name not in rows:
        return None
    before = rows["time_ps"] < until if until is not None else slice(None)
    times, energies = rows["time_ps"][before], rows[name][before] / MEV / atoms
    slope = linear_drift(times, energies)
    return {
        "of": "total energy" if ensemble == "nve" else "energy with the thermostat's",
        "meV_per_atom_per_ps": slope.value,
        "standard_error": slope.error,
        "fluctuation_meV_per_atom": float(energies.std()) if len(energies) else None,
    }


def describe_atoms(atoms: Atoms) -> dict[str, Any]:
    """A structure in a few words, for settings.json."""
    return {
        "atoms": len(atoms),
        "formula": atoms.get_chemical_formula(),
        "elements": sorted({chemical_symbols[z] for z in atoms.numbers.tolist()}),
        "cell_A": atoms.cell.array.tolist() if atoms.pbc.any() else None,
        "pbc": atoms.pbc.tolist(),
    }
