"""What a user can say about a file: its units, and the names under which its labels are stored."""

import difflib
from dataclasses import dataclass

from forcefield.errors import ConfigError
from forcefield.units import ENERGY_UNITS, LENGTH_UNITS

# Spellings met in files (the e_unit and r_unit of sGDML) and on command lines, in lower case.
_ENERGY_SPELLINGS = {
    "ev": "eV",
    "electronvolt": "eV",
    "mev": "meV",
    "kcal/mol": "kcal/mol",
    "kcal mol-1": "kcal/mol",
    "kcal": "kcal/mol",
    "kj/mol": "kJ/mol",
    "kj mol-1": "kJ/mol",
    "hartree": "Hartree",
    "ha": "Hartree",
    "eh": "Hartree",
    "rydberg": "Rydberg",
    "ry": "Rydberg",
}
_LENGTH_SPELLINGS = {
    "angstrom": "Angstrom",
    "ang": "Angstrom",
    "a": "Angstrom",
    "å": "Angstrom",
    "nm": "nm",
    "nanometer": "nm",
    "bohr": "Bohr",
}


def energy_unit_name(text: str) -> str:
    """The project's name of an energy unit in any of its spellings.

    Raises:
        ConfigError: Not an energy unit.
    """
    return _unit_name(text, _ENERGY_SPELLINGS, "energy")


def length_unit_name(text: str) -> str:
    """The project's name of a length unit in any of its spellings.

    Raises:
        ConfigError: Not a length unit.
    """
    return _unit_name(text, _LENGTH_SPELLINGS, "length")


def _unit_name(text: str, spellings: dict[str, str], kind: str) -> str:
    name = spellings.get(text.strip().lower())
    if name is None:
        near = difflib.get_close_matches(text.lower(), spellings, n=1)
        hint = f"; did you mean '{spellings[near[0]]}'?" if near else ""
        known = ", ".join(dict.fromkeys(spellings.values()))
        raise ConfigError(f"unknown {kind} unit '{text}'{hint} Known {kind} units: {known}")
    return name


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file of labelled geometries.

    Attributes:
        energy_unit: Unit of the energies; None takes what the file states or its format fixes.
        length_unit: Unit of positions and cells; None as above.
        forces_unit: An energy and a length unit, such as "Hartree/Bohr"; None takes
            energy unit / length unit.
        energy_key: Name of the energies in files that ASE reads; None takes ASE's own results.
        forces_key: Name of the forces in files that ASE reads; None takes ASE's own results.
        stress_key: Name of the stresses in files that ASE reads, or of virials, if "virial" is a part
            of it; None takes ASE's own results.
    """

    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None

    def scales(self, energy_default: str, length_default: str) -> tuple[float, float, float]:
        """Factors from the file's energies, lengths and forces to eV, Å and eV/Å.

        Args:
            energy_default: Energy unit if the user states none.
            length_default: Length unit if the user states none.

        Raises:
            ConfigError: A unit is unknown.
        """
        energy = ENERGY_UNITS[energy_unit_name(self.energy_unit or energy_default)]
        length = LENGTH_UNITS[length_unit_name(self.length_unit or length_default)]
        if self.forces_unit is None:
            return energy, length, energy / length
        per_energy, slash, per_length = self.forces_unit.rpartition("/")
        if not slash:
            raise ConfigError(
                f"forces_unit '{self.forces_unit}' is not an energy over a length; "
                "write for instance 'eV/Angstrom', 'kcal/mol/Angstrom' or 'Hartree/Bohr'"
            )
        forces = ENERGY_UNITS[energy_unit_name(per_energy)]
        return energy, length, forces / LENGTH_UNITS[length_unit_name(per_length)]
