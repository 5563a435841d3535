"""CPU time of a training step, compiled and not, in turn: one JSON line for each batch size.

    python benchmarks/train_speed.py --molecule aspirin --batches 5 10
    python benchmarks/train_speed.py --molecule ethanol --optimizer     # with the optimizer's step

A step is loss and gradients of all weights, of the default model with random weights unless settings say
otherwise; CPU time rather than wall time, medians, one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from training import load_config
from training.clock import Clock
from training.compiled import CompiledStep
from training.graphs import LabelledGraph, join
from training.module import ForceFieldModule
from training.prepare import prepare
from training.start import with_model_of_start

Step = Callable[[LabelledGraph], tuple[torch.Tensor, torch.Tensor]]


def milliseconds(steps: dict[str, Callable[[LabelledGraph], None]], batches: list[LabelledGraph]):
    """Median CPU time of each kind of step, taking turns over the batches."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn, batch in enumerate([batches[0], *batches]):
        for name, step in steps.items():
            start = time.process_time()
            step(batch)
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def main() -> None:
    """Print one JSON line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecule", default="ethanol", help="of rMD17")
    parser.add_argument("--batches", type=int, nargs="+", default=[5, 10], help="frames per step")
    parser.add_argument("--steps", type=int, default=30, help="to take the median of")
    parser.add_argument("--optimizer", action="store_true", help="add the optimizer's own step")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keys = [f"dataset=rmd17:{arguments.molecule}", "valid=0", "test=0", "start=scratch"]
    prepared = prepare(with_model_of_start(load_config(None, [*keys, *arguments.set])))
    potential, items = prepared.potential.train(), prepared.graphs["train"].items
    module = ForceFieldModule(potential, prepared.config.training, 1000, Clock(None))
    compiled = CompiledStep(potential, module.losses)
    optimizer = module.configure_optimizers()

    def whole(evaluate: Step) -> Callable[[LabelledGraph], None]:
        def step(batch: LabelledGraph) -> None:
            module.zero_grad()
            evaluate(batch)[0].backward()
            if arguments.optimizer:
                optimizer.step()

        return step

    steps = {"eager": whole(module.evaluate), "compiled": whole(compiled)}
    for size in arguments.batches:
        count = min(arguments.steps, len(items) // size)
        batches = [join(items[k * size : (k + 1) * size]) for k in range(count)]
        times = milliseconds(steps, batches)
        row = {
            "molecule": arguments.molecule,
            "batch": size,
            "pairs": statistics.median(b.graph.edge_index.shape[1] for b in batches),
            "layers": prepared.config.model.layers,
            "optimizer": arguments.optimizer,
            "cpu_ms": times,
            "ratio": round(times["eager"] / times["compiled"], 2),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
