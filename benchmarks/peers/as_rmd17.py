"""Write frames of one molecule in the layout of rMD17, which the programs in this folder read.

    python as_rmd17.py train_300K.xyz test_MD_300K.xyz --name acac --out DIR

Positions in Å, energies and forces in kcal/mol and kcal/mol/Å; the atoms have one order in all frames.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import units

KCAL_PER_MOL = units.kcal / units.mol
"""In eV."""


def convert(source: Path, target: Path) -> None:
    """Convert a file that ASE reads, with energies in eV and forces in eV/Å.

    Raises:
        SystemExit: The frames are not of one molecule in one order.
    """
    frames = ase.io.read(source, ":")
    numbers = frames[0].numbers
    if any(not np.array_equal(frame.numbers, numbers) for frame in frames):
        raise SystemExit(f"{source}: frames differ in their atoms or in the order of these")
    np.savez_compressed(
        target,
        nuclear_charges=numbers,
        coords=np.array([frame.positions for frame in frames]),
        energies=np.array([frame.get_potential_energy() for frame in frames]) / KCAL_PER_MOL,
        forces=np.array([frame.get_forces() for frame in frames]) / KCAL_PER_MOL,
    )


def main() -> None:
    """Convert a training and a test file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--name", required=True, help="what --molecule is to be")
    parser.add_argument("--out", type=Path, required=True, help="folder, --data of the programs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        target = arguments.out / f"rmd17_{arguments.name}_{part}_01.npz"
        convert(getattr(arguments, part), target)


if __name__ == "__main__":
    main()
