"""Time of an energy-and-force evaluation, by system and by the way it is run: JSON lines and a plot.

    python benchmarks/md_speed.py --potential potential.pt --systems ethanol aspirin --out rows.jsonl
    python benchmarks/md_speed.py --potential potential.pt --peers painn=ENV/bin/python --out rows.jsonl

Every way is a process of its own, and they take turns (turns.py). Ways: ``model`` (the exported module
called from Python), ``ase``, ``torchforce`` and ``pythonforce`` (an OpenMM step with the Verlet integrator
on the Reference platform), each of the Python-driven ones also ``-compiled``; ``replicas-K``: K copies in
one call, the time per copy. Peers (random weights; see peers/md_speed_peer.py) run through their ASE
calculators in their own environments. CPU time is what counts on a shared machine; one thread unless
``--threads`` says otherwise.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write
from md_systems import SYSTEMS, build
from turns import serve, take_turns

WAYS = ("model", "model-compiled", "ase", "ase-compiled", "torchforce", "pythonforce")
WAYS += ("pythonforce-compiled", "replicas-32")

JITTER = 0.01
"""Å by which positions differ from call to call."""


def run(way: str, name: str, arguments: argparse.Namespace) -> None:
    """In a process of its own: set one way up and serve."""
    import torch

    torch.set_num_threads(arguments.threads)
    from calculators.evaluator import open_potential

    atoms = build(name)
    kind, _, compiled = way.partition("-")
    dtype = torch.float64 if arguments.double else None
    exported = open_potential(arguments.potential, dtype=dtype, compile=compiled == "compiled")
    rng = np.random.default_rng(1)
    moves = JITTER * rng.normal(size=(8, len(atoms), 3))
    step: Any
    if kind == "ase":
        step = _ase(exported, atoms, moves)
    elif kind in ("torchforce", "pythonforce"):
        step = _openmm(kind, exported, atoms)
    elif kind == "replicas":
        step = _replicas(exported, atoms, moves, int(compiled))
    else:
        step = _model(exported, atoms, moves)
    facts = {
        "system": name,
        "way": way,
        "atoms": len(atoms),
        "threads": arguments.threads,
        "dtype": str(exported.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
    serve(step, facts)


def _model(exported: Any, atoms: Any, moves: np.ndarray) -> Any:
    """The module alone, the pairs within the cutoff or all pairs ready as tensors."""
    from calculators.evaluator import Evaluator

    evaluator = Evaluator(exported, atoms.numbers, max_force=np.inf)
    inputs = [
        evaluator.inputs(atoms.positions + move, atoms.cell.array, atoms.pbc) for move in moves
    ]
    return lambda call: exported.module(*inputs[call % len(inputs)])


def _ase(exported: Any, atoms: Any, moves: np.ndarray) -> Any:
    from calculators import PotentialCalculator

    atoms.calc = PotentialCalculator(exported, max_force=np.inf)
    start = atoms.positions.copy()

    def step(call: int) -> None:
        atoms.positions[:] = start + moves[call % len(moves)]
        atoms.get_forces()
        atoms.get_potential_energy()

    return step


def _openmm(kind: str, exported: Any, atoms: Any) -> Any:
    import openmm

    from calculators import openmm as engine

    make = engine.torch_force if kind == "torchforce" else engine.python_force
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    periodic = bool(atoms.pbc.all())
    if periodic:
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
    system.addForce(make(exported, atoms.numbers, periodic=periodic, max_force=np.inf))
    integrator = openmm.VerletIntegrator(1e-4)  # ps: the structure hardly moves
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10.0)
    # Keeps the objects alive, too.
    return lambda call, context=context: integrator.step(1)


def _replicas(exported: Any, atoms: Any, moves: np.ndarray, number: int) -> Any:
    from calculators import calculate_many

    copies = []
    for k in range(number):
        copies.append(atoms.copy())
        copies[-1].positions += moves[k % len(moves)]
    return lambda call: calculate_many(exported, copies)


def main() -> None:
    """Print, and append to a file, one JSON line for each system and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--potential", required=True, help="exported potential that knows H C O")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS[:4]))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true", help="in double precision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in a round")
    parser.add_argument("--out", type=Path, help="file that the rows are appended to")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "SYSTEM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        run(*arguments.serve, arguments)
        return
    own = [sys.executable, __file__, "--potential", arguments.potential]
    own += ["--threads", str(arguments.threads)] + ["--double"] * arguments.double
    peer_script = str(Path(__file__).parent / "peers" / "md_speed_peer.py")
    for name in arguments.systems:
        with tempfile.NamedTemporaryFile(suffix=".extxyz") as file:
            write(file.name, build(name))
            commands = [[*own, "--serve", way, name] for way in arguments.ways]
            for peer in arguments.peers:
                label, _, python = peer.partition("=")
                settings = ["--threads", str(arguments.threads), "--system", name]
                commands.append([python, "-B", peer_script, label, file.name, *settings])
            rows = take_turns(commands, arguments.rounds, arguments.seconds)
        for row in rows:
            if row.get("way", "").startswith("replicas-"):
                for key in ("cpu_ms", "wall_ms"):
                    row[key] = round(row[key] / int(row["way"].partition("-")[2]), 4)
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")


if __name__ == "__main__":
    main()
