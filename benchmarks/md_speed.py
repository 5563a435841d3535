"""Time of an energy-and-force evaluation, by system and by the way it is run: JSON lines and a plot.

    python benchmarks/md_speed.py --potential potential.pt --systems ethanol aspirin --out rows.jsonl
    python benchmarks/md_speed.py --potential potential.pt --peers painn=ENV/bin/python --out rows.jsonl
    python benchmarks/md_speed.py --potential potential.pt --device cuda --ways ase torchforce-graphs

Every way is a process of its own, and they take turns (turns.py). Ways: ``model`` (the exported module
called from Python), ``ase``, ``torchforce`` and ``pythonforce`` (an OpenMM step with the Verlet integrator
on the Reference platform, on a GPU on the CUDA platform in mixed precision), ``torchforce-graphs`` with
CUDA graphs, all of them also ``-compiled`` (``torchforce-graphs-compiled``); ``nothing`` and
``nothing-graphs``, a TorchForce that computes nothing: what OpenMM and the plugin take. Copies of a
molecule, of which the time per copy counts: ``many-K`` (one call of ``calculate_many``), ``langevin-K``
(a step of ``LangevinReplicas``), both also ``-compiled``. Peers (random weights; see
peers/md_speed_peer.py) run through their ASE calculators in their own environments. CPU time is what
counts on a shared machine, wall time on a GPU; one thread unless ``--threads`` says otherwise.
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
WAYS += ("torchforce-compiled", "pythonforce-compiled", "many-32", "many-32-compiled")

STEPS_PER_CALL = 10
"""Of replicas; their forces are checked at the end of a call."""

JITTER = 0.01
"""Å by which positions differ from call to call."""


def run(way: str, name: str, arguments: argparse.Namespace) -> None:
    """In a process of its own: set one way up and serve."""
    import torch

    torch.set_num_threads(arguments.threads)
    from calculators.evaluator import open_potential

    atoms = build(name)
    kind, *options = way.split("-")
    exported = open_potential(
        arguments.potential,
        arguments.device,
        torch.float64 if arguments.double else None,
        compile="compiled" in options,
    )
    rng = np.random.default_rng(1)
    moves = JITTER * rng.normal(size=(8, len(atoms), 3))
    step: Any
    if kind == "ase":
        step = _ase(exported, atoms, moves)
    elif kind in ("torchforce", "pythonforce", "nothing"):
        step = _openmm(kind, exported, atoms, arguments.device, "graphs" in options)
    elif kind == "many":
        step = _many(exported, atoms, moves, int(options[0]))
    elif kind == "langevin":
        step = _langevin(exported, atoms, int(options[0]))
    else:
        step = _model(exported, atoms, moves)
    facts = {
        "system": name,
        "way": way,
        "atoms": len(atoms),
        "device": _device_name(arguments.device),
        "threads": arguments.threads,
        "dtype": str(exported.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
    if arguments.device == "cuda":
        serve(lambda call: (step(call), torch.cuda.synchronize()), facts)
    else:
        serve(step, facts)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


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


def _openmm(kind: str, exported: Any, atoms: Any, device: str, graphs: bool) -> Any:
    import openmm

    from calculators import openmm as engine

    options: dict[str, Any] = {"max_force": np.inf, "device": device}
    make = engine.python_force
    if kind == "torchforce":
        make = engine.torch_force
        options["cuda_graphs"] = graphs
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    periodic = bool(atoms.pbc.all())
    if periodic:
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
    if kind == "nothing":
        system.addForce(_nothing(graphs))
    else:
        system.addForce(make(exported, atoms.numbers, periodic=periodic, **options))
    integrator = openmm.VerletIntegrator(1e-4)  # ps: the structure hardly moves
    settings = {"Precision": "mixed"} if device == "cuda" else {}
    platform = openmm.Platform.getPlatformByName("CUDA" if device == "cuda" else "Reference")
    context = openmm.Context(system, integrator, platform, settings)
    context.setPositions(atoms.positions / 10.0)
    # Keeps the objects alive, too.
    return lambda call, context=context: integrator.step(1)


def _nothing(graphs: bool) -> Any:
    import torch

    from calculators.torchplugin import import_plugin

    class Nothing(torch.nn.Module):
        def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            positions.requires_grad_(False)
            return 0.0 * positions.sum().to(torch.float64), 0.0 * positions

    options = {"useCUDAGraphs": "true" if graphs else "false"}
    force = import_plugin().TorchForce(torch.jit.script(Nothing()), options)
    force.setOutputsForces(True)
    return force


def _many(exported: Any, atoms: Any, moves: np.ndarray, number: int) -> Any:
    from calculators import calculate_many

    copies = []
    for k in range(number):
        copies.append(atoms.copy())
        copies[-1].positions += moves[k % len(moves)]
    return lambda call: calculate_many(exported, copies)


def _langevin(exported: Any, atoms: Any, number: int) -> Any:
    from calculators import LangevinReplicas, Replicas

    replicas = Replicas(exported, atoms.numbers, number)
    dynamics = LangevinReplicas(
        replicas, atoms.positions, timestep=0.1, temperature=1.0, max_force=np.inf
    )
    return lambda call: dynamics.run(STEPS_PER_CALL)


def main() -> None:
    """Print, and append to a file, one JSON line for each system and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--potential", required=True, help="exported potential that knows H C O")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS[:4]))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
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
    own += ["--threads", str(arguments.threads), "--device", arguments.device]
    own += ["--double"] * arguments.double
    peer_script = str(Path(__file__).parent / "peers" / "md_speed_peer.py")
    for name in arguments.systems:
        with tempfile.NamedTemporaryFile(suffix=".extxyz") as file:
            write(file.name, build(name))
            commands = [[*own, "--serve", way, name] for way in arguments.ways]
            for peer in arguments.peers:
                label, _, python = peer.partition("=")
                settings = ["--threads", str(arguments.threads), "--system", name]
                settings += ["--device", arguments.device]
                commands.append([python, "-B", peer_script, label, file.name, *settings])
            rows = take_turns(commands, arguments.rounds, arguments.seconds)
        for row in rows:
            kind, *options = row.get("way", "").split("-")
            if kind in ("many", "langevin"):
                steps = int(options[0]) * (STEPS_PER_CALL if kind == "langevin" else 1)
                for key in ("cpu_ms", "wall_ms"):
                    row[key] = round(row[key] / steps, 6)
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")


if __name__ == "__main__":
    main()
