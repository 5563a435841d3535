"""How long a program takes to begin, beside ``import torch``, in fresh processes.

    python benchmarks/start_time.py
    python benchmarks/start_time.py --potential potential.pt    # and until the first forces of ethanol

Imports take turns, so that a busy moment of the machine hits them alike; medians of CPU time. A potential
that is compiled has been compiled before.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

STATEMENTS = {
    "torch": "import torch",
    "forcefield": "import forcefield",
    "forcefield, everything in it": "from forcefield import *",
    "calculators (ASE)": "from calculators import PotentialCalculator",
}

ETHANOL = "from ase.build import molecule; atoms = molecule('CH3CH2OH'); "
OPENMM = (
    "import openmm; system = openmm.System(); [system.addParticle(12.0) for atom in atoms]; "
    "system.addForce({force}); "
    "context = openmm.Context(system, openmm.VerletIntegrator(5e-4), "
    "openmm.Platform.getPlatformByName('Reference')); "
    "context.setPositions(0.1 * atoms.positions); context.getIntegrator().step({steps})"
)
ASE = (
    "from calculators import PotentialCalculator; "
    "atoms.calc = PotentialCalculator({path!r}, compile={compile}); atoms.get_forces()"
)


def first_steps(path: str) -> dict[str, str]:
    """Programs that get as far as the first forces."""
    force = f"torch_force({path!r}, atoms.numbers)"
    programs = {
        "forces in ASE": ASE.format(path=path, compile=False),
        "forces in ASE, compiled": ASE.format(path=path, compile=True),
        "a step of TorchForce": OPENMM.format(force=force, steps=1),
        "four steps of TorchForce": OPENMM.format(force=force, steps=4),
    }
    imported = "from calculators.openmm import torch_force; "
    return {
        name: ETHANOL + imported * ("torch_force" in program) + program
        for name, program in programs.items()
    }


def cpu_seconds(statement: str) -> float:
    """CPU time of a fresh interpreter that runs one statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one JSON line per beginning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--potential", help="exported potential that knows H C O")
    arguments = parser.parse_args()
    runs = arguments.runs
    statements = STATEMENTS | (first_steps(arguments.potential) if arguments.potential else {})
    empty = statistics.median(cpu_seconds("pass") for _ in range(runs))
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    for turn in range(runs + 1):
        for name, statement in statements.items():
            measured = cpu_seconds(statement) - empty
            if turn:  # The first turn fills the disk cache.
                seconds[name].append(measured)
    torch_seconds = statistics.median(seconds["torch"])
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = median / torch_seconds
        print(json.dumps({"until": name, "cpu_s": round(median, 3), "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
