"""Train sGDML on an rMD17 molecule within a fixed time.

    python train_sgdml.py --data rmd17 --molecule aspirin --budget-minutes 15 --out sgdml.json

sGDML solves one linear system instead of taking steps. As in the package's own command line, the length
scale is the one with the lowest error on the validation frames; it is searched with few frames, and the
final model takes as many of the training frames as the rest of the time and the memory allow.

Reference: Chmiela et al., Nat. Commun. 9, 3887 (2018).
"""

import argparse
import logging
import time
from functools import cache
from typing import Any

import numpy as np
import psutil
from common import (
    Array,
    Data,
    Frames,
    errors,
    median_milliseconds,
    read_data,
    read_options,
    write_result,
)
from scipy.linalg import cho_factor
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain
from sgdml.utils import io
from threadpoolctl import threadpool_limits

SEARCH_FRAMES = 150
SEARCH_SHARE = 0.3
"""Share of the time after which no further length scale is tried."""
LENGTH_SCALES = (5, 10, 20, 30, 50)
REGULARIZATION = 1e-10
PROBE_SIZE = 4000
TIME_SHARE = 0.9
"""Share of the remaining time that the estimate may fill."""
MEMORY_SHARE = 0.7
"""Share of the free memory that the linear system may fill, three times its matrix."""


def as_dataset(numbers: Array, frames: Frames, name: str) -> dict[str, Any]:
    """Frames in sGDML's layout, eV and Å."""
    texts = {"type": "d", "code_version": "1.0.3", "name": name, "theory": "rMD17"}
    texts |= {"r_unit": "Ang", "e_unit": "eV"}
    # Text as numpy scalars, as if read from an npz file.
    dataset: dict[str, Any] = {key: np.array(text) for key, text in texts.items()}
    dataset |= {"z": numbers.astype(np.uint8), "R": frames.positions}
    dataset |= {"E": frames.energies, "F": frames.forces}
    for key in "EF":
        values = dataset[key]
        dataset |= {f"{key}_min": values.min(), f"{key}_max": values.max()}
        dataset |= {f"{key}_mean": values.mean(), f"{key}_var": values.var()}
    dataset["md5"] = np.array(io.dataset_md5(dataset))
    return dataset


@cache
def _cholesky_seconds() -> float:
    """Time to factorise a matrix of the probe's size."""
    matrix = 2.0 * PROBE_SIZE * np.eye(PROBE_SIZE) + 1.0
    start = time.perf_counter()
    cho_factor(matrix, overwrite_a=True, check_finite=False)
    return time.perf_counter() - start


class Sgdml:
    """Training and prediction through the package, for any number of frames."""

    def __init__(self, data: Data, options: argparse.Namespace) -> None:
        self.data, self.threads = data, options.threads
        self.train_set = as_dataset(data.numbers, data.train, "train")
        self.valid_set = as_dataset(data.numbers, data.valid, "valid")
        self.trainer = GDMLTrain(max_processes=options.threads)

    def train(self, frames: int, length_scale: int) -> dict[str, Any]:
        """A model of that many training frames."""
        task = self.trainer.create_task(
            self.train_set,
            frames,
            self.valid_set,
            len(self.data.valid),
            length_scale,
            lam=REGULARIZATION,
        )
        return self.trainer.train(task)

    def predictor(self, model: dict[str, Any]) -> GDMLPredict:
        """Prediction in this process, since one thread needs no workers."""
        predictor = GDMLPredict(model, max_processes=self.threads)
        if self.threads == 1:
            predictor._set_num_workers(0)
        return predictor

    def errors(self, model: dict[str, Any], frames: Frames) -> dict[str, float]:
        """Errors on some frames."""
        energies, forces = self.predictor(model).predict(frames.positions.reshape(len(frames), -1))
        return errors(energies, forces.reshape(frames.forces.shape), frames)

    def affordable(self, search: int, search_seconds: float, seconds: float) -> int:
        """Frames of the final model; the kernel grows with their square, its factors with the cube."""
        size = self.data.train.forces[0].size
        memory = MEMORY_SHARE * psutil.virtual_memory().available
        for frames in range(len(self.data.train), search, -10):
            solution = (frames * size / PROBE_SIZE) ** 3 * _cholesky_seconds()
            in_time = search_seconds * (frames / search) ** 2 + solution < TIME_SHARE * seconds
            if in_time and 3 * 8 * (frames * size) ** 2 < memory:
                return frames
        return search

    def run(self, budget: float) -> dict[str, Any]:
        """Choose the length scale, train the final model, test it."""
        start = time.perf_counter()
        search = min(SEARCH_FRAMES, len(self.data.train))
        losses: dict[int, float] = {}
        models: dict[int, dict[str, Any]] = {}
        longest = 0.0
        for scale in LENGTH_SCALES:
            began = time.perf_counter()
            models[scale] = self.train(search, scale)
            longest = max(longest, time.perf_counter() - began)
            losses[scale] = self.errors(models[scale], self.data.valid)["forces_rmse_meV_per_A"]
            print(f"length scale {scale}: {losses[scale]:.2f} meV/Å", flush=True)
            rises = losses[scale] > min(losses.values())  # The package stops here, too.
            if rises or time.perf_counter() - start > SEARCH_SHARE * budget:
                break
        best = min(losses, key=losses.__getitem__)
        frames = self.affordable(search, longest, budget - (time.perf_counter() - start))
        print(f"final model: {frames} frames", flush=True)
        model = models[best] if frames == search else self.train(frames, best)
        seconds = time.perf_counter() - start
        predictor = self.predictor(model)
        singles = self.data.test.positions[:10].reshape(10, 1, -1)
        return {
            "train": frames,
            "seconds": round(seconds, 1),
            "epochs": None,
            "steps": None,
            "batch": None,
            "parameters": frames * self.data.train.forces[0].size,
            **self.errors(model, self.data.test),
            "ms_per_evaluation": round(
                median_milliseconds(lambda k: predictor.predict(singles[k % 10])), 3
            ),
            "recipe": {
                "length_scale": best,
                "length_scales_tried": {str(scale): loss for scale, loss in losses.items()},
                "search_frames": search,
                "regularization": REGULARIZATION,
                "permutations": len(model["perms"]),
                "solver": str(model["solver_name"]),
                "dtype": "float64",
            },
        }


def main() -> None:
    """Train, test, write the JSON file."""
    logging.disable(logging.WARNING)
    options = read_options(__doc__)
    np.random.seed(options.seed)  # sGDML draws its frames from this generator.
    data = read_data(options)
    with threadpool_limits(options.threads):
        result = Sgdml(data, options).run(60.0 * options.budget_minutes)
    write_result(options, "sGDML", "sgdml", result)


if __name__ == "__main__":
    main()
