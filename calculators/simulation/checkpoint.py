"""The one file from which a run goes on, replaced only once the next one is complete."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from calculators.simulation.engine import State
from calculators.simulation.pace import Pace
from calculators.simulation.record import Mark
from calculators.simulation.stability import Bonds
from forcefield.errors import CheckpointError
from forcefield.files import write_with

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a continued run needs.

    Attributes:
        atoms: Starting structure, as prepared.
        bonds: Bonded pairs and their reference lengths.
        state: Of the engine.
        mark: Of the files.
        pace: Steps and seconds so far.
    """

    atoms: Atoms
    bonds: Bonds
    state: State
    mark: Mark
    pace: Pace

    def save(self, path: Path) -> None:
        """Write it."""
        state, mark = self.state, self.mark
        numbers: dict[str, Any] = {
            "format": FORMAT,
            "step": state.step,
            "energies": mark.energies,
            "trajectory": mark.trajectory,
            "frames": mark.frames,
            "steps_timed": self.pace.steps,
            "seconds": self.pace.seconds,
        }
        arrays = {
            "numbers": np.array(json.dumps(numbers)),
            "start_numbers": self.atoms.numbers,
            "start_positions": self.atoms.positions,
            "start_velocities": self.atoms.get_velocities(),
            "start_masses": self.atoms.get_masses(),
            "start_cell": self.atoms.cell.array,
            "start_pbc": self.atoms.pbc,
            "bond_pairs": self.bonds.pairs,
            "bond_lengths": self.bonds.lengths,
            "positions": state.positions,
            "velocities": state.velocities,
            "distance_counts": mark.counts,
        }
        if state.cell is not None:
            arrays["cell"] = state.cell
        arrays |= {f"engine_{name}": value for name, value in state.extra.items()}
        write_with(path, lambda temporary: np.savez(temporary, **arrays))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read it.

        Raises:
            CheckpointError: There is none, or it is damaged or of another version.
        """
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}: nothing to continue")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            numbers = json.loads(str(arrays["numbers"]))
            if numbers["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} is of format {numbers['format']}, this version reads {FORMAT}"
                )
            return cls._from(arrays, numbers)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} is damaged ({error})") from error

    @classmethod
    def _from(cls, arrays: dict[str, np.ndarray], numbers: dict[str, Any]) -> "Checkpoint":
        atoms = Atoms(
            numbers=arrays["start_numbers"],
            positions=arrays["start_positions"],
            masses=arrays["start_masses"],
            cell=arrays["start_cell"],
            pbc=arrays["start_pbc"],
        )
        if "start_velocities" in arrays:  # Not in those of older versions.
            atoms.set_velocities(arrays["start_velocities"])
        extra = {
            name.removeprefix("engine_"): value
            for name, value in arrays.items()
            if name.startswith("engine_")
        }
        state = State(
            numbers["step"],
            arrays["positions"],
            arrays["velocities"],
            arrays.get("cell"),
            extra,
        )
        mark = Mark(
            numbers["energies"],
            numbers["trajectory"],
            numbers["frames"],
            arrays["distance_counts"],
        )
        bonds = Bonds(arrays["bond_pairs"], arrays["bond_lengths"])
        return cls(atoms, bonds, state, mark, Pace(numbers["steps_timed"], numbers["seconds"]))
