"""A mixed system: alanine dipeptide by a potential, the water around it by Amber, at 1 bar.

    python examples/openmm_mixed.py
    python examples/openmm_mixed.py my-peptide-potential.pt --picoseconds 10 --engine python

Without a file the general weights of the package describe the peptide. They are made to be trained
further: good enough to show how it goes, not to draw conclusions from.

Leaves runs/openmm-mixed/: topology.pdb, trajectory.dcd, log.csv, and the exported weights.
"""

import argparse
import sys
from pathlib import Path

import openmm
from openmm import app, unit

from calculators.openmm import StabilityReporter, create_mixed_system
from forcefield import load_potential
from forcefield.export import export_potential
from forcefield.pretrained import BACKBONE


def solvated_peptide() -> tuple[app.Topology, unit.Quantity, app.ForceField]:
    """Alanine dipeptide in a box of TIP3P water."""
    pdb = app.PDBFile(str(Path(__file__).with_name("alanine_dipeptide.pdb")))
    forcefield = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(forcefield, boxSize=openmm.Vec3(2.4, 2.4, 2.4) * unit.nanometer)
    return modeller.topology, modeller.positions, forcefield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential", nargs="?", type=Path)
    parser.add_argument("--picoseconds", type=float, default=2.0)
    parser.add_argument("--engine", choices=("torch", "python"), default="torch")
    parser.add_argument("--platform", help="OpenMM's fastest by default")
    options = parser.parse_args()
    steps = round(2000 * options.picoseconds)
    folder = Path("runs/openmm-mixed")
    folder.mkdir(parents=True, exist_ok=True)
    if options.potential is None:
        options.potential = folder / "general.pt"
        export_potential(load_potential(BACKBONE)[0], options.potential)

    topology, positions, forcefield = solvated_peptide()
    classical = forcefield.createSystem(
        topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, rigidWater=True
    )
    peptide = [a.index for a in topology.atoms() if a.residue.name in ("ACE", "ALA", "NME")]
    system = create_mixed_system(topology, classical, peptide, options.potential, options.engine)
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))
    # Hydrogens of the peptide vibrate: 0.5 fs, whatever the water would allow.
    integrator = openmm.LangevinMiddleIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtoseconds
    )
    arguments = [topology, system, integrator]
    if options.platform:
        arguments.append(openmm.Platform.getPlatformByName(options.platform))
    simulation = app.Simulation(*arguments)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

    with (folder / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, positions, file)
    every = max(1, min(100, steps // 5))
    columns = {"step": True, "potentialEnergy": True, "temperature": True, "density": True}
    simulation.reporters += [
        app.DCDReporter(str(folder / "trajectory.dcd"), every),
        app.StateDataReporter(str(folder / "log.csv"), every, **columns),
        app.StateDataReporter(sys.stdout, max(1, steps // 5), speed=True, **columns),
        StabilityReporter(1000),
    ]
    simulation.step(steps)
    print(*sorted(folder.iterdir()), sep="\n")


if __name__ == "__main__":
    main()
