"""Weights of a potential on disk: safetensors with a JSON header that says what they are.

No pickle: reading a file cannot run code. The header holds everything that is needed to build the
potential again, and what a reader wants to know about it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcefield.errors import CheckpointError
from forcefield.files import write_with
from forcefield.potential import Potential, build_potential
from forcefield.uncertainty import has_uncertainty
from forcefield.version import __version__

FORMAT = "hegnn-forcefield"
BACKBONE = "backbone"
"""Kind of a file that holds a representation without a readout; potentials name no kind."""

FORMAT_VERSION = 1
_POSTERIOR = ("posterior.factor", "posterior.scales")
UNITS = {"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"}


def describe(potential: Potential, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """The header of a potential: everything needed to build it, and the caller's metadata."""
    return {
        **(metadata or {}),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "architecture": potential.architecture,
        "species": list(potential.species),
        "cutoff": potential.cutoff,
        "units": UNITS,
        "dtype": str(potential.readout.scale.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in potential.parameters()),
        "uncertainty": has_uncertainty(potential),
    }


def save_potential(
    potential: Potential, path: str | Path, metadata: dict[str, Any] | None = None
) -> None:
    """Write weights and header."""
    state = potential.state_dict()
    if has_uncertainty(potential):
        state |= zip(
            _POSTERIOR, (potential.posterior.factor, potential.posterior.scales), strict=True
        )
    write_weights(path, state, describe(potential, metadata))


def write_weights(path: str | Path, state: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a header; a file of that name is replaced once the new one is complete."""
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = save(tensors, {"header": json.dumps(header)})
    write_with(path, lambda temporary: temporary.write_bytes(content))


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a weights file.

    Raises:
        CheckpointError: No such file, not a weights file of this project, or one of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this project: its header names no {FORMAT!r}"
        )
    check_format_version(header, path)
    return header


def check_format_version(header: dict[str, Any], path: Path) -> None:
    """Raise :class:`CheckpointError` for a file that a newer version wrote in another format."""
    if header["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {header['format_version']}, written by version {header['version']}; "
            f"this is version {__version__}, which reads up to {FORMAT_VERSION}: update the package"
        )


def load_potential(
    path: str | Path, dtype: torch.dtype | None = None
) -> tuple[Potential, dict[str, Any]]:
    """Read a potential, in evaluation mode, and its header.

    Args:
        path: File written by :func:`save_potential`.
        dtype: Floating-point type of the network, if not that of the file.

    Raises:
        CheckpointError: See :func:`read_header`; the file holds no energies; or the tensors do not
            fit the header.
    """
    from safetensors.torch import load_file

    header = read_header(path)
    if header.get("kind") == BACKBONE:
        raise CheckpointError(
            f"{path} describes atoms and knows no energies: it is for TrajectoryFeaturizer.from_file"
        )
    dtype = dtype or getattr(torch, header["dtype"])
    potential = build_potential(header["architecture"], header["species"], dtype=dtype)
    state = load_file(path)
    posterior = [state.pop(name) for name in _POSTERIOR if name in state]
    try:
        potential.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the tensors in {path} do not fit its header: {error}") from None
    if posterior:
        potential.posterior.set(*posterior)
    return potential.eval(), header
