"""Unit conversions, all derived from :mod:`ase.units` (CODATA 2014), none typed in.

Inside the project lengths are in Å, energies in eV, forces in eV/Å and stresses in eV/Å³. Each
constant below is the size of the named unit in those units, so ``value_in_eV = value * KCAL_PER_MOL``.
"""

from ase import units as _ase

ANGSTROM: float = _ase.Angstrom
NANOMETER: float = _ase.nm
BOHR: float = _ase.Bohr

EV: float = _ase.eV
MEV: float = 1e-3 * _ase.eV
KCAL_PER_MOL: float = _ase.kcal / _ase.mol
KJ_PER_MOL: float = _ase.kJ / _ase.mol
HARTREE: float = _ase.Hartree
RYDBERG: float = _ase.Rydberg

ENERGY_UNITS: dict[str, float] = {
    "eV": EV,
    "meV": MEV,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
    "Hartree": HARTREE,
    "Rydberg": RYDBERG,
}
"""Energy units that a user can name, in eV."""

LENGTH_UNITS: dict[str, float] = {"Angstrom": ANGSTROM, "nm": NANOMETER, "Bohr": BOHR}
"""Length units that a user can name, in Å."""
