"""Molecular dynamics in OpenMM through TorchForce, with a trajectory and a log.

    python examples/openmm_md.py
    python examples/openmm_md.py runs/from-python/potential.pt --picoseconds 2

Leaves runs/openmm-md/: topology.pdb, trajectory.dcd, trajectory.xtc, log.csv.
"""

import argparse
import sys
from pathlib import Path

import openmm
from ase.build import molecule
from openmm import app, unit

from calculators.openmm import StabilityReporter, create_system


def ethanol() -> tuple[app.Topology, unit.Quantity]:
    """Topology and positions; a file would do as well: ``app.PDBFile("molecule.pdb")``."""
    atoms = molecule("CH3CH2OH")
    topology = app.Topology()
    residue = topology.addResidue("EOH", topology.addChain())
    for index, symbol in enumerate(atoms.get_chemical_symbols()):
        topology.addAtom(f"{symbol}{index + 1}", app.Element.getBySymbol(symbol), residue)
    return topology, atoms.positions * unit.angstrom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential", nargs="?", default="runs/demo/potential.pt")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    options = parser.parse_args()
    steps = round(2000 * options.picoseconds)
    folder = Path("runs/openmm-md")
    folder.mkdir(parents=True, exist_ok=True)

    topology, positions = ethanol()
    # engine="python" does the same where the TorchForce plugin is missing.
    system = create_system(topology, options.potential, engine="torch")
    integrator = openmm.LangevinMiddleIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtoseconds
    )
    # The model does the work, so a small molecule runs fastest on the platform without threads.
    # On a GPU: create_system(..., device="cuda") and the platform "CUDA".
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

    with (folder / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, positions, file)
    columns = {"time": True, "potentialEnergy": True, "temperature": True}
    simulation.reporters += [
        app.DCDReporter(str(folder / "trajectory.dcd"), 20),
        app.XTCReporter(str(folder / "trajectory.xtc"), 20),
        app.StateDataReporter(str(folder / "log.csv"), 20, **columns),
        app.StateDataReporter(sys.stdout, max(1, steps // 5), speed=True, **columns),
        StabilityReporter(1000),
    ]
    simulation.step(steps)
    print(*sorted(folder.iterdir()), sep="\n")


if __name__ == "__main__":
    main()
