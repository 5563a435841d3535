"""How far an evaluation is from what the processor can do: operations counted, against its matrix rate.

    python benchmarks/roofline.py --potential potential.pt --systems ethanol aspirin

Counts the floating-point operations of energy and forces in the unrolled graph (forcefield/unrolled.py):
2 m n k for a product of matrices, one for each number that comes out of an elementwise operation, or goes
into a sum; copies, gathers and scatters count nothing. The rate is that of large products of matrices in
single precision on the same threads: what the library can do at best.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from md_systems import SYSTEMS, build
from torch.fx import Interpreter

from calculators.evaluator import Evaluator, open_potential
from forcefield import ExportedPotential
from forcefield.export import rebuild
from forcefield.unrolled import unroll

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
NO_ARITHMETIC = (
    *("index_select", "index_add", "cat", "stack", "view", "_unsafe_view", "reshape", "expand"),
    *("split", "split_with_sizes", "transpose", "t", "permute", "unsqueeze", "squeeze", "slice"),
    *("select", "clone", "detach", "alias", "new_zeros", "zeros_like", "ones_like", "full_like"),
    *("full", "new_full", "sym_size", "sym_numel", "getitem", "_to_copy", "copy", "slice_backward"),
    *("select_backward", "zeros", "ones"),
)


class Counting(Interpreter):
    """Runs a graph and counts what it computes."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.operations: Counter[str] = Counter()

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation."""
        result = super().call_function(target, args, kwargs)
        name = getattr(target, "__name__", str(target)).split(".")[0]
        if name in PRODUCTS:
            left, right = args[-2], args[-1]
            self.operations["products"] += 2 * left.numel() * right.shape[-1]
            self.operations["elementwise"] += result.numel() if name.startswith("add") else 0
        elif name in ("sum", "linalg_vector_norm", "norm"):
            self.operations["elementwise"] += args[0].numel()
        elif name not in NO_ARITHMETIC and isinstance(result, torch.Tensor):
            self.operations["elementwise"] += result.numel()
        return result


def operations(exported: ExportedPotential, inputs: tuple[torch.Tensor, ...]) -> Counter[str]:
    """Floating-point operations of energies and derivatives."""
    potential = rebuild(exported)
    positions, numbers, edge_index, shifts, cell, _ = inputs
    vectors = positions[edge_index[0]] - positions[edge_index[1]] + shifts @ cell[0]
    counting = Counting(unroll(potential))
    counting.run(potential.species_index[numbers], edge_index, vectors.to(exported.dtype))
    return counting.operations


def median_seconds(function: Callable[[], object], calls: int) -> float:
    """CPU time of a call, all threads together."""
    for _ in range(3):
        function()
    times = []
    for _ in range(calls):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return float(np.median(times))


def matrix_rate(size: int = 1024) -> float:
    """Operations per second of CPU time in a large product of matrices."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / median_seconds(lambda: a @ b, 21)


def main() -> None:
    """Print a JSON line for each system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--potential", required=True, help="exported potential")
    parser.add_argument("--systems", nargs="+", default=["ethanol", "aspirin"], choices=SYSTEMS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exported = open_potential(arguments.potential)
    compiled = open_potential(exported, compile=True)
    for name in arguments.systems:
        atoms = build(name)
        evaluator = Evaluator(exported, atoms.numbers, max_force=math.inf)
        inputs = evaluator.inputs(atoms.positions, atoms.cell.array, atoms.pbc)
        counted = operations(exported, inputs)
        total = sum(counted.values())
        rate = matrix_rate()
        calls = max(5, 2000 // inputs[2].shape[1])
        row: dict[str, Any] = {
            "system": name,
            "pairs": inputs[2].shape[1],
            "Mflop": round(total / 1e6, 1),
            "in products": round(counted["products"] / total, 2),
            "GFLOP/s of the machine": round(rate / 1e9, 1),
            "ms at that rate": round(1e3 * total / rate, 3),
        }
        for label, potential in (("interpreted", exported), ("compiled", compiled)):
            run = Evaluator(potential, atoms.numbers, max_force=math.inf)
            structure = (atoms.positions, atoms.cell.array, atoms.pbc)
            seconds = median_seconds(partial(run, *structure), calls)
            row[f"{label}, ms"] = round(1e3 * seconds, 3)
            row[f"{label}, share of the rate"] = round(total / rate / seconds, 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
