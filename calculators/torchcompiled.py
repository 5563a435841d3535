"""Compiled potentials in TorchScript: an operator written in Python, which a TorchForce can call.

A scripted module cannot hold a compiled potential, which lives in this process. It holds a key, and calls
``hegnn_forcefield::evaluate``, which looks the potential up. Import this file before such a module is
loaded: the operator is registered then.
"""

import uuid
from itertools import count

import torch
from torch import Tensor

from forcefield.errors import EngineError
from forcefield.export import ExportedPotential

# OpenMM owns a force once it is in a System, and nobody tells Python when it is gone: what was ever used
# stays for the life of the process.
_known: dict[str, tuple[torch.nn.Module, torch.device]] = {}
_keys: dict[torch.nn.Module, str] = {}
# XML may be read in another process: there the key must not be that of another potential.
_process = uuid.uuid4().hex
_numbers = count()


def register_compiled(potential: ExportedPotential) -> str:
    """Make a compiled potential known to the operator.

    Args:
        potential: From :func:`forcefield.compiled.compile_exported`; the same one gets the same key.

    Returns:
        Its key, valid in this process.
    """
    module = potential.module
    if module not in _keys:
        key = f"{_process}-{next(_numbers)}"
        _known[key] = module, potential.device
        _keys[module] = key
    return _keys[module]


def _evaluate(
    key: str,
    positions: Tensor,
    numbers: Tensor,
    edge_index: Tensor,
    cell_shifts: Tensor,
    cell: Tensor,
    batch: Tensor,
) -> tuple[Tensor, Tensor, str]:
    """Energies of the structures (b,), eV, forces (n, 3), eV/Å, and what is wrong; empty if nothing is.

    Problems are handed back: an exception would pass through inlined methods, see
    :class:`calculators.torchregion.Region`. Nothing here waits for a GPU, so that steps can be recorded.
    """
    try:
        module = _find(key, positions.device)
        output = module(positions, numbers, edge_index, cell_shifts, cell, batch)
        return output["energy"], output["forces"], ""
    except BaseException as error:  # Ctrl-C, too.
        nothing = torch.full_like(positions, torch.nan)
        return nothing.new_full((1,), torch.nan), nothing, f"{type(error).__name__}: {error}"


def _find(key: str, device: torch.device) -> torch.nn.Module:
    if key not in _known:
        raise EngineError(
            "this TorchForce runs a compiled potential, which belongs to the process that made the "
            "force; make it anew from the exported potential"
        )
    module, made_for = _known[key]
    if device != made_for:
        raise EngineError(
            f"this TorchForce runs a potential compiled for {made_for}, and OpenMM's platform "
            f"evaluates it on {device}; make it anew with device={str(device)!r}"
        )
    return module


_library = torch.library.Library("hegnn_forcefield", "DEF")
_library.define(
    "evaluate(str key, Tensor positions, Tensor numbers, Tensor edge_index, Tensor cell_shifts, "
    "Tensor cell, Tensor batch) -> (Tensor energy, Tensor forces, str problem)",
    alias_analysis="FROM_SCHEMA",
)
# For every device, and with autograd at work: files exported before derivatives were unrolled need it.
_library.impl("evaluate", _evaluate, "CompositeImplicitAutograd")
