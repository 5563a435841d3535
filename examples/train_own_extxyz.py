"""Train a potential on one's own geometries in an extxyz file.

    python examples/train_own_extxyz.py
    python examples/train_own_extxyz.py epochs=300

NOT A DATA SET OF YOUR OWN YET: to have something to run on, this script first writes 200 frames of
the rMD17 ethanol that ships with the package to runs/own-frames.extxyz, in the form that ASE gives to
the result of a calculation. Put the path of your file in its place. Energies and forces in it count as
eV and eV/Å unless you say ``energy_unit=kcal/mol`` (or Hartree ...); under other names than ASE's they
are found with ``energy_key=REF_energy forces_key=REF_forces``.
"""

import sys
from pathlib import Path

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from training import load_config, train
from training.datasets import load_split

STAND_IN = Path("runs/own-frames.extxyz")


def write_stand_in(path: Path) -> None:
    """Write labelled frames as a DFT run driven by ASE would leave them."""
    structures = []
    for frame in load_split("rmd17:ethanol", train=200, valid=0, test=1).train:
        atoms = Atoms(frame.atomic_numbers, frame.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        structures.append(atoms)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, structures)
    print(f"{path}: {len(structures)} frames, a stand-in for your own")


def main() -> None:
    write_stand_in(STAND_IN)

    # A tenth of the frames each is kept for validation and test, chosen by the seed.
    config = load_config(str(STAND_IN), ["name=own", "epochs=100", *sys.argv[1:]])
    result = train(config, overwrite=True)

    errors = result.summary["test"]
    print(f"forces on unseen frames: MAE {errors['forces_mae_meV_per_A']:.1f} meV/Å")
    print(f"for simulations: {result.folder.exported}")


if __name__ == "__main__":
    main()
