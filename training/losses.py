"""Losses on energies, forces and stresses.

Energies enter per atom, so that structures of different size weigh alike. Predicted and labelled
energies are subtracted in float64: they are of the order of 1e4 eV, their differences of 1e-3 eV.
Stresses enter times the volume and per atom, as the derivative of the energy per atom by the strain:
in eV, like the energies, and independent of how much empty space a cell has.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["mse", "huber", "l1"]


def energy_loss(errors: Tensor, loss: LossName, huber_delta: float) -> Tensor:
    """Mean loss of energies.

    Args:
        errors: Predicted minus labelled energy, (b,), eV per atom.
        loss: mse, huber or l1.
        huber_delta: Where huber turns linear, eV per atom.
    """
    if loss == "l1":
        return errors.abs().mean()
    return _smooth(errors, loss, huber_delta)


def forces_loss(errors: Tensor, num_atoms: Tensor, loss: LossName, huber_delta: float) -> Tensor:
    """Mean loss of forces.

    ``l1`` is the mean length of the error vectors: unlike the absolute components, it does not depend
    on the orientation of the structure.

    Args:
        errors: Predicted minus labelled forces, (n, 3), eV/Å; zero for atoms that fill up a batch.
        num_atoms: Number of the other atoms, ().
        loss: mse, huber or l1.
        huber_delta: Where huber turns linear, eV/Å.
    """
    if loss == "l1":
        # The length has no derivative at zero, where the gradient would become NaN.
        mean = torch.sqrt(errors.square().sum(dim=1) + 1e-12).mean()
    else:
        mean = _smooth(errors, loss, huber_delta)
    return mean * (errors.shape[0] / num_atoms)


def stress_loss(
    errors: Tensor, cell: Tensor, num_atoms: Tensor, loss: LossName, huber_delta: float
) -> Tensor:
    """Mean loss of the strain derivatives per atom, over the structures that have a stress.

    Args:
        errors: Predicted minus labelled stress, (b, 3, 3), eV/Å³; NaN where there is none.
        cell: (b, 3, 3), Å.
        num_atoms: (b,).
        loss: mse, huber or l1 (of the components).
        huber_delta: Where huber turns linear, eV per atom.
    """
    volumes = torch.linalg.det(cell).abs()
    known = torch.isfinite(errors)
    scaled = torch.where(known, errors, 0.0) * (volumes / num_atoms).view(-1, 1, 1)
    # Losses are means of zero for what is not known; this makes them means over what is.
    share = known.double().mean().clamp(min=1.0 / known.numel())
    mean = scaled.abs().mean() if loss == "l1" else _smooth(scaled, loss, huber_delta)
    return mean / share


def _smooth(errors: Tensor, loss: LossName, huber_delta: float) -> Tensor:
    if loss == "mse":
        return errors.square().mean()
    return functional.huber_loss(errors, torch.zeros_like(errors), delta=huber_delta)
