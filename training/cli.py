"""``train-potential``: from labelled geometries to a potential with known errors."""

import errno
import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from forcefield.errors import ConfigError, ForceFieldError
from training.config import TrainConfig
from training.config_io import (
    Key,
    config_keys,
    load_config,
    load_run_config,
    preset_names,
    read_preset_comment,
)

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130

_HELP = """Train an interatomic potential, export it for ASE and OpenMM, test it, report on it.

\b
train-potential rmd17-ethanol                    a preset
train-potential my.extxyz                        your own data, default settings
train-potential settings.yaml training.epochs=50
train-potential dataset=rmd17:aspirin batch_size=10
train-potential runs/my --resume                 continue after Ctrl-C or a crash

It leaves a folder runs/<name> with potential.pt (for simulations), potential.safetensors (weights),
summary.json (errors), report.html (plots), config.yaml, log.csv and checkpoints.
"""


def _type_name(annotation: Any) -> str:
    """A field's type as a user would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if str(origin) == "typing.Literal":
        return " | ".join(str(value) for value in arguments)
    if type(None) in arguments:
        return " or ".join(_type_name(item) for item in arguments if item is not type(None))
    words: dict[Any, str] = {
        int: "whole number",
        float: "number",
        int | float: "number",
        str: "text",
        bool: "true | false",
    }
    return words.get(annotation, "mapping")


def _describe_key(key: Key) -> str:
    """A key with type, default and meaning, wrapped for the terminal."""
    field = key.field
    default = "required" if field.is_required() else f"default {field.default}"
    if not field.is_required() and field.default in (None, ""):
        default = "default empty"
    lines = [f"{key.path}  ({_type_name(field.annotation)}; {default})"]
    lines += textwrap.wrap(
        field.description or "", 92, initial_indent="    ", subsequent_indent="    "
    )
    return "\n".join(lines)


def _epilog() -> str:
    """The list of all keys, from the fields of the configuration."""
    parts = [
        "Keys for key=value and for YAML files. A key's last part suffices (epochs=20), "
        "dataset= means dataset.source=, model= means model.name=."
    ]
    parts += ["\b\n" + _describe_key(key) for key in config_keys(TrainConfig)]
    parts.append("\b\nPresets:\n" + _presets())
    return "\n\n".join(parts)


def _presets() -> str:
    width = max(map(len, preset_names()))
    return "\n".join(f"{name:{width}}  {read_preset_comment(name)}" for name in preset_names())


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    help=_HELP,
    epilog=_epilog(),
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def train_potential(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET] [KEY=VALUE]...",
            show_default=False,
            help="A preset, a YAML file, a data file, a named set, or with --resume a run's folder; then "
            "changes.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run from its last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of the same name.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder; the same as name=...")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder that receives it; the same as output=...  [runs]")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="START",
            help="pretrained, large, scratch, or the folder of another run; the same as start=...  [auto]",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="Name the presets and leave.")
    ] = False,
) -> None:
    """Parse, train, print where the result is."""
    if list_presets:
        typer.echo(_presets())
        return
    try:
        target, overrides = _sort(arguments or [])
        options = {"name": name, "output": output, "start": start}
        overrides += [f"{key}={value}" for key, value in options.items() if value]
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
        if resume and target and (Path(target) / "config.yaml").is_file():
            config = load_run_config(Path(target), overrides)
        else:
            config = load_config(target, overrides)
        from training.run import train

        result = train(config, resume=resume, overwrite=overwrite, show_progress=not quiet)
    except ForceFieldError as error:
        fail(error)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC):
            raise
        place = f"{error.filename}: " if error.filename else ""
        fail(ConfigError(f"{place}{(error.strerror or str(error)).lower()}"))
    if not result.summary:
        if result.interrupted and config.xtb_frames:
            typer.secho(
                "Stopped while learning from GFN2-xTB. Continue: train-potential "
                f"{result.folder.path} --resume",
                fg="yellow",
            )
            raise typer.Exit(EXIT_INTERRUPTED)
        return  # A helper process of a parallel run; the first one would be killed if it failed.
    _print_result(result.folder.path, result.summary, result.interrupted)
    if result.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _sort(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Tell the target from the key=value arguments."""
    overrides = [
        text for text in arguments if re.match(r"[\w.]+=", text) and not Path(text).is_file()
    ]
    targets = [text for text in arguments if text not in overrides]
    if len(targets) > 1:
        raise ConfigError(
            f"one target at a time, found {' and '.join(targets)}; settings are written key=value"
        )
    return (targets[0] if targets else None), overrides


def _print_result(folder: Path, summary: dict[str, Any], interrupted: bool) -> None:
    """The figures and paths that matter."""
    from training.run_folder import RunFolder  # Torch comes with it.

    for part, title in (("valid", "validation"), ("test", "test")):
        errors = summary[part]
        if errors:
            stress = ""
            if "stress_mae_meV_per_A3" in errors:
                stress = f", stress {errors['stress_mae_meV_per_A3']:.3f} meV/Å³"
            typer.echo(
                f"{title:>10}: forces {errors['forces_mae_meV_per_A']:.2f} meV/Å, "
                f"energy {errors['energy_mae_meV']:.2f} meV "
                f"({errors['energy_mae_meV_per_atom']:.3f} meV/atom){stress}, mean absolute errors"
            )
    typer.echo(f" potential: {folder / 'potential.pt'}")
    typer.echo(f"    report: {folder / 'report.html'}")
    epochs, best = summary["train"]["epochs"], summary["train"]["best_epoch"]
    if interrupted:
        weights = f"those of epoch {best}" if best else "those at the moment of stopping"
        more = f"Continue: train-potential {folder} --resume"
        if not RunFolder(folder).last.is_file():
            more = (
                "There is no checkpoint yet, so --resume begins anew; to go on from these weights, start "
                f"another run with --from {folder / 'potential.safetensors'}"
            )
        typer.secho(
            f"Stopped after {epochs} epochs; the weights above are {weights}. {more}", fg="yellow"
        )
    elif summary["train"]["stopped"] == "early":
        typer.echo(f"Stopped early after {epochs} epochs; the weights are those of epoch {best}.")


def fail(error: ForceFieldError) -> None:
    """Print a user's mistake without a traceback and leave."""
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(EXIT_MISTAKE)


def main() -> None:
    """Entry point of ``train-potential``."""
    app()


if __name__ == "__main__":
    main()
