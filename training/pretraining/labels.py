"""GFN2-xTB labels along hot trajectories, several molecules at a time.

    python -m training.pretraining.labels molecules.npz labelled.npz --frames 8 --processes 2

Each molecule is heated by Langevin dynamics on GFN2-xTB itself, at a temperature of its own. All atoms
have the mass of carbon: the distribution of geometries does not depend on masses, and without light
atoms a step is three times longer and a few steps make another geometry.
"""

import multiprocessing
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import units

from training.pretraining.storage import Structure, load_structures, save_structures

MASS = 12.0
TIME_STEP = 2.5 * units.fs
FRICTION = 0.02 / units.fs
TEMPERATURES = (200.0, 1000.0)
"""K, uniformly drawn for each molecule."""
MAX_FORCE = 30.0
"""eV/Å; a trajectory that meets a larger one has left chemistry and ends."""


def heat(
    structure: Structure, frames: int, steps: int, seed: int, charge: int = 0
) -> list[Structure]:
    """Label a molecule along a trajectory.

    Args:
        structure: Where to start.
        frames: Labelled geometries to return at most; fewer if GFN2-xTB fails on the way.
        steps: Time steps between them.
        seed: Of temperature and noise.
        charge: Of the molecule, e.
    """
    from tblite.interface import Calculator

    random = np.random.default_rng(seed)
    thermal = units.kB * random.uniform(*TEMPERATURES)
    positions = structure.positions + random.normal(0.0, 0.02, structure.positions.shape)
    velocity = random.normal(0.0, np.sqrt(thermal / MASS), positions.shape)
    decay = np.exp(-FRICTION * TIME_STEP)
    noise = np.sqrt((1.0 - decay**2) * thermal / MASS)
    calculator = Calculator("GFN2-xTB", structure.numbers, positions / units.Bohr, charge)
    calculator.set("verbosity", 0)
    labelled: list[Structure] = []
    result = None
    for step in range(frames * steps):
        calculator.update(positions / units.Bohr)
        try:
            result = calculator.singlepoint(result)
        except RuntimeError:  # The electrons did not converge.
            break
        forces = -np.asarray(result.get("gradient")) * (units.Hartree / units.Bohr)
        if not np.abs(forces).max() < MAX_FORCE:
            break
        if step % steps == steps - 1:
            energy = float(result.get("energy")) * units.Hartree
            labelled.append(
                Structure(structure.numbers, positions.copy(), structure.molecule, energy, forces)
            )
        # Leimkuhler and Matthews' BAOAB without its last half kick, which the next step would repeat.
        velocity = velocity + TIME_STEP / MASS * forces
        positions = positions + 0.5 * TIME_STEP * velocity
        velocity = decay * velocity + noise * random.normal(size=velocity.shape)
        positions = positions + 0.5 * TIME_STEP * velocity
    return labelled


def _heat(task: tuple[Structure, int, int, int, int]) -> list[Structure]:
    return heat(*task)


def main(
    molecules: Annotated[Path, typer.Argument(help="npz file of geometries")],
    out: Annotated[Path, typer.Argument(help="npz file to write")],
    frames: Annotated[int, typer.Option(help="labelled geometries from each start")] = 8,
    steps: Annotated[int, typer.Option(help="time steps of 2.5 fs between them")] = 4,
    processes: Annotated[int, typer.Option(help="molecules at a time")] = 1,
    seed: Annotated[int, typer.Option(help="of temperatures and noise")] = 0,
    charge: Annotated[int, typer.Option(help="of every molecule, e")] = 0,
    prefix: Annotated[str, typer.Option(help="only molecules whose name begins so")] = "",
) -> None:
    """Label geometries with GFN2-xTB."""
    os.environ["OMP_NUM_THREADS"] = "1"
    starts = [s for s in load_structures(molecules) if s.molecule.startswith(prefix)]
    tasks = [(start, frames, steps, seed + k, charge) for k, start in enumerate(starts)]
    labelled: list[Structure] = []
    chunk = max(1, min(20, len(tasks) // (4 * processes)))
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        typer.progressbar(pool.imap(_heat, tasks, chunksize=chunk), length=len(tasks)) as bar,
    ):
        for found in bar:
            labelled += found
    if not labelled:
        raise SystemExit(
            f"GFN2-xTB labelled none of {len(tasks)} molecules: it does not describe them with the charge "
            f"{charge}"
        )
    save_structures(labelled, out)
    typer.echo(f"{len(labelled)} labelled geometries -> {out}")


if __name__ == "__main__":
    typer.run(main)
