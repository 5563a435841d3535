"""Predictions on held-out frames, their errors, and the time of one evaluation."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forcefield import ExportedPotential, Potential
from forcefield.files import write_with
from forcefield.units import MEV
from training.graphs import GraphDataset, evaluation_batches, inputs_of
from training.metrics import error_sums, summarize

FloatArray = NDArray[np.float64]
WARMUP, REPEATS = 10, 30


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and predictions for f frames with N atoms in all.

    Attributes:
        atomic_numbers: (N,).
        num_atoms: Atoms of each frame, (f,).
        energy: Labels, (f,), eV.
        predicted_energy: (f,), eV.
        forces: Labels, (N, 3), eV/Å.
        predicted_forces: (N, 3), eV/Å.
        energy_uncertainty: Estimated errors of the energies, (f,), eV; NaN for frames on which they
            were not computed; None without an estimate.
        forces_uncertainty: Of a force component of each atom, (N,), eV/Å; likewise.
        stress: Labels, (f, 3, 3), eV/Å³, NaN for frames without; None if no frame has one.
        predicted_stress: (f, 3, 3), eV/Å³; likewise.
    """

    atomic_numbers: NDArray[np.int64]
    num_atoms: NDArray[np.int64]
    energy: FloatArray
    predicted_energy: FloatArray
    forces: FloatArray
    predicted_forces: FloatArray
    energy_uncertainty: FloatArray | None = None
    forces_uncertainty: FloatArray | None = None
    stress: FloatArray | None = None
    predicted_stress: FloatArray | None = None

    def errors(self) -> dict[str, float]:
        """Errors in meV, meV per atom, meV/Å and meV/Å³, as :func:`training.metrics.summarize`."""
        stress_errors = None
        if self.stress is not None and self.predicted_stress is not None:
            stress_errors = torch.as_tensor(self.predicted_stress - self.stress)
        sums = error_sums(
            torch.as_tensor(self.predicted_energy - self.energy),
            torch.as_tensor(self.predicted_forces - self.forces),
            torch.as_tensor(self.num_atoms, dtype=torch.float64),
            stress_errors,
        )
        return summarize(sums.tolist())

    def errors_by_element(self) -> dict[int, dict[str, float]]:
        """Force errors of each element, meV/Å, with the number of atoms and the RMS of the labels."""
        table = {}
        for number in np.unique(self.atomic_numbers):
            chosen = self.atomic_numbers == number
            error = (self.predicted_forces - self.forces)[chosen] / MEV
            table[int(number)] = {
                "atoms": int(chosen.sum()),
                "forces_mae_meV_per_A": float(np.abs(error).mean()),
                "forces_rmse_meV_per_A": float(np.sqrt(np.square(error).mean())),
                "forces_rms_label_meV_per_A": float(
                    np.sqrt(np.square(self.forces[chosen] / MEV).mean())
                ),
            }
        return table

    def save(self, path: Path) -> None:
        """Write an npz with the attributes' names; forces in float32, in eV/Å."""
        more: dict[str, Any] = {}
        if self.energy_uncertainty is not None and self.forces_uncertainty is not None:
            more |= {
                "energy_uncertainty": self.energy_uncertainty,
                "forces_uncertainty": self.forces_uncertainty.astype(np.float32),
            }
        if self.stress is not None:
            more |= {"stress": self.stress, "predicted_stress": self.predicted_stress}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    atomic_numbers=self.atomic_numbers.astype(np.uint8),
                    num_atoms=self.num_atoms,
                    energy=self.energy,
                    predicted_energy=self.predicted_energy,
                    forces=self.forces.astype(np.float32),
                    predicted_forces=self.predicted_forces.astype(np.float32),
                    **more,
                )

        write_with(path, write)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what :meth:`save` wrote."""
        with np.load(path) as data:
            optional = ("energy_uncertainty", "forces_uncertainty", "stress", "predicted_stress")
            more = {name: data[name].astype(np.float64) for name in optional if name in data}
            return cls(
                atomic_numbers=data["atomic_numbers"].astype(np.int64),
                num_atoms=data["num_atoms"],
                energy=data["energy"],
                predicted_energy=data["predicted_energy"],
                forces=data["forces"].astype(np.float64),
                predicted_forces=data["predicted_forces"].astype(np.float64),
                **more,
            )


def predict(potential: Potential, dataset: GraphDataset, device: torch.device | str) -> Predictions:
    """Evaluate a potential on every frame of a data set.

    Args:
        potential: On the device; put into evaluation mode.
        dataset: At least one frame.
        device: Where to evaluate.
    """
    potential.eval()
    energies, forces, stresses = [], [], []
    for _, batch in evaluation_batches(dataset):
        prediction = potential(*inputs_of(batch.to(device)))
        energies.append(prediction["energy"].cpu())
        forces.append(prediction["forces"].cpu())
        if batch.stress is not None:
            stresses.append(prediction["stress"].cpu())
    return Predictions(
        atomic_numbers=dataset.atomic_numbers.numpy(),
        num_atoms=dataset.num_atoms.numpy(),
        energy=dataset.energy.numpy(),
        predicted_energy=torch.cat(energies).double().numpy(),
        forces=dataset.forces.numpy(),
        predicted_forces=torch.cat(forces).double().numpy(),
        stress=None if dataset.stress is None else dataset.stress.numpy(),
        predicted_stress=torch.cat(stresses).double().numpy() if stresses else None,
    )


def milliseconds_per_step(
    exported: ExportedPotential, dataset: GraphDataset, device: torch.device | str
) -> float:
    """Median time of energy and forces of one structure, the first of the data set, ms."""
    inputs = dataset[0].graph.to(device).tensors()
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times = []
    for _ in range(WARMUP + REPEATS):
        start = time.perf_counter()
        exported.module(*inputs)
        synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[WARMUP:])
