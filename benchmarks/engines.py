"""Energies and forces of trained potentials through every engine: largest differences.

    python benchmarks/engines.py runs/ethanol runs/aspirin --out engines.jsonl
    python benchmarks/engines.py --table engines.jsonl

Each folder is that of a training run on a molecule of rMD17; frames come from its test part. Every engine
is compared with the model evaluated directly, in the same precision, and the single-precision model
with the double-precision one. Engines that are not installed are left out.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from calculators import PotentialCalculator, calculate_many
from calculators.evaluator import open_potential
from forcefield import build_graph, load_potential
from forcefield.units import KJ_PER_MOL, MEV, NANOMETER
from training.config_io import read_yaml
from training.datasets import load_split

Result = tuple[np.ndarray, np.ndarray]
"""Energies (b,), eV, and forces (b, n, 3), eV/Å."""


def eager(run: Path, frames: list[Atoms], dtype: torch.dtype) -> Result:
    """The model itself, differentiated."""
    potential, _ = load_potential(run / "potential.safetensors", dtype)
    results = []
    for atoms in frames:
        graph = build_graph(atoms.positions, atoms.numbers, potential.cutoff)
        found = potential(*graph.tensors())
        results.append((float(found["energy"]), found["forces"].detach().numpy()))
    return _stack(results)


def with_ase(calculator: object, frames: list[Atoms]) -> Result:
    """A calculator of ASE."""
    results = []
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = calculator
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    return _stack(results)


def batched(run: Path, frames: list[Atoms], dtype: torch.dtype) -> Result:
    """All frames in one call."""
    found = calculate_many(run / "potential.pt", frames, dtype=dtype)
    return _stack([(one["energy"], one["forces"]) for one in found])


def openmm_engine(
    run: Path,
    frames: list[Atoms],
    dtype: torch.dtype,
    engine: str,
    platform: str,
    compile: bool = False,
) -> Result:
    """A System of OpenMM."""
    import openmm
    from openmm import app, unit

    from calculators.openmm import create_system

    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for k, number in enumerate(frames[0].numbers):
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(f"{element.symbol}{k}", element, residue)
    potential = open_potential(run / "potential.pt", dtype=dtype, compile=compile)
    system = create_system(topology, potential, engine=engine)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    results = []
    for atoms in frames:
        context.setPositions(atoms.positions * unit.angstrom)
        state = context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(
            unit.kilojoule_per_mole / unit.nanometer
        )
        results.append((energy * KJ_PER_MOL, np.asarray(forces) * KJ_PER_MOL / NANOMETER))
    return _stack(results)


def metatomic(run: Path, frames: list[Atoms], dtype: torch.dtype) -> Result:
    """The metatomic model through its calculator for ASE."""
    from metatomic_ase import MetatomicCalculator

    from calculators.metatomic import export_metatomic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        export_metatomic(run / "potential.safetensors", path, dtype=dtype)
        return with_ase(MetatomicCalculator(str(path), device="cpu"), frames)


def engines(run: Path) -> Iterator[tuple[str, Callable[[list[Atoms], torch.dtype], Result]]]:
    """Every way to evaluate the potential of a run."""
    file = run / "potential.pt"
    yield "exported (TorchScript)", lambda f, d: _scripted(file, f, d)
    yield "ASE", lambda f, d: with_ase(PotentialCalculator(file, dtype=d), f)
    yield (
        "ASE, compiled",
        lambda f, d: with_ase(PotentialCalculator(file, dtype=d, compile=True), f),
    )
    yield "calculate_many", lambda f, d: batched(run, f, d)
    for engine, name in (("torch", "TorchForce"), ("python", "PythonForce")):
        for platform in ("Reference", "CPU"):
            yield (
                f"OpenMM {name}, {platform}",
                lambda f, d, e=engine, p=platform: openmm_engine(run, f, d, e, p),
            )
        yield (
            f"OpenMM {name}, Reference, compiled",
            lambda f, d, e=engine: openmm_engine(run, f, d, e, "Reference", compile=True),
        )
    yield "metatomic", lambda f, d: metatomic(run, f, d)


def _scripted(file: Path, frames: list[Atoms], dtype: torch.dtype) -> Result:
    exported = open_potential(file, dtype=dtype)
    results = []
    for atoms in frames:
        graph = build_graph(atoms.positions, atoms.numbers, exported.cutoff)
        found = exported.module(*graph.tensors())
        results.append((float(found["energy"]), found["forces"].detach().numpy()))
    return _stack(results)


def _stack(results: list[tuple[float, np.ndarray]]) -> Result:
    energies, forces = zip(*results, strict=True)
    return np.array(energies, dtype=np.float64), np.array(forces, dtype=np.float64)


def compare(run: Path, number: int) -> Iterator[dict]:
    """A row for each engine and precision."""
    source = read_yaml(run / "config.yaml")["dataset"]["source"]
    test = load_split(source, seed=0, train=1, valid=0, test=number).test
    frames = [Atoms(frame.atomic_numbers, frame.positions) for frame in test]
    facts = {"molecule": source.partition(":")[2], "frames": len(frames)}
    direct = {dtype: eager(run, frames, dtype) for dtype in (torch.float64, torch.float32)}
    yield facts | _row("single precision", "float32", direct[torch.float32], direct[torch.float64])
    for dtype, expected in direct.items():
        precision = str(dtype).removeprefix("torch.")
        for name, evaluate in engines(run):
            try:
                found = evaluate(frames, dtype)
            except ImportError as error:
                print(f"{name}: {error}", flush=True)
                continue
            yield facts | _row(name, precision, found, expected)


def _row(name: str, precision: str, found: Result, expected: Result) -> dict:
    return {
        "engine": name,
        "precision": precision,
        "energy_meV": float(np.abs(found[0] - expected[0]).max() / MEV),
        "forces_meV_per_A": float(np.abs(found[1] - expected[1]).max() / MEV),
    }


def table(rows: list[dict]) -> str:
    """Largest differences over all molecules, Markdown."""
    lines = [
        "| engine | precision | max ΔE, meV | max ΔF, meV/Å | in |",
        "|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["precision"], row["engine"]) for row in rows):
        same = [row for row in rows if (row["precision"], row["engine"]) == key]
        energy = max(row["energy_meV"] for row in same)
        worst = max(same, key=lambda row: row["forces_meV_per_A"])
        lines.append(
            f"| {key[1]} | {key[0]} | {energy:.1e} | {worst['forces_meV_per_A']:.1e} "
            f"| {worst['molecule']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print, and append to a file, a row for each molecule, engine and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of training runs")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print a table of these rows and leave")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]))
        return
    for run in arguments.runs:
        for row in compare(run, arguments.frames):
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
