"""``featurize-trajectory``: from trajectory files to a file of features."""

import json
from pathlib import Path
from typing import Annotated

import typer

from featurizers.featurize import featurize
from featurizers.pretrained import WEIGHTS
from featurizers.store import NPZ
from featurizers.trajectory import Options, TrajectoryFeaturizer
from forcefield.devices import use_threads
from forcefield.errors import ConfigError, ForceFieldError

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130

_HELP = """Describe every frame of molecular dynamics trajectories by features of a trained network.

\b
featurize-trajectory md.xtc --top protein.pdb --out features.h5
featurize-trajectory run-*.dcd --top ala2.pdb --tokens atom --no-hydrogens --out features.h5
featurize-trajectory md.xtc --top system.pdb --select protein --stride 10 --out features.h5
featurize-trajectory md.xtc --top protein.pdb --out features.h5 --resume   continue after Ctrl-C

Tokens are what becomes one row of features: residue, atom, ca (the C-alpha of each residue and what is
around it), molecule, or a JSON file such as {"head": [0, 1, 2], "tail": [3, 4]} that names groups of
atoms. analyze-trajectory looks for slow motions in the result.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    help=_HELP,
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def featurize_trajectory(
    trajectories: Annotated[
        list[Path],
        typer.Argument(help="Trajectories of one system, any format that mdtraj reads."),
    ],
    out: Annotated[
        Path,
        typer.Option(help="File to write: .h5 or .zarr, which can be continued, or .npz."),
    ],
    top: Annotated[
        Path | None, typer.Option(help="Topology, such as a PDB file; some formats have their own.")
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(
            help="residue, atom, ca, molecule, or a JSON file of atom groups, whose indices count the "
            "atoms that --select keeps."
        ),
    ] = "residue",
    pooling: Annotated[str, typer.Option(help="sum or mean of the atoms of a token.")] = "sum",
    hydrogens: Annotated[
        bool, typer.Option(help="Whether hydrogens belong to tokens; the network always sees them.")
    ] = True,
    select: Annotated[
        str | None,
        typer.Option(help="Atoms to keep, in mdtraj's language; the network sees no others."),
    ] = None,
    stride: Annotated[int, typer.Option(help="Take every so many-th frame.")] = 1,
    frame_time: Annotated[
        float | None,
        typer.Option(metavar="PS", help="Time between frames, ps, where the files do not say it."),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="Weights: general or denoising, which ship with the package, or potential.safetensors "
            "or backbone.safetensors of a training run."
        ),
    ] = "general",
    periodic: Annotated[
        bool | None,
        typer.Option(
            help="Whether periodic images count.  [if the trajectory has a unit cell]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Processor threads.", show_default="torch's choice")
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the network first: half a minute, then two to four times as fast.",
        ),
    ] = False,
    chunk: Annotated[int, typer.Option(help="Frames to read at a time.")] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a file that was not finished.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Parse, featurise, print what there is."""
    options: Options = {
        "tokens": _tokens(tokens),  # type: ignore[typeddict-item]
        "pooling": pooling,  # type: ignore[typeddict-item]
        "hydrogens": hydrogens,
        "periodic": periodic,
    }
    try:
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
        use_threads(threads)
        weights = WEIGHTS.get(backbone, Path(backbone))
        featurizer = TrajectoryFeaturizer.from_file(weights, device, compile=compile)
        result = featurize(
            featurizer,
            trajectories,
            out,
            top,
            selection=select,
            stride=stride,
            chunk=chunk,
            frame_time=frame_time,
            resume=resume,
            overwrite=overwrite,
            show_progress=not quiet,
            **options,
        )
    except ForceFieldError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_MISTAKE) from None
    if result.interrupted and out.suffix in NPZ:
        typer.secho(
            f"Stopped; nothing was written: {out.suffix} is written at the end, .h5 can be continued.",
            fg="yellow",
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    scalars, vectors = result.channels
    typer.echo(
        f"{result.frames:,} frames of {result.tokens} tokens, {scalars} scalars and {vectors} vectors "
        f"each, {result.frames_per_second:.3g} frames/s: {out}"
    )
    if result.interrupted:
        typer.secho("Stopped; the same command with --resume does the rest.", fg="yellow")
        raise typer.Exit(EXIT_INTERRUPTED)


def _tokens(text: str) -> object:
    """A name, or what a JSON file holds."""
    path = Path(text)
    if path.suffix != ".json":
        return text
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [int(k) for k in atoms] for name, atoms in groups.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        typer.secho(f"error: {path} holds no groups of atoms: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_MISTAKE) from None


def main() -> None:
    """Entry point of ``featurize-trajectory``."""
    app()


if __name__ == "__main__":
    main()
