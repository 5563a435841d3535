"""Molecular dynamics in ASE: relax, thermalise with Langevin, then run at constant energy.

    python examples/ase_md.py
    python examples/ase_md.py runs/from-python/potential.pt --picoseconds 2

Leaves runs/ase-md/: nve.log (energies, temperature) and nve.traj (open it with ``ase gui``).
"""

import argparse
from pathlib import Path

from ase import Atoms, units
from ase.build import molecule
from ase.io import Trajectory
from ase.md import MDLogger
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from calculators import PotentialCalculator

TIME_STEP = 0.5  # fs: bonds to hydrogen swing once in 9 fs


def thermalise(atoms: Atoms, steps: int) -> None:
    """Relax and bring to 300 K."""
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    friction = 0.01 / units.fs
    Langevin(atoms, TIME_STEP * units.fs, temperature_K=300, friction=friction, fixcm=False).run(
        steps
    )
    Stationary(atoms)  # no drift through space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential", nargs="?", default="runs/demo/potential.pt")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    options = parser.parse_args()
    steps = round(1000 * options.picoseconds / TIME_STEP)
    folder = Path("runs/ase-md")
    folder.mkdir(parents=True, exist_ok=True)

    atoms = molecule("CH3CH2OH")
    atoms.calc = PotentialCalculator(options.potential)
    thermalise(atoms, steps // 5)

    dynamics = VelocityVerlet(atoms, TIME_STEP * units.fs)
    log = folder / "nve.log"
    dynamics.attach(MDLogger(dynamics, atoms, log, peratom=False, mode="w"), interval=20)
    with Trajectory(folder / "nve.traj", "w", atoms) as trajectory:
        dynamics.attach(trajectory.write, interval=20)
        before = atoms.get_total_energy()
        dynamics.run(steps)
        drift = (atoms.get_total_energy() - before) / len(atoms)

    print(
        f"{options.picoseconds} ps at constant energy, {atoms.get_temperature():.0f} K at the end"
    )
    print(f"the total energy changed by {1000 * drift:+.3f} meV per atom")
    print(f"{log}\n{folder / 'nve.traj'}")


if __name__ == "__main__":
    main()
