"""A peptide from its sequence: build it, simulate it with Amber, look for its slow motions.

    python examples/featurize_peptide.py
    python examples/featurize_peptide.py --sequence YYDPETGTWY --nanoseconds 10

The default is chignolin (CLN025), from a random conformation. Amber14 with implicit solvent (GBn2) runs in
OpenMM; features come from the weights that ship with the package, one token for each residue. A fold takes
microseconds: what a short run shows is how the chain relaxes (1 ns takes a quarter of an hour on one core).
Needs rdkit.

Leaves runs/peptide/: peptide.pdb, trajectory.dcd, features.h5, report/report.html.
"""

import argparse
import io
from pathlib import Path

import openmm
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import AllChem

from featurizers import TrajectoryFeaturizer, read_features
from featurizers.analysis import AnalysisSettings, analyze
from featurizers.featurize import featurize

FRAME = 1.0
"""Time between frames, ps."""


def build(sequence: str, force_field: app.ForceField) -> app.Modeller:
    """A peptide with charged ends, in a random conformation."""
    molecule = Chem.AddHs(Chem.MolFromSequence(sequence))
    if AllChem.EmbedMolecule(molecule, randomSeed=1, useRandomCoords=True) != 0:
        raise SystemExit(f"no geometry was found for {sequence}")
    # Hydrogens come from the force field's templates, which know protonation states.
    pdb = app.PDBFile(io.StringIO(Chem.MolToPDBBlock(Chem.RemoveHs(molecule))))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(force_field)
    return modeller


def simulate(sequence: str, nanoseconds: float, folder: Path) -> None:
    """Langevin dynamics at 300 K with a time step of 4 fs."""
    force_field = app.ForceField("amber14-all.xml", "implicit/gbn2.xml")
    peptide = build(sequence, force_field)
    system = force_field.createSystem(
        peptide.topology, constraints=app.HBonds, hydrogenMass=3 * unit.amu
    )
    integrator = openmm.LangevinMiddleIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 4 * unit.femtoseconds
    )
    simulation = app.Simulation(peptide.topology, system, integrator)
    simulation.context.setPositions(peptide.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    with (folder / "peptide.pdb").open("w") as file:
        state = simulation.context.getState(positions=True)
        app.PDBFile.writeFile(peptide.topology, state.getPositions(), file)
    every = round(1000 * FRAME / 4)
    simulation.reporters.append(app.DCDReporter(str(folder / "trajectory.dcd"), every))
    simulation.step(round(nanoseconds * 1e6 / 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence", default="YYDPETGTWY")
    parser.add_argument("--nanoseconds", type=float, default=1.0)
    parser.add_argument("--lag", default="20ps")
    options = parser.parse_args()
    folder = Path("runs/peptide")
    folder.mkdir(parents=True, exist_ok=True)
    simulate(options.sequence, options.nanoseconds, folder)

    features = folder / "features.h5"
    done = featurize(
        TrajectoryFeaturizer.pretrained(),
        [folder / "trajectory.dcd"],
        features,
        folder / "peptide.pdb",
        tokens="residue",
        frame_time=FRAME,
        overwrite=True,
    )
    print(f"{done.frames} frames of {done.tokens} residues, {done.frames_per_second:.0f} frames/s")

    settings = AnalysisSettings(lag=options.lag, method="linear", states=2)
    result = analyze(
        read_features(features), settings, folder / "report", name=options.sequence, overwrite=True
    )
    slowest = result.summary["slowest_timescale"]
    print(f"slowest motion {slowest['ps']:.0f} ± {slowest['standard_error_ps']:.0f} ps")
    print(f"report: {folder / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
