"""``pretrain-featurizer``: from geometries to a backbone for features."""

from pathlib import Path
from typing import Annotated

import typer

from forcefield.errors import ForceFieldError
from training.cli import EXIT_INTERRUPTED, fail
from training.config_io import load_config, load_run_config

DEFAULTS = (
    "start=scratch",
    "loss=mse",
    "batch_size=32",
    "learning_rate=2e-3",
    "gradient_clip=3",
    "weight_decay=0.05",
)
"""What differs from the training of potentials: molecules of all sizes, and strongly distorted ones."""

_HELP = """Train a backbone for features by denoising geometries; nothing needs labels.

\b
pretrain-featurizer conformers.extxyz --out runs/denoising --set minutes=20
pretrain-featurizer qm7.xyz spice.hdf5 --out runs/denoising --set model.lmax=2
pretrain-featurizer qm7.xyz spice.hdf5 --out runs/denoising --resume     continue after Ctrl-C

Files of geometries: any format that ASE reads, npz of MD17, HDF5 of SPICE. It leaves a folder with
backbone.safetensors (for featurize-trajectory --backbone), summary.json, report.html and checkpoints.
--set takes the keys of the sections model, training and hardware of train-potential --help.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    help=_HELP,
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def pretrain_featurizer(
    sources: Annotated[list[Path], typer.Argument(help="Files of geometries.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    noise: Annotated[
        tuple[float, float],
        typer.Option(
            metavar="LOW HIGH", help="Noise levels, Å; each structure gets one between them."
        ),
    ] = (0.02, 0.3),
    copies: Annotated[int, typer.Option(help="Noisy copies of each structure.")] = 2,
    held_out: Annotated[float, typer.Option(help="Share of the molecules to validate on.")] = 0.02,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run from its last finished epoch.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Parse, pretrain, print where the result is."""
    try:
        if resume and (out / "config.yaml").is_file():
            config = load_run_config(out, settings or [])
        else:
            place = ["dataset=geometries", f"output={out.parent}", f"name={out.name}"]
            config = load_config(None, [*place, *DEFAULTS, *(settings or [])])
        from featurizers.pretraining.run import WEIGHTS, pretrain

        result = pretrain(
            sources,
            config,
            levels=noise,
            copies=copies,
            held_out=held_out,
            resume=resume,
            overwrite=overwrite,
            show_progress=not quiet,
        )
    except ForceFieldError as error:
        fail(error)
    at_level = result.summary["unexplained_at_level_A"]
    shares = ", ".join(f"{share:.0%} at {level} Å" for level, share in at_level.items())
    held = result.summary["data"]["held_out"]
    typer.echo(f"noise not explained, {held} held out: {shares}")
    typer.echo(f"backbone: {out / WEIGHTS}")
    typer.echo(f"  report: {result.folder.report}")
    if result.interrupted:
        typer.secho("Stopped; the same command with --resume continues.", fg="yellow")
        raise typer.Exit(EXIT_INTERRUPTED)


def main() -> None:
    """Entry point of ``pretrain-featurizer``."""
    app()


if __name__ == "__main__":
    main()
