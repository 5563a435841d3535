"""``analyze-trajectory``: from features of trajectories to slow motions, states and a report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from forcefield.errors import ForceFieldError

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130

_HELP = """Find the slow motions in features of molecular dynamics trajectories.

\b
featurize-trajectory run-*.dcd --top ala2.pdb --out features.h5
analyze-trajectory features.h5 --lag 10ps --out report
analyze-trajectory features.h5 --lag 10ps --method linear --out linear        a first look
analyze-trajectory features.h5 --lag 1ns --coordinates 3 --mixer attention --minutes 30 --out fine

It leaves a folder with report.html (coordinates, free energy, timescales, metastable states, importance of
tokens), summary.json, coordinates.npz (coordinates and state of every frame) and structures/state-*.pdb.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    help=_HELP,
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def analyze_trajectory(
    features: Annotated[Path, typer.Argument(help="File of features, from featurize-trajectory.")],
    lag: Annotated[
        str, typer.Option(metavar="TIME", help="Lag, such as 10ps, or a number of frames.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder that receives the files.")
    ] = Path("analysis"),
    method: Annotated[
        str, typer.Option(metavar="linear|vampnet|spib", help="How coordinates are found.")
    ] = "vampnet",
    coordinates: Annotated[int, typer.Option(help="Number of slow coordinates.")] = 2,
    mixer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Network of vampnet and spib: mlp, pooling, deepsets-lp, deepsets-le, transformer, "
            "attention or gamma.",
        ),
    ] = "mlp",
    states: Annotated[
        int | None,
        typer.Option(help="Metastable states; spib finds their number.  [by the spectral gap]"),
    ] = None,
    clusters: Annotated[int, typer.Option(help="Clusters of the Markov models.")] = 100,
    folds: Annotated[
        int,
        typer.Option(help="Of the cross-validation: whole trajectories, or blocks in time."),
    ] = 4,
    epochs: Annotated[int, typer.Option(help="Of each training, at most.")] = 50,
    minutes: Annotated[
        float | None, typer.Option(help="Of all trainings together, at most.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="Where networks are trained: cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Processor threads.", show_default="torch's choice")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace an analysis in the folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Parse, analyse, print what was found."""
    try:
        from featurizers.analysis.results import ResultFolder
        from featurizers.analysis.run import analyze
        from featurizers.analysis.settings import AnalysisSettings
        from featurizers.store import read_features
        from forcefield.devices import use_threads

        settings = AnalysisSettings(
            lag,
            coordinates=coordinates,
            method=method,  # type: ignore[arg-type]
            mixer=mixer,
            states=states,
            clusters=clusters,
            folds=folds,
            epochs=epochs,
            minutes=minutes,
            seed=seed,
            device=device,
        )
        ResultFolder(out).check_free(overwrite)
        use_threads(threads)
        result = analyze(
            read_features(features),
            settings,
            out,
            name=features.name,
            overwrite=overwrite,
            show_progress=not quiet,
        )
    except ForceFieldError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_MISTAKE) from None
    except KeyboardInterrupt:
        typer.secho("Aborted; nothing was written.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_summary(result.summary, out)


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """The figures and paths that matter."""
    score, slowest, states = summary["score"], summary["slowest_timescale"], summary["states"]
    typer.echo(
        f"   VAMP-2: {score['vamp2_mean']:.3f} ± {score['vamp2_standard_deviation']:.3f} on held-out "
        "frames (the constant function counts 1)"
    )
    unit = "frames" if slowest["ps"] is None else "ps"
    error = slowest["standard_error_frames" if unit == "frames" else "standard_error_ps"]
    typer.echo(f"timescale: {slowest[unit]:.3g} ± {error:.2g} {unit}, the slowest")
    shares = ", ".join(f"{100 * value:.1f} %" for value in states["populations"])
    typer.echo(f"   states: {len(states['populations'])}, populations {shares}")
    for remark in summary["remarks"]:
        typer.secho(f"     note: {remark}", fg="yellow")
    typer.echo(f"   report: {out / 'report.html'}")


def main() -> None:
    """Entry point of ``analyze-trajectory``."""
    app()


if __name__ == "__main__":
    main()
