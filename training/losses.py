"""Losses on energies and forces.

Energies enter per atom, so that structures of different size weigh alike. Predicted and labelled
energies are subtracted in float64: they are of the order of 1e4 eV, their differences of 1e-3 eV.
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


def forces_loss(errors: Tensor, loss: LossName, huber_delta: float) -> Tensor:
    """Mean loss of forces.

    ``l1`` is the mean length of the error vectors: unlike the absolute components, it does not depend
    on the orientation of the structure.

    Args:
        errors: Predicted minus labelled forces, (n, 3), eV/Å.
        loss: mse, huber or l1.
        huber_delta: Where huber turns linear, eV/Å.
    """
    if loss == "l1":
        # The length has no derivative at zero, where the gradient would become NaN.
        return torch.sqrt(errors.square().sum(dim=1) + 1e-12).mean()
    return _smooth(errors, loss, huber_delta)


def _smooth(errors: Tensor, loss: LossName, huber_delta: float) -> Tensor:
    if loss == "mse":
        return errors.square().mean()
    return functional.huber_loss(errors, torch.zeros_like(errors), delta=huber_delta)
