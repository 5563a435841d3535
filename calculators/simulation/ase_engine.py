"""Simulations moved by ASE's integrators."""

import json
import warnings
from typing import Any

import ase
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from calculators.ase import PotentialCalculator
from calculators.simulation.engine import (
    WARM_UP,
    Sample,
    State,
    degrees_of_freedom,
    thermalises_centre,
)
from calculators.simulation.nose_hoover import NoseHooverChain
from calculators.simulation.quantities import PICOSECOND
from calculators.simulation.settings import SimulationSettings
from forcefield.errors import ConfigError, EngineError
from forcefield.export import ExportedPotential

BAROSTAT_TIME = 1.0
"""ps; period of the cell's fluctuations."""


def ase_device(platform: str) -> str:
    """Torch's name of the device for a platform that the user named.

    Raises:
        ConfigError: ASE knows no such platform, or there is no such device.
    """
    name = platform.lower()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--platform {platform}: with --engine ase choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--platform cuda: torch finds no CUDA GPU here; choose --platform cpu")
    return name


class ASEEngine:
    """Velocity Verlet, Langevin, Nosé-Hoover or a Langevin barostat around an ASE calculator.

    Args:
        settings: The simulation.
        atoms: Starting structure, prepared; a copy is moved.
        velocities: (n, 3), ASE's unit.
        potential: Loaded, on its device.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        atoms: Atoms,
        velocities: np.ndarray,
        potential: ExportedPotential,
    ) -> None:
        self.settings = settings
        self.step = 0
        self.atoms = atoms.copy()
        self.atoms.set_velocities(velocities)
        self.atoms.calc = PotentialCalculator(potential)
        self._masses = self.atoms.get_masses()[:, None]
        self._random = np.random.default_rng([settings.seed, 1])
        self._time_step = settings.timestep * PICOSECOND
        self._chain: NoseHooverChain | None = None
        self._warm_up()
        self.dynamics: Any = self._make_dynamics()
        self._keep_centre = settings.ensemble != "nve" and not thermalises_centre(settings)

    def _make_dynamics(self) -> Any:
        settings = self.settings
        rate = settings.friction / PICOSECOND
        if settings.ensemble == "npt":
            return self._barostat(rate)
        if settings.ensemble == "nvt" and settings.thermostat == "langevin":
            return Langevin(
                self.atoms,
                self._time_step,
                temperature_K=settings.temperature,
                friction=rate,
                fixcm=False,  # the centre is kept by this class
                rng=self._random,
            )
        if settings.ensemble == "nvt":
            freedom = degrees_of_freedom(self.atoms, settings)
            self._chain = NoseHooverChain(freedom, settings.temperature, rate)
        return VelocityVerlet(self.atoms, self._time_step)

    def _barostat(self, rate: float) -> Any:
        try:
            from ase.md.langevinbaoab import LangevinBAOAB
        except ImportError:
            raise EngineError(
                f"npt with ASE needs its LangevinBAOAB, which ASE {ase.__version__} lacks; "
                "pip install -U ase, or choose --engine openmm"
            ) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces the mass of the cell
            return LangevinBAOAB(
                self.atoms,
                self._time_step,
                temperature_K=self.settings.temperature,
                externalstress=-self.settings.pressure * units.bar,
                hydrostatic=True,
                T_tau=1.0 / rate,
                P_tau=BAROSTAT_TIME * PICOSECOND,
                rng=self._random,
            )

    def _warm_up(self) -> None:
        properties = ["energy", "forces"]
        if self.settings.ensemble == "npt":
            properties.append("stress")
        for _ in range(WARM_UP):
            self.atoms.calc.calculate(self.atoms, properties)

    def advance(self, steps: int) -> None:
        """Integrate; see :class:`~calculators.simulation.engine.Engine`."""
        for _ in range(steps):
            if self._chain is not None:
                self._couple()
            self.dynamics.step()
            if self._chain is not None:
                self._couple()
            if self._keep_centre:
                self._stop_centre()
            self.step += 1

    def _couple(self) -> None:
        """Half a step of the thermostat."""
        assert self._chain is not None
        factor = self._chain.propagate(self.atoms.get_kinetic_energy(), 0.5 * self._time_step)
        self.atoms.set_momenta(factor * self.atoms.get_momenta())

    def _stop_centre(self) -> None:
        """Take out the momentum. Friction is the same for all atoms, so the rest does not notice."""
        momenta = self.atoms.get_momenta()
        momenta -= self._masses * (momenta.sum(axis=0) / self._masses.sum())
        self.atoms.set_momenta(momenta)

    def sample(self) -> Sample:
        """Energies and coordinates of this step."""
        atoms = self.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        return Sample(
            self.step,
            atoms.get_positions(),
            atoms.get_velocities(),
            atoms.get_forces(),
            float(potential),
            float(kinetic),
            None if self._chain is None else potential + kinetic + self._chain.energy(),
            atoms.cell.array.copy() if atoms.pbc.any() else None,
        )

    def state(self) -> State:
        """Positions, velocities, random numbers, thermostat and barostat."""
        random = json.dumps(self._random.bit_generator.state)
        extra = {"momenta": self.atoms.get_momenta(), "random": np.array(random)}
        if self._chain is not None:
            extra["chain"] = np.stack([self._chain.coordinates, self._chain.momenta])
        if self.settings.ensemble == "npt":
            extra["barostat"] = np.array([self.dynamics.p_eps, self.dynamics.force_eps])
        cell = self.atoms.cell.array.copy() if self.atoms.pbc.any() else None
        return State(
            self.step, self.atoms.get_positions(), self.atoms.get_velocities(), cell, extra
        )

    def restore(self, state: State) -> None:
        """Go on from a state; exactly, if it is one of this engine."""
        self.step = state.step
        if state.cell is not None:
            self.atoms.set_cell(state.cell)
        self.atoms.set_positions(state.positions)
        self.atoms.set_velocities(state.velocities)
        extra = state.extra
        if "momenta" in extra:  # velocities times masses need not give the same last digit
            self.atoms.set_momenta(extra["momenta"])
        if "random" in extra:
            self._random.bit_generator.state = json.loads(str(extra["random"]))
        if "chain" in extra and self._chain is not None:
            self._chain.coordinates, self._chain.momenta = extra["chain"].copy()
        if self.settings.ensemble == "npt":
            random = self._random.bit_generator.state
            self.dynamics = self._make_dynamics()
            if "barostat" in extra:
                self.dynamics.p_eps, self.dynamics.force_eps = extra["barostat"].tolist()
            self._random.bit_generator.state = random

    def describe(self) -> dict[str, Any]:
        """Integrator, platform and versions."""
        name = type(self.dynamics).__name__
        if self._chain is not None:
            name = f"NoseHooverChain around {name}"
        potential = self.atoms.calc.potential
        return {
            "engine": "ASE",
            "integrator": name,
            "platform": next(potential.module.parameters()).device.type,
            "force": "PotentialCalculator",
        }
