"""``export-potential``: weights, or a run that was cut off, to one file for simulations."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from forcefield import Potential, build_potential, export_potential, load_potential
from forcefield.errors import CheckpointError, ForceFieldError
from training.checkpoints import goes_on, read_checkpoint, run_metadata
from training.cli import fail
from training.run_folder import RunFolder

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Format(StrEnum):
    """What a potential is written as."""

    TORCHSCRIPT = "torchscript"
    METATOMIC = "metatomic"


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="potential.safetensors, or the folder of a run (also of one that was killed: then its "
            "best checkpoint is taken); for metatomic potential.pt, too."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            help="File to write.  [default: potential.pt or potential-metatomic.pt beside the source]"
        ),
    ] = None,
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            help="torchscript for ASE, OpenMM and C++; metatomic for LAMMPS, i-PI, GROMACS, PLUMED and "
            "TorchSim.",
        ),
    ] = Format.TORCHSCRIPT,
) -> None:
    """Write a potential as one self-describing file for simulations."""
    name = "potential.pt" if kind is Format.TORCHSCRIPT else "potential-metatomic.pt"
    output = output or (source if source.is_dir() else source.parent) / name
    try:
        write(source, output, kind)
    except ForceFieldError as error:
        fail(error)
    typer.echo(str(output))


def write(source: Path, output: Path, kind: Format) -> None:
    """Read a potential and write it in one of the formats."""
    if kind is Format.TORCHSCRIPT:
        potential, metadata = load_source(source)
        export_potential(potential, output, metadata)
        return
    from calculators.metatomic import export_metatomic

    if source.suffix == ".pt":
        export_metatomic(source, output)
    else:
        potential, metadata = load_source(source)
        export_metatomic(potential, output, metadata)


def load_source(source: Path) -> tuple[Potential, dict[str, Any]]:
    """Read a weights file or a run's folder.

    Raises:
        CheckpointError: Neither of them, or a run without any finished epoch.
    """
    if not source.is_dir():
        return load_potential(source)
    folder = RunFolder(source)
    if folder.weights.is_file() and not goes_on(source):
        return load_potential(folder.weights)
    checkpoint = folder.best if folder.best.is_file() else folder.last
    if not (folder.config.is_file() and folder.data.is_file() and checkpoint.is_file()):
        raise CheckpointError(
            f"{source} holds neither potential.safetensors nor a run with a finished epoch"
        )
    return load_checkpoint(folder, checkpoint)


def load_checkpoint(folder: RunFolder, checkpoint: Path) -> tuple[Potential, dict[str, Any]]:
    """The averaged weights of one of Lightning's checkpoints, as a potential."""
    config = folder.read_config()
    data = json.loads(folder.data.read_text(encoding="utf-8"))
    potential = build_potential(
        data["architecture"],
        data["elements"],
        dtype=getattr(torch, config.hardware.precision),
    )
    weights, epochs = read_checkpoint(checkpoint)
    potential.load_state_dict(weights)
    return potential.eval(), run_metadata(config, data, epochs)


def main() -> None:
    """Entry point of ``export-potential``."""
    app()


if __name__ == "__main__":
    main()
