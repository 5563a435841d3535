"""How long ``import forcefield`` and its parts take beside ``import torch``, in fresh processes.

    python benchmarks/import_time.py [--runs 7]

The imports take turns, so that a busy moment of the machine hits them alike; medians of CPU time.
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


def cpu_seconds(statement: str) -> float:
    """CPU time of a fresh interpreter that runs one statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one JSON line per import."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    empty = statistics.median(cpu_seconds("pass") for _ in range(runs))
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for turn in range(runs + 1):
        for name, statement in STATEMENTS.items():
            measured = cpu_seconds(statement) - empty
            if turn:  # The first turn fills the disk cache.
                seconds[name].append(measured)
    torch_seconds = statistics.median(seconds["torch"])
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = median / torch_seconds
        print(json.dumps({"import": name, "cpu_s": round(median, 3), "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
