"""Errors of energies and forces, summed on the device and read once.

A batch adds one small tensor of sums; nothing waits for the device until :func:`summarize`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from forcefield.units import MEV

NUM_SUMS = 9


def error_sums(energy_errors: Tensor, forces_errors: Tensor, num_atoms: Tensor) -> Tensor:
    """Sums from which the errors of any number of batches follow.

    Args:
        energy_errors: Predicted minus labelled total energies, (b,), eV.
        forces_errors: (n, 3), eV/Å.
        num_atoms: Atoms of each structure, (b,).

    Returns:
        (9,), float64.
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
            structures * 0 + forces.numel(),
            forces.abs().sum(),
            forces.square().sum(),
            energy.sum(),
        ]
    )


def summarize(sums: Sequence[float]) -> dict[str, float]:
    """Errors from summed :func:`error_sums`.

    Returns:
        Mean absolute errors, root mean square errors and the mean signed error of the energies, in meV,
        meV per atom and meV/Å.
    """
    structures, components = max(sums[0], 1.0), max(sums[5], 1.0)
    return {
        "energy_mae_meV": sums[1] / structures / MEV,
        "energy_mae_meV_per_atom": sums[3] / structures / MEV,
        "energy_rmse_meV": (sums[2] / structures) ** 0.5 / MEV,
        "energy_rmse_meV_per_atom": (sums[4] / structures) ** 0.5 / MEV,
        "energy_bias_meV": sums[8] / structures / MEV,
        "forces_mae_meV_per_A": sums[6] / components / MEV,
        "forces_rmse_meV_per_A": (sums[7] / components) ** 0.5 / MEV,
    }
