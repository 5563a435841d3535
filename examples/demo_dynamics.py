"""The demo's simulations: ethanol at 300 K, thermalised, then at constant energy, in ASE or OpenMM.

    python examples/demo_dynamics.py openmm runs/demo --picoseconds 20

Writes <engine>.npz into the run's folder. The demo runs both engines at once, one process each.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from calculators import PotentialCalculator
from training.datasets import load_split

TIME_STEP = 0.5  # fs
TEMPERATURE = 300.0  # K
FRICTION = 10.0  # 1/ps, strong: the thermostat has two picoseconds
LOG_INTERVAL = 20  # steps
FRAME_INTERVAL = 4  # steps; a C-H bond swings once in 22 steps
FRAMES = 400


class Recorder:
    """Collects what the report shows, and tells a person how far the run is."""

    def __init__(self, engine: str, total_steps: int) -> None:
        self.engine = engine
        self.total_steps = total_steps
        self.rows: list[tuple[float, float, float, float]] = []
        self.frames: list[np.ndarray] = []
        self.start = time.perf_counter()
        self.next_report = 0.1

    def log(self, step: int, potential: float, kinetic: float, atoms: int, constant: bool) -> None:
        """Keep energies in eV; ``constant`` marks the part at constant energy."""
        # Without a thermostat the centre of mass stays where it is.
        freedom = 3 * atoms - (3 if constant else 0)
        temperature = 2.0 * kinetic / (freedom * units.kB)
        if not temperature < 10 * TEMPERATURE:
            sys.exit(
                f"{self.engine}: {temperature:.0f} K after {step * TIME_STEP / 1000:.2f} ps: the "
                "molecule left the geometries that the potential has learned; train it longer"
            )
        self.rows.append((step * TIME_STEP / 1000, temperature, potential + kinetic, constant))
        if step >= self.next_report * self.total_steps:
            self.next_report += 0.1
            pace = 1000 * (time.perf_counter() - self.start) / step
            print(
                f"  {self.engine:6} {step * TIME_STEP / 1000:5.1f} ps  {temperature:4.0f} K  "
                f"{pace:.2f} ms per step",
                flush=True,
            )

    def save(self, folder: Path, numbers: np.ndarray) -> None:
        """Write time (ps), temperature (K), total energy (eV), stage and frames (Å)."""
        time_ps, temperature, energy, constant = np.array(self.rows).T
        path = folder / f"{self.engine}.npz"
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(
            temporary,
            time=time_ps,
            temperature=temperature,
            energy=energy,
            constant=constant.astype(bool),
            frames=np.array(self.frames),
            numbers=numbers,
        )
        temporary.replace(path)


def starting_structure(potential: Path) -> Atoms:
    """The training frame of lowest energy, relaxed."""
    frame = min(load_split("rmd17:ethanol").train, key=lambda frame: frame.energy)
    atoms = Atoms(frame.atomic_numbers, frame.positions)
    atoms.calc = PotentialCalculator(potential)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    return atoms


def kinetic_energy_for_300_kelvin(atoms: Atoms, minimum: float, potential: float) -> float:
    """The kinetic energy with which a run at constant energy is at 300 K on average, eV.

    A thermostat lets the total energy of nine atoms vary by a fifth; equipartition tells what it is
    on average: kT for each of the 3n - 6 vibrations and kT/2 for each of the 3 rotations.
    """
    thermal = units.kB * TEMPERATURE * (3 * len(atoms) - 6 + 1.5)
    return max(thermal - (potential - minimum), 0.2 * thermal)


def run_ase(atoms: Atoms, thermal: int, constant: int, recorder: Recorder) -> None:
    """Langevin, then velocity Verlet."""
    step = TIME_STEP * units.fs
    minimum = atoms.get_potential_energy()
    friction = FRICTION / (1000 * units.fs)
    stages = (
        Langevin(atoms, step, temperature_K=TEMPERATURE, friction=friction, fixcm=False),
        VelocityVerlet(atoms, step),
    )
    for stage, (dynamics, steps) in enumerate(zip(stages, (thermal, constant), strict=True)):
        offset = stage * thermal

        def log(dynamics=dynamics, offset=offset, stage=stage) -> None:
            recorder.log(
                offset + dynamics.nsteps,
                atoms.get_potential_energy(),
                atoms.get_kinetic_energy(),
                len(atoms),
                stage == 1,
            )

        def frame() -> None:
            if len(recorder.frames) < FRAMES:
                recorder.frames.append(atoms.get_positions())

        dynamics.attach(log, interval=LOG_INTERVAL)
        if stage == 1:
            Stationary(atoms)
            kinetic = kinetic_energy_for_300_kelvin(atoms, minimum, atoms.get_potential_energy())
            atoms.set_momenta(atoms.get_momenta() * np.sqrt(kinetic / atoms.get_kinetic_energy()))
            dynamics.attach(frame, interval=FRAME_INTERVAL)
        dynamics.run(steps)


def run_openmm(
    atoms: Atoms, potential: Path, thermal: int, constant: int, recorder: Recorder
) -> None:
    """LangevinMiddle, then Verlet, with the potential as a TorchForce."""
    import openmm
    from openmm import unit

    from calculators.openmm import ENERGY, LENGTH, torch_force

    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(torch_force(potential, atoms.numbers))
    step = TIME_STEP * unit.femtoseconds
    platform = openmm.Platform.getPlatformByName("Reference")

    def run(integrator, positions, velocities, offset: int, steps: int, stage: int):
        context = openmm.Context(system, integrator, platform)
        context.setPositions(positions)
        context.setVelocities(velocities)
        for done in range(0, steps + 1, FRAME_INTERVAL):
            if done % LOG_INTERVAL == 0:
                state = context.getState(energy=True)
                energies = (state.getPotentialEnergy(), state.getKineticEnergy())
                recorder.log(
                    offset + done, *(e._value / ENERGY for e in energies), len(atoms), stage == 1
                )
            if stage == 1 and len(recorder.frames) < FRAMES:
                state = context.getState(positions=True)
                recorder.frames.append(LENGTH * state.getPositions(asNumpy=True)._value)
            if done < steps:
                integrator.step(FRAME_INTERVAL)
        return context.getState(positions=True, velocities=True, energy=True)

    thermostat = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, step)
    thermostat.setRandomNumberSeed(1)
    rest = np.zeros((len(atoms), 3))
    state = run(thermostat, atoms.positions / LENGTH, rest, 0, thermal, 0)

    masses = atoms.get_masses()
    velocities = state.getVelocities(asNumpy=True)._value
    velocities = velocities - masses @ velocities / masses.sum()
    kinetic = 0.5 * (masses @ (velocities**2).sum(axis=1)) / ENERGY
    potential_energy = state.getPotentialEnergy()._value / ENERGY
    target = kinetic_energy_for_300_kelvin(atoms, atoms.get_potential_energy(), potential_energy)
    velocities *= np.sqrt(target / kinetic)
    positions = state.getPositions(asNumpy=True)._value
    run(openmm.VerletIntegrator(step), positions, velocities, thermal, constant, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("ase", "openmm"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picoseconds", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(1)  # ASE's Langevin draws from numpy's global generator

    potential = options.folder / "potential.pt"
    constant = LOG_INTERVAL * round(1000 * options.picoseconds / TIME_STEP / LOG_INTERVAL)
    thermal = LOG_INTERVAL * max(1, constant // (10 * LOG_INTERVAL))
    atoms = starting_structure(potential)
    recorder = Recorder(options.engine, thermal + constant)
    if options.engine == "ase":
        run_ase(atoms, thermal, constant, recorder)
    else:
        run_openmm(atoms, potential, thermal, constant, recorder)
    recorder.save(options.folder, atoms.numbers)


if __name__ == "__main__":
    main()
