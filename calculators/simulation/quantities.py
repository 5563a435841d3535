"""Quantities as a person writes them: "10ps", "0.5 fs", "1/ps", "1bar".

Times are kept in ps, rates in 1/ps, pressures in bar; ASE's and OpenMM's units live with the engines.
"""

import re

from ase import units

PICOSECOND: float = 1000.0 * units.fs
"""One ps in ASE's unit of time, Å sqrt(amu/eV)."""

TIMES: dict[str, float] = {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6, "µs": 1e6}
PRESSURES: dict[str, float] = {
    "bar": 1.0,
    "kbar": 1e3,
    "atm": 101325.0 * units.Pascal / units.bar,
    "Pa": units.Pascal / units.bar,
    "kPa": 1e3 * units.Pascal / units.bar,
    "MPa": 1e6 * units.Pascal / units.bar,
    "GPa": units.GPa / units.bar,
}
TEMPERATURES: dict[str, float] = {"K": 1.0}
WALL_TIMES: dict[str, float] = {"s": 1.0, "min": 60.0, "h": 3600.0}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def parse_time(value: object) -> float:
    """Picoseconds of a text such as "10ps", "0.5 fs", "1ns"; a number is taken as ps.

    Raises:
        ValueError: No number, no unit, or an unknown unit.
    """
    return _parse(value, TIMES, "10ps")


def parse_pressure(value: object) -> float:
    """Bar of a text such as "1bar", "1 atm", "0.1MPa"; a number is taken as bar.

    Raises:
        ValueError: No number, no unit, or an unknown unit.
    """
    return _parse(value, PRESSURES, "1bar")


def parse_temperature(value: object) -> float:
    """K of a text such as "300" or "300K".

    Raises:
        ValueError: No number, or an unknown unit.
    """
    return _parse(value, TEMPERATURES, "300K", default="K")


def parse_wall_time(value: object) -> float:
    """Seconds of a text such as "30s" or "5min"; a number is taken as seconds.

    Raises:
        ValueError: No number, no unit, or an unknown unit.
    """
    return _parse(value, WALL_TIMES, "30s")


def parse_rate(value: object) -> float:
    """1/ps of a text such as "1/ps", "0.01 /fs", "1 ps^-1"; a number is taken as 1/ps.

    Raises:
        ValueError: No number, no unit, or an unknown unit.
    """
    if not isinstance(value, str):
        return _parse(value, TIMES, "1/ps")
    match = re.fullmatch(
        rf"\s*({_NUMBER})\s*(?:/\s*([^\s^]+)|([^\s^/]+)\s*(?:\^|\*\*)?\s*-1)\s*", value
    )
    if match is None:
        raise ValueError(f"'{value}' is not a rate with a unit, such as 1/ps")
    unit = match[2] or match[3]
    if unit not in TIMES:
        raise ValueError(f"unknown unit of time '{unit}'; known are {', '.join(TIMES)}")
    return float(match[1]) / TIMES[unit]


def _parse(value: object, known: dict[str, float], example: str, default: str = "") -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(rf"\s*({_NUMBER})\s*(\S*)\s*", str(value))
    if match is None:
        raise ValueError(f"'{value}' is not a number with a unit, such as {example}")
    unit = match[2] or default
    if not unit:
        raise ValueError(f"'{value}' has no unit; write it like {example}")
    if unit not in known:
        raise ValueError(f"unknown unit '{unit}' in '{value}'; known are {', '.join(known)}")
    return float(match[1]) * known[unit]
