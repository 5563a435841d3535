"""Weights in the order in which the kernels of :mod:`forcefield.fused` read them."""

from typing import Any

import torch
from torch import Tensor


class FusedWeights:
    """What the kernels read, one vector for each launch.

    Args:
        network: A :class:`forcefield.hegnn.HEGNN`.
        readout: A :class:`forcefield.readout.EnergyReadout`.
        radial_rows: Radial functions of the kernels; those that the network lacks have weights of zero.

    Attributes:
        initial: For ``initial`` and ``pair_forces``.
        initial_back: For ``pair_forces``.
        begin: For ``begin``.
        begin_back: For ``begin_gradients``.
        messages: For ``messages`` of each layer.
        messages_back: For ``message_gradients`` of each layer.
        updates: For ``update``, and ``finish`` of the last layer.
        updates_back: For ``update_gradients`` of each layer, and ``finish`` of the last.
        readout: For ``finish``.
    """

    @torch.no_grad()
    def __init__(self, network: Any, readout: Any, radial_rows: int) -> None:
        f, c, lmax = network.features, network.channels, network.lmax
        pad = torch.nn.functional.pad

        def radial(weight: Tensor) -> Tensor:
            return pad(weight, (0, radial_rows - weight.shape[1]))

        to_radial = radial(network.initial_radial.weight).view(lmax, c, radial_rows)
        self.initial = _packed(to_radial.mT, network.initial_species.weight)
        self.initial_back = _packed(to_radial)
        self.messages, self.messages_back = [], []
        self.updates, self.updates_back = [], []
        before, before_back = [], []
        for layer in network.layers:
            invariants = layer.message_invariants.weight.view(f, 2, lmax, c)
            inwards, outwards = radial(layer.message_radial.weight).split([f, f])
            gates = layer.gates.weight.view(2, lmax, c, f)
            hidden = layer.message_hidden
            self.messages.append(
                _packed(
                    invariants.permute(1, 2, 3, 0),
                    inwards.T,
                    outwards.T,
                    hidden.weight.T,
                    hidden.bias,
                    gates.permute(1, 3, 2, 0),  # the two kinds in turns
                )
            )
            self.messages_back.append(
                _packed(
                    gates,
                    hidden.weight,
                    outwards,
                    inwards,
                    invariants.permute(2, 0, 3, 1),
                )
            )
            atoms = layer.message_atoms
            project = layer.project.split([c, c], dim=2)
            before.append([atoms.weight, atoms.bias, *(weight.mT for weight in project)])
            before_back.append([atoms.weight.T, *project])
        self.begin = _packed(*before[0])
        self.begin_back = _packed(*before_back[0])
        missing = (4 - lmax) * c  # kernels have four degrees
        for k, layer in enumerate(network.layers):
            pair_up = layer.pair_up.split([c, c], dim=2)
            scalars = layer.update_scalars.weight.split([f, f], dim=1)
            invariants = pad(layer.update_invariants.weight, (0, missing))
            out = layer.update_out
            weights = [
                *(weight.mT for weight in pair_up),
                *scalars,
                layer.update_scalars.bias,
                invariants,
                out.weight,
                out.bias,
            ]
            back = [out.weight.T, *(weight.T for weight in scalars), invariants.T, *pair_up]
            if not layer.last:
                gates = pad(layer.channel_gates.weight, (0, 0, 0, missing))
                bias = pad(layer.channel_gates.bias, (0, missing))
                weights += [gates, bias, layer.mix.mT, *before[k + 1]]
                back += [gates.T, layer.mix, *before_back[k + 1]]
            self.updates.append(_packed(*weights))
            self.updates_back.append(_packed(*back))
        first, last = readout.network[0], readout.network[2]
        self.readout = _packed(first.weight, first.bias, last.weight, first.weight.T)


def _packed(*weights: Tensor) -> Tensor:
    """One after the other."""
    return torch.cat([weight.detach().contiguous().reshape(-1) for weight in weights])
