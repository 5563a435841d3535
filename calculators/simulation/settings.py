"""What a user can set for a simulation, with units and defaults.

The descriptions of the fields are the documentation: ``simulate-potential --help`` prints them.
"""

import difflib
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from calculators.simulation.quantities import (
    parse_pressure,
    parse_rate,
    parse_temperature,
    parse_time,
    parse_wall_time,
)
from forcefield.errors import ConfigError


def _written(unit: str) -> PlainSerializer:
    """Files show the quantity with its unit, in full precision."""
    return PlainSerializer(lambda value: f"{value!r} {unit}", when_used="json")


Time = Annotated[float, BeforeValidator(parse_time), _written("ps")]
WallTime = Annotated[float, BeforeValidator(parse_wall_time), _written("s")]
Rate = Annotated[float, BeforeValidator(parse_rate), _written("/ps")]
Pressure = Annotated[float, BeforeValidator(parse_pressure), _written("bar")]
Temperature = Annotated[float, BeforeValidator(parse_temperature), _written("K")]

MAY_CHANGE = ("time", "threads", "checkpoint")
"""Settings that a continued run may have anew."""


class SimulationSettings(BaseModel):
    """One simulation. Times are in ps, temperatures in K, pressures in bar; texts carry units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    potential: str = Field(description="exported potential (potential.pt)")
    structure: str = Field(
        default="", description="starting structure: PDB or any file that ASE reads, last frame"
    )
    engine: Literal["openmm", "ase"] = Field(default="openmm", description="who moves the atoms")
    ensemble: Literal["nve", "nvt", "npt"] = Field(
        default="nvt",
        description="constant energy (nve), temperature (nvt), or temperature and pressure (npt)",
    )
    temperature: Annotated[Temperature, Field(ge=0.0, le=1e5)] = Field(
        default=300.0, description="temperature of thermostat and starting velocities, such as 300K"
    )
    pressure: Pressure = Field(default=1.0, description="for npt, such as 1bar")
    time: Annotated[Time, Field(gt=0.0)] = Field(
        default=10.0, description="length of the simulation, such as 10ps or 1ns"
    )
    timestep: Annotated[Time, Field(gt=0.0)] = Field(
        default=0.0005, description="time step, such as 0.5fs; nothing is constrained"
    )
    thermostat: Literal["langevin", "nose-hoover"] = Field(
        default="langevin", description="for nvt and npt"
    )
    friction: Annotated[Rate, Field(gt=0.0)] = Field(
        default=1.0, description="friction of langevin, collision rate of nose-hoover, such as 1/ps"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of starting velocities, thermostat and barostat"
    )
    velocities: Literal["thermal", "file", "zero"] = Field(
        default="thermal",
        description="at the start: Maxwell-Boltzmann (thermal), those in the structure's file, or none",
    )
    relax: bool = Field(default=False, description="minimise the energy before the start")
    every: Annotated[int, Field(ge=1)] = Field(
        default=20, description="steps between frames, and between lines of energies.csv"
    )
    format: Literal["dcd", "xtc", "extxyz"] = Field(
        default="dcd", description="of the trajectory; extxyz holds energies and forces, too"
    )
    uncertainty: bool = Field(
        default=False,
        description="estimate the errors of every frame (each takes as long as 30 to 50 steps)",
    )
    stop_at_collapse: bool = Field(
        default=False, description="end the run when a bond has changed by more than 0.5 Å"
    )
    isolated: bool = Field(default=False, description="ignore the cell in the structure's file")
    platform: str = Field(
        default="auto",
        description="auto (a GPU if there is one), cpu, cuda, with openmm also reference and opencl",
    )
    force: Literal["auto", "torch", "python"] = Field(
        default="auto",
        description="how OpenMM calls the potential, as TorchForce or PythonForce; auto: TorchForce "
        "where the plugin is installed, PythonForce with --compile, for systems of more than 8000 pairs "
        "of atoms and for molecules on a GPU",
    )
    dtype: Literal["float32", "float64"] | None = Field(
        default=None, description="precision of the potential; empty: that of its training"
    )
    compile: bool = Field(
        default=False,
        description="compile the potential for this processor or GPU (one to two minutes, once for "
        "an architecture), which makes steps of small molecules three to four times as fast, of larger "
        "systems two to three times; OpenMM then calls it as PythonForce unless --force says otherwise",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="CPU threads; empty: one up to 64 atoms, else as torch has it"
    )
    checkpoint: Annotated[WallTime, Field(ge=0.0)] = Field(
        default=30.0, description="wall time between two checkpoints, such as 30s"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "SimulationSettings":
        if self.engine == "ase" and self.ensemble == "npt" and self.thermostat == "nose-hoover":
            raise ValueError(
                "npt with the ASE engine runs with the langevin thermostat; leave --thermostat out, "
                "or choose --engine openmm"
            )
        if self.ensemble != "nve" and self.temperature == 0.0:
            raise ValueError(
                f"{self.ensemble} needs a temperature above 0 K; to look for a minimum use --relax"
            )
        return self

    def check_effect(self, given: Iterable[str]) -> None:
        """Refuse settings that this kind of run does not look at.

        Args:
            given: Names of those that the user gave.

        Raises:
            ConfigError: Names one, and what it is for.
        """
        nve = self.ensemble == "nve"
        without = {
            "pressure": self.ensemble != "npt" and "--ensemble npt",
            "thermostat": nve and "--ensemble nvt or npt",
            "friction": nve and "--ensemble nvt or npt",
            "force": self.engine == "ase" and "--engine openmm",
        }
        for name in given:
            if without.get(name):
                raise ConfigError(
                    f"--{name} has no effect here: it is for {without[name]}; leave it out, or choose that"
                )

    @property
    def steps(self) -> int:
        """Steps of the whole run: whole intervals between frames, at least the time asked for."""
        return self.every * ceil(self.time / self.timestep / self.every - 1e-9)


def make_settings(values: Mapping[str, Any]) -> SimulationSettings:
    """Check values by name.

    Raises:
        ConfigError: One line per mistake, each naming its option.
    """
    try:
        return SimulationSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def changed_settings(
    old: SimulationSettings, new: SimulationSettings
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, as they are written, old and new."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def _explain(error: Any) -> str:
    """One of pydantic's findings in one short line."""
    name = str(error["loc"][0]) if error["loc"] else ""
    option = f"--{name.replace('_', '-')}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, SimulationSettings.model_fields, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown setting '{name}'{hint}"
    if error["type"] == "missing":
        return f"{name} is missing"
    if not name:
        return message
    if error["type"] == "value_error":
        return f"{option}: {message}"
    message = message.replace("Input should be", "must be").partition(", unable to parse")[0]
    return f"{option} {message[0].lower()}{message[1:]}, found {error['input']!r}"
