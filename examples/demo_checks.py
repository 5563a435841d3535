"""The demo's measurements: do all engines give the same forces, and what does each cost per step?"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import openmm
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from calculators import PotentialCalculator
from calculators.openmm import ENERGY, FORCE, LENGTH, python_force, torch_force
from forcefield import build_graph, load_exported, load_potential
from training.datasets import Frame
from training.run_folder import RunFolder

ENGINES = ("ASE", "OpenMM TorchForce", "OpenMM PythonForce")
STEPS, ROUNDS = 40, 6


@dataclass(frozen=True)
class Agreement:
    """Largest differences of an engine from the trained model.

    Attributes:
        engine: Its name.
        energy: eV.
        forces: eV/Å.
    """

    engine: str
    energy: float
    forces: float


def make_context(make: Callable, potential, frame: Frame, platform: str) -> openmm.Context:
    """An OpenMM Context of one molecule with a force made by ``make``."""
    system = openmm.System()
    for mass in Atoms(frame.atomic_numbers).get_masses():
        system.addParticle(mass)
    system.addForce(make(potential, frame.atomic_numbers))
    properties = {"Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(1e-7),  # ps
        openmm.Platform.getPlatformByName(platform),
        properties,
    )
    context.setPositions(frame.positions / LENGTH)
    return context


def agreement(folder: RunFolder, frames: Sequence[Frame]) -> list[Agreement]:
    """Compare every engine, from the exported file, with the eager model, from the weights file."""
    eager, _ = load_potential(folder.weights)
    exported = load_exported(folder.exported)
    calculator = PotentialCalculator(exported)
    contexts = {
        f"{name}, {platform} platform": make_context(make, exported, frames[0], platform)
        for name, make in zip(ENGINES[1:], (torch_force, python_force), strict=True)
        for platform in ("Reference", "CPU")
    }
    differences = {name: [0.0, 0.0] for name in (ENGINES[0], *contexts)}

    def compare(name: str, energy: float, forces: np.ndarray) -> None:
        worst = differences[name]
        worst[0] = max(worst[0], abs(energy - expected["energy"].item()))
        worst[1] = max(worst[1], np.abs(forces - expected["forces"].numpy()).max())

    for frame in frames:
        graph = build_graph(frame.positions, frame.atomic_numbers, eager.cutoff)
        expected = eager.eval()(*graph.tensors())
        atoms = Atoms(frame.atomic_numbers, frame.positions, calculator=calculator)
        compare(ENGINES[0], atoms.get_potential_energy(), atoms.get_forces())
        for name, context in contexts.items():
            context.setPositions(frame.positions / LENGTH)
            state = context.getState(energy=True, forces=True)
            compare(
                name,
                state.getPotentialEnergy()._value / ENERGY,
                state.getForces(asNumpy=True)._value / FORCE,
            )
    return [Agreement(name, *worst) for name, worst in differences.items()]


def milliseconds_per_step(folder: RunFolder, frame: Frame) -> dict[str, float]:
    """Time per MD step of each engine beside that of the model alone, on one thread.

    All take turns, so that a busy moment of the machine hits them alike; the median counts.
    """
    exported = load_exported(folder.exported)
    inputs = build_graph(frame.positions, frame.atomic_numbers, exported.cutoff).tensors()
    atoms = Atoms(frame.atomic_numbers, frame.positions)
    atoms.calc = PotentialCalculator(exported)
    dynamics = VelocityVerlet(atoms, 1e-4 * units.fs)
    contexts = [make_context(f, exported, frame, "Reference") for f in (torch_force, python_force)]

    def model() -> None:
        for _ in range(STEPS):
            exported.module(*inputs)

    runs: dict[str, Callable[[], object]] = {"model alone": model}
    runs[ENGINES[0]] = lambda: dynamics.run(STEPS)
    for name, context in zip(ENGINES[1:], contexts, strict=True):
        runs[name] = partial(context.getIntegrator().step, STEPS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(ROUNDS + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if turn:  # TorchScript compiles in the first
                    times[name].append(1000 * (time.perf_counter() - start) / STEPS)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in times.items()}
