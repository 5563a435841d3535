"""Relax a molecule, or a crystal together with its cell.

    python examples/ase_relax.py runs/from-python/potential.pt
    python examples/ase_relax.py potential.pt crystal.cif --pressure 5

Leaves runs/ase-relax/: relaxed.extxyz and relax.traj, every step (open it with ``ase gui``).
"""

import argparse
from pathlib import Path

from ase import units
from ase.build import molecule
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS

from calculators import PotentialCalculator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential", nargs="?", default="runs/demo/potential.pt")
    parser.add_argument("structure", nargs="?", help="any file that ASE reads; default ethanol")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--pressure", type=float, default=0.0, help="GPa, for crystals")
    options = parser.parse_args()
    folder = Path("runs/ase-relax")
    folder.mkdir(parents=True, exist_ok=True)

    atoms = read(options.structure) if options.structure else molecule("CH3CH2OH")
    atoms.calc = PotentialCalculator(options.potential)
    before = atoms.get_potential_energy()
    moving = atoms
    if atoms.pbc.all():  # the cell's vectors are six more coordinates
        moving = FrechetCellFilter(atoms, scalar_pressure=options.pressure * units.GPa)
    optimizer = BFGS(moving, trajectory=str(folder / "relax.traj"), logfile=None)
    converged = optimizer.run(fmax=options.fmax, steps=500)

    atoms.write(folder / "relaxed.extxyz")
    state = "converged" if converged else "NOT converged"
    change = atoms.get_potential_energy() - before
    print(f"{state} after {optimizer.nsteps} steps; the energy changed by {change:+.4f} eV")
    if atoms.pbc.all():
        print("cell:", " ".join(f"{value:.4f}" for value in atoms.cell.cellpar()), "Å, degrees")
    print(folder / "relaxed.extxyz")


if __name__ == "__main__":
    main()
