"""Errors of energies, forces and stresses, summed on the device and read once.

A batch adds one small tensor of sums; nothing waits for the device until :func:`summarize`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from forcefield.units import MEV

NUM_SUMS = 12


def error_sums(
    energy_errors: Tensor,
    forces_errors: Tensor,
    num_atoms: Tensor,
    stress_errors: Tensor | None = None,
) -> Tensor:
    """Sums from which the errors of any number of batches follow.

    Args:
        energy_errors: Predicted minus labelled total energies, (b,), eV.
        forces_errors: (n, 3), eV/Å; zero for atoms that belong to no structure of these.
        num_atoms: Atoms of each structure, (b,).
        stress_errors: (b, 3, 3), eV/Å³, NaN for structures without a label; None if none has one.

    Returns:
        (12,), float64.
    """
    energy = energy_errors.detach().double()
    per_atom = energy / num_atoms
    forces = forces_errors.detach().double()
    structures = torch.ones_like(energy).sum()
    return torch.stack(
        [
            structures,
            energy.abs().sum(),
            energy.square().sum(),
            per_atom.abs().sum(),
            per_atom.square().sum(),
            3.0 * num_atoms.sum(),
            forces.abs().sum(),
            forces.square().sum(),
            energy.sum(),
            *_stress_sums(stress_errors, structures),
        ]
    )


def _stress_sums(errors: Tensor | None, structures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if errors is None:
        nothing = structures * 0
        return nothing, nothing, nothing
    known = torch.isfinite(errors)
    values = torch.where(known, errors.detach().double(), 0.0)
    return known.double().sum(), values.abs().sum(), values.square().sum()


def summarize(sums: Sequence[float]) -> dict[str, float]:
    """Errors from summed :func:`error_sums`.

    Returns:
        Mean absolute errors, root mean square errors and the mean signed error of the energies, in meV,
        meV per atom and meV/Å; those of the stress, meV/Å³, if there was one.
    """
    structures, components = max(sums[0], 1.0), max(sums[5], 1.0)
    errors = {
        "energy_mae_meV": sums[1] / structures / MEV,
        "energy_mae_meV_per_atom": sums[3] / structures / MEV,
        "energy_rmse_meV": (sums[2] / structures) ** 0.5 / MEV,
        "energy_rmse_meV_per_atom": (sums[4] / structures) ** 0.5 / MEV,
        "energy_bias_meV": sums[8] / structures / MEV,
        "forces_mae_meV_per_A": sums[6] / components / MEV,
        "forces_rmse_meV_per_A": (sums[7] / components) ** 0.5 / MEV,
    }
    if sums[9] > 0:
        errors["stress_mae_meV_per_A3"] = sums[10] / sums[9] / MEV
        errors["stress_rmse_meV_per_A3"] = (sums[11] / sums[9]) ** 0.5 / MEV
    return errors
