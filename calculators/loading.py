"""Exported potentials on their way into an engine and from process to process.

What can be wrong with a file or a device is said here, before a simulation starts.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from forcefield.checkpoint import FORMAT_VERSION
from forcefield.compiled import compile_exported, is_compiled, scripted_module
from forcefield.devices import check_device
from forcefield.errors import CheckpointError
from forcefield.export import (
    ExportedPotential,
    load_exported,
    prepare_process,
    quiet_torchscript,
)


def load_on(path: str | Path, device: str | torch.device = "cpu") -> ExportedPotential:
    """Load an exported potential to a device.

    Args:
        path: File written by :func:`forcefield.export.export_potential`.
        device: ``"cpu"`` or ``"cuda"``, with or without a number.

    Raises:
        CheckpointError: There is no such file, it is not an exported potential, or it was exported by
            a torch that this one does not understand.
        ConfigError: The device is not there, or has no double precision.
    """
    place = check_device(device)
    try:
        return load_exported(path, device=place)
    except CheckpointError as error:
        header = _header(Path(path))
        made_by = header.get("torch", torch.__version__)
        if made_by == torch.__version__ or header.get("format_version", 0) > FORMAT_VERSION:
            raise
        raise CheckpointError(
            f"{path} was exported with torch {made_by} and does not load with torch "
            f"{torch.__version__}: export it again here (export-potential, from the run's "
            f"potential.safetensors), or install torch {str(made_by).partition('+')[0]}"
        ) from error


def pack_potential(potential: ExportedPotential) -> tuple[Any, ...]:
    """A potential as plain data for pickle, which cannot store a scripted module.

    Returns:
        What :func:`unpack_potential` takes.
    """
    file = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(scripted_module(potential), file)
    device = str(potential.device)
    return file.getvalue(), potential.metadata, is_compiled(potential), device


def unpack_potential(packed: tuple[Any, ...]) -> ExportedPotential:
    """The potential that was packed: where it was, or on the CPU where there is no such device."""
    prepare_process()
    data, metadata, compiled, device = packed
    where = torch.device(device)
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        device = "cpu"
    with quiet_torchscript():
        module = torch.jit.load(io.BytesIO(data), map_location=device)
    exported = ExportedPotential(module.eval(), metadata)
    return compile_exported(exported) if compiled else exported


def _header(path: Path) -> dict[str, Any]:
    """The description inside a file that torch cannot load; empty if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("/extra/hegnn-forcefield.json")]
            header = json.loads(archive.read(names[0])) if names else {}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    return header if isinstance(header, dict) else {}
