"""Vibrations of a molecule from the analytic Hessian, and its free energy as an ideal gas.

    python examples/ase_vibrations.py runs/from-python/potential.pt
    python examples/ase_vibrations.py potential.pt molecule.xyz --temperature 400

Prints frequencies, zero-point energy and Gibbs energy; leaves runs/ase-vibrations/modes.xyz, the modes
as arrows (Jmol, OVITO).
"""

import argparse
from pathlib import Path

from ase.build import molecule
from ase.io import read
from ase.optimize import BFGS
from ase.thermochemistry import IdealGasThermo

from calculators import PotentialCalculator, vibrations

PRESSURE = 101_325.0  # Pa


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential", nargs="?", default="runs/demo/potential.pt")
    parser.add_argument("structure", nargs="?", help="any file that ASE reads; default ethanol")
    parser.add_argument("--temperature", type=float, default=298.15, help="K")
    parser.add_argument("--symmetry", type=int, default=1, help="rotational symmetry number")
    options = parser.parse_args()
    folder = Path("runs/ase-vibrations")
    folder.mkdir(parents=True, exist_ok=True)

    atoms = read(options.structure) if options.structure else molecule("CH3CH2OH")
    atoms.calc = PotentialCalculator(options.potential)
    # Frequencies mean something at a minimum only.
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=1000)

    modes = vibrations(atoms)
    frequencies = modes.get_frequencies()
    for number, frequency in enumerate(frequencies):
        imaginary = abs(frequency.imag) > abs(frequency.real)
        value = frequency.imag if imaginary else frequency.real
        print(f"{number:4d} {value:9.1f}{'i' if imaginary else ' '} cm⁻¹")
    modes.write_jmol(folder / "modes.xyz")
    print(f"zero-point energy {modes.get_zero_point_energy():.3f} eV")
    saddle = sum(frequencies.imag > 30.0)
    if saddle:
        print(f"{saddle} imaginary frequencies: not a minimum, so no free energy")
        return

    thermo = IdealGasThermo(
        modes.get_energies(),
        "nonlinear",
        atoms=atoms,
        potentialenergy=atoms.get_potential_energy(),
        symmetrynumber=options.symmetry,
        spin=0,
    )
    free = thermo.get_gibbs_energy(options.temperature, PRESSURE, verbose=False)
    print(f"Gibbs energy at {options.temperature} K and 1 atm: {free:.3f} eV")


if __name__ == "__main__":
    main()
