"""Error estimates: fitted after training, held against the errors of the test frames.

The mathematics is in :mod:`forcefield.uncertainty`.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from forcefield import Potential, export_potential, load_potential, save_potential
from forcefield.errors import ConfigError
from forcefield.uncertainty import (
    Rows,
    fit_posterior,
    has_uncertainty,
    predict_uncertainty,
)
from training.datasets import data_hash
from training.evaluate import Predictions
from training.graphs import GraphDataset, evaluation_batches
from training.last_layer import BATCH_ATOMS, rows, some
from training.prepare import split_of
from training.run_folder import RunFolder, check_same_data

FloatArray = NDArray[np.float64]

TEST_FRAMES, TEST_ATOMS = 200, 5000
"""Test frames on which the estimates are compared with the errors."""


def calibrate(potential: Potential, train: Rows | None, valid: Rows | None) -> None:
    """Fit the error estimate of a trained potential, in place.

    Without validation frames, or with predictions that are not finite, the potential is left without
    an estimate: engines that are asked for one say so. With 20 frames of ethanol or aspirin instead of
    200 the rank correlations on their validation frames changed by 0.01.

    Args:
        potential: With its final weights.
        train: Rows of those weights, see :func:`training.last_layer.rows`; None without frames.
        valid: Likewise.
    """
    potential.posterior.clear()
    if train is None or valid is None:
        return
    try:
        factor, scales, _ = fit_posterior(train, valid)
    except ConfigError:
        return
    potential.posterior.set(factor, scales)


def with_uncertainty(
    predictions: Predictions,
    potential: Potential,
    dataset: GraphDataset,
    device: torch.device | str,
) -> Predictions:
    """Add the estimated errors of some of the frames, if the potential has an estimate.

    Args:
        predictions: Of all frames of the data set.
        potential: On the device.
        dataset: The frames; up to :data:`TEST_FRAMES` of them are taken, at equal distances.
        device: Where to evaluate.
    """
    if not has_uncertainty(potential):
        return predictions
    frozen = copy.deepcopy(potential).eval().requires_grad_(False)
    chosen = some(dataset, TEST_FRAMES, TEST_ATOMS, potential)
    found = [
        predict_uncertainty(frozen, *batch.graph.to(device).tensors())
        for _, batch in evaluation_batches(dataset.subset(chosen), BATCH_ATOMS)
    ]
    frames = np.zeros(len(dataset), dtype=bool)
    frames[chosen] = True
    energy = np.full(len(frames), np.nan)
    energy[frames] = torch.cat([energies for energies, _ in found]).cpu().numpy()
    atoms = np.repeat(frames, predictions.num_atoms)
    forces = np.full(len(atoms), np.nan)
    forces[atoms] = torch.cat([forces for _, forces in found]).cpu().numpy()
    return replace(predictions, energy_uncertainty=energy, forces_uncertainty=forces)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimated errors beside true ones.

    Attributes:
        estimated: Standard deviations, (p,).
        errors: True errors of the same predictions, (p, c): one energy, or three components of a force.
    """

    estimated: FloatArray
    errors: FloatArray

    @property
    def true(self) -> FloatArray:
        """Size of each true error, root mean square over its components, (p,)."""
        return np.sqrt(np.square(self.errors).mean(axis=1))

    def figures(self) -> dict[str, float]:
        """How well the estimates rank the errors, and whether they have their size.

        Returns:
            ``spearman``: rank correlation of estimated and true sizes. ``within_1_sigma`` and
            ``within_2_sigma``: fractions of the errors (0.68 and 0.95 for a normal distribution).
            ``mean_squared_normalized``: mean of (error / estimate)², ideally 1.
        """
        # Forces that vanish by symmetry have an estimate of 0, and errors of rounding.
        floor = max(1e-2 * float(np.sqrt(np.square(self.estimated).mean())), 1e-300)
        normalized = np.abs(self.errors) / np.maximum(self.estimated, floor)[:, None]
        ranks = [np.argsort(np.argsort(values)) for values in (self.estimated, self.true)]
        return {
            "spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1])
            if len(self.estimated) > 1
            else 0.0,
            "within_1_sigma": float((normalized <= 1.0).mean()),
            "within_2_sigma": float((normalized <= 2.0).mean()),
            "mean_squared_normalized": float(np.square(normalized).mean()),
        }

    def bins(self, number: int = 10) -> tuple[FloatArray, FloatArray]:
        """Root mean squares of estimates and true errors in bins of equally many predictions.

        Returns:
            Estimated and true, each with one entry per bin, sorted.
        """
        order = np.argsort(self.estimated, kind="stable")
        groups = np.array_split(order, min(number, max(1, len(order) // 5)))
        squares = (np.square(self.estimated), np.square(self.true))
        estimated, true = (np.sqrt([values[g].mean() for g in groups]) for values in squares)
        return estimated, true


def compare(predictions: Predictions) -> dict[str, Comparison]:
    """Comparisons for ``energy`` (eV) and ``forces`` (eV/Å); none without estimates."""
    energy, forces = predictions.energy_uncertainty, predictions.forces_uncertainty
    if energy is None or forces is None:
        return {}
    frames, atoms = np.isfinite(energy), np.isfinite(forces)
    return {
        "energy": Comparison(
            energy[frames], (predictions.predicted_energy - predictions.energy)[frames, None]
        ),
        "forces": Comparison(
            forces[atoms], (predictions.predicted_forces - predictions.forces)[atoms]
        ),
    }


def calibration_figures(predictions: Predictions) -> dict[str, float]:
    """Entries of summary.json: :meth:`Comparison.figures`, and the number of frames they are from."""
    comparisons = compare(predictions)
    figures = {
        f"{quantity}_{name}": value
        for quantity, comparison in comparisons.items()
        for name, value in comparison.figures().items()
    }
    if comparisons:
        figures["frames"] = len(comparisons["energy"].estimated)
    return figures


def add_to_run(folder: str | Path, device: torch.device | str = "cpu") -> None:
    """Fit the error estimate of a finished run anew and write its two potential files again.

    Args:
        folder: Of a run of train-potential; its data have to be where they were.
        device: Where to evaluate.

    Raises:
        CheckpointError: There are no weights in the folder.
        ConfigError: The run has no validation frames, its predictions are not finite, or the data are
            not what they were.
    """
    run = RunFolder(Path(folder))
    potential, header = load_potential(run.weights)
    config = run.read_config()
    split = split_of(config)
    every = [*split.train, *split.valid, *split.test]
    check_same_data(run, {"source": split.source, "sha256": data_hash(every)})
    parts = {"train": split.train, "valid": split.valid}
    graphs = {name: GraphDataset(frames, potential.cutoff) for name, frames in parts.items()}
    potential.to(device)
    calibrate(
        potential,
        *(rows(potential, part, device) if len(part) else None for part in graphs.values()),
    )
    if not has_uncertainty(potential):
        raise ConfigError(
            f"no error estimate for {run.path}: it needs validation frames (dataset.valid is not 0) "
            "and predictions that are finite"
        )
    save_potential(potential, run.weights, header)
    export_potential(potential, run.exported, header)
