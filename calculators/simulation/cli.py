"""``simulate-potential``: from an exported potential and a structure to a trajectory that one can judge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from calculators.simulation.settings import SimulationSettings, make_settings
from forcefield.errors import ConfigError, ForceFieldError

EXIT_MISTAKE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 3, 130

_HELP = """Run molecular dynamics with an exported potential, in OpenMM or ASE.

\b
simulate-potential potential.pt ethanol.xyz --time 10ps --out run
simulate-potential potential.pt ethanol.xyz --ensemble nve --engine ase --out nve
simulate-potential potential.pt water.pdb --ensemble npt --pressure 1bar --time 50ps --out npt
simulate-potential --resume --out run                continue after Ctrl-C or a crash
simulate-potential --resume --out run --time 20ps    make it longer

It leaves a folder with trajectory.dcd and topology.pdb, energies.csv, plot.png, summary.json (speed,
drift, temperature, stability), settings.json, final.extxyz and checkpoint.npz.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _default(name: str) -> str:
    """A default as a person writes it."""
    field = SimulationSettings.model_fields[name]
    if field.default in (None, "") or field.default is False:
        return ""
    units = {
        "temperature": "K",
        "pressure": "bar",
        "time": "ps",
        "friction": "/ps",
        "checkpoint": "s",
    }
    if name == "timestep":
        return f"  [{1000 * field.default:g}fs]"
    value = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return f"  [{value}{units.get(name, '')}]"


def _option(name: str, metavar: str | None = None) -> Any:
    """An option, or without a metavar a flag, whose help is the description of the setting."""
    text = SimulationSettings.model_fields[name].description or ""
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{text[:1].upper()}{text[1:]}.{_default(name)}",
        metavar=metavar,
        show_default=False,
    )


@app.command(
    help=_HELP,
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def simulate_potential(
    potential: Annotated[
        str | None,
        typer.Argument(metavar="[POTENTIAL]", show_default=False, help="Exported potential.pt."),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Argument(
            metavar="[STRUCTURE]",
            show_default=False,
            help="PDB or any file that ASE reads; the last frame counts.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder that receives the files.")
    ] = Path("simulation"),
    engine: Annotated[str | None, _option("engine", "openmm|ase")] = None,
    ensemble: Annotated[str | None, _option("ensemble", "nve|nvt|npt")] = None,
    temperature: Annotated[str | None, _option("temperature", "KELVIN")] = None,
    pressure: Annotated[str | None, _option("pressure", "PRESSURE")] = None,
    time: Annotated[str | None, _option("time", "TIME")] = None,
    timestep: Annotated[str | None, _option("timestep", "TIME")] = None,
    thermostat: Annotated[str | None, _option("thermostat", "langevin|nose-hoover")] = None,
    friction: Annotated[str | None, _option("friction", "RATE")] = None,
    seed: Annotated[int | None, _option("seed", "NUMBER")] = None,
    velocities: Annotated[str | None, _option("velocities", "thermal|file|zero")] = None,
    relax: Annotated[bool | None, _option("relax")] = None,
    every: Annotated[int | None, _option("every", "STEPS")] = None,
    format_: Annotated[str | None, _option("format", "dcd|xtc|extxyz")] = None,
    uncertainty: Annotated[bool | None, _option("uncertainty")] = None,
    stop_at_collapse: Annotated[bool | None, _option("stop_at_collapse")] = None,
    isolated: Annotated[bool | None, _option("isolated")] = None,
    platform: Annotated[str | None, _option("platform", "NAME")] = None,
    force: Annotated[str | None, _option("force", "auto|torch|python")] = None,
    dtype: Annotated[str | None, _option("dtype", "float32|float64")] = None,
    compile_: Annotated[bool | None, _option("compile")] = None,
    threads: Annotated[int | None, _option("threads", "NUMBER")] = None,
    checkpoint: Annotated[str | None, _option("checkpoint", "TIME")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder --out.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the folder --out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Parse, simulate, print what came out."""
    options = {
        "potential": potential,
        "structure": structure,
        "engine": engine,
        "ensemble": ensemble,
        "temperature": temperature,
        "pressure": pressure,
        "time": time,
        "timestep": timestep,
        "thermostat": thermostat,
        "friction": friction,
        "seed": seed,
        "velocities": velocities,
        "relax": relax,
        "every": every,
        "format": format_,
        "uncertainty": uncertainty,
        "stop_at_collapse": stop_at_collapse,
        "isolated": isolated,
        "platform": platform,
        "force": force,
        "dtype": dtype,
        "compile": compile_,
        "threads": threads,
        "checkpoint": checkpoint,
    }
    given = {name: value for name, value in options.items() if value is not None}
    from calculators.simulation.folder import SimulationFolder

    checkpoints = SimulationFolder(out).checkpoint
    before = _written(checkpoints)
    try:
        settings = _settings(given, out, resume, overwrite)
        settings.check_effect(given)
        from calculators.simulation.run import simulate

        result = simulate(
            settings, out, resume=resume, overwrite=overwrite, show_progress=not quiet
        )
    except ForceFieldError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_MISTAKE) from None
    except KeyboardInterrupt:
        more = ""
        if resume or _written(checkpoints) != before:
            more = f" Continue: simulate-potential --resume --out {out}"
        typer.secho(f"Aborted.{more}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_summary(result.summary, out, settings.format)
    if result.outcome == "failed":
        raise typer.Exit(EXIT_FAILED)
    if result.outcome == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _written(path: Path) -> int | None:
    """When a file was written, None if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def _settings(
    given: dict[str, Any], out: Path, resume: bool, overwrite: bool
) -> SimulationSettings:
    """Settings from the command line, for a continued run on top of those in its folder."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if resume:
        from calculators.simulation.resume import settings_to_continue

        return settings_to_continue(out, given)
    for name, example in (("potential", "potential.pt"), ("structure", "molecule.xyz")):
        if name not in given:
            raise ConfigError(
                f"no {name}: write simulate-potential potential.pt molecule.xyz, such as {example}"
            )
    return make_settings(given)


def print_summary(summary: dict[str, Any], out: Path, suffix: str) -> None:
    """The figures and paths that matter."""
    stability, speed, drift = summary["stability"], summary["speed"], summary["drift"]
    typer.secho(
        f"  stability: {stability['verdict']}", fg=None if stability["stable"] else "yellow"
    )
    if speed["ns_per_day"]:
        typer.echo(
            f"      speed: {speed['ns_per_day']:.3g} ns/day, {speed['ms_per_step']:.3g} ms per step"
        )
    if drift and drift["meV_per_atom_per_ps"] is not None:
        error = _error(drift["standard_error"], ".1g")
        typer.echo(
            f"      drift: {drift['meV_per_atom_per_ps']:+.2g}{error} meV/atom/ps of the {drift['of']}"
        )
    temperature = summary["temperature"]
    typer.echo(
        f"temperature: {temperature['mean_K']:.0f}{_error(temperature['standard_error_K'], '.0f')} K"
    )
    if "density" in summary:
        density = summary["density"]
        error = _error(density["standard_error_g_per_cm3"], ".4f")
        typer.echo(f"    density: {density['mean_g_per_cm3']:.4f}{error} g/cm³")
    typer.echo(f" trajectory: {out / f'trajectory.{suffix}'}, {summary['frames']} frames")
    typer.echo(f"       plot: {out / 'plot.png'}")
    if summary["outcome"] == "interrupted":
        typer.secho(
            f"Stopped after {summary['time_ps']:g} ps. "
            f"Continue: simulate-potential --resume --out {out}",
            fg="yellow",
        )


def _error(value: float | None, form: str) -> str:
    """A standard error, where there were enough frames for one."""
    return "" if value is None or value != value else f" ± {value:{form}}"


def main() -> None:
    """Entry point of ``simulate-potential``."""
    app()


if __name__ == "__main__":
    main()
