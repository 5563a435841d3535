"""Reading, checking and writing configurations: YAML, presets, data files, ``key=value`` overrides."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from forcefield.errors import ConfigError
from training.config import TrainConfig
from training.datasets.deepmd import systems

PRESETS = Path(__file__).parent / "presets"

SHORTHANDS = {"dataset": "dataset.source", "model": "model.name"}
"""Sections that may be given like a key: ``dataset=rmd17:aspirin``, ``model=egnn``."""


@dataclass(frozen=True)
class Key:
    """One thing that can be set.

    Attributes:
        path: Dotted name, such as training.epochs.
        field: Pydantic's description of it.
    """

    path: str
    field: FieldInfo


def config_keys(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[Key]:
    """Every key of the configuration, sections unfolded."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from config_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, field)


def preset_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset_comment(name: str) -> str:
    """What a preset is for: the comment on its first line."""
    first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")


def load_config(target: str | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Resolve what a user asks for into a complete configuration.

    Args:
        target: A preset's name, a YAML file, a data file or named set (trained with the defaults), or
            None if an override names the data set.
        overrides: ``key=value`` texts: dotted keys, or the last part of one.

    Raises:
        ConfigError: Unknown preset, file or key (with the nearest known one), or a bad value.
    """
    values, name = _read_target(target)
    own = (values.get("dataset") or {}).get("source")
    _override(values, overrides)
    if not isinstance(values.get("dataset"), Mapping) or not values["dataset"].get("source"):
        raise ConfigError(
            "no data set: name a preset, a YAML file or a data file, or add dataset=..., such as "
            f"dataset=rmd17:ethanol. Presets: {', '.join(preset_names())}"
        )
    if not values.get("name"):
        source = values["dataset"]["source"]
        # The same settings may serve several data sets.
        others = [] if name and source == own else [_stem(str(source))]
        values["name"] = _run_name("-".join([*([name] if name else []), *others]))
    return validate(values)


def load_run_config(folder: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of an existing run, with changes.

    Args:
        folder: A run's folder.
        overrides: ``key=value`` texts.

    Raises:
        ConfigError: No configuration there, unknown key, or a bad value.
    """
    values = read_yaml(folder / "config.yaml")
    changes = _override(values, overrides)
    folder = folder.resolve() if folder.name in ("", "..") else folder
    place = {"name": folder.name, "output": str(folder.parent)}
    for key, value in place.items():
        if Path(changes.get(key, value)).expanduser().resolve() != Path(value).resolve():
            raise ConfigError(
                f"{key}={changes[key]}: {folder} is continued where it is; move the folder to rename it"
            )
    return validate({**values, **place})


def validate(values: Mapping[str, Any], where: str = "") -> TrainConfig:
    """Check nested values against the configuration's fields.

    Raises:
        ConfigError: One line per mistake, each naming its key.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(
            "\n".join(f"{where}: {line}" if where else line for line in lines)
        ) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` into a full dotted key and a value: texts as they are, all else read as YAML.

    Raises:
        ConfigError: No ``=``, an unknown key, or a value that is not YAML.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{text}' is not key=value, such as training.epochs=20")
    path = _full_path(key.strip())
    kind = next(entry.field.annotation for entry in config_keys() if entry.path == path)
    # As it is written: YAML would make a number of name=1 and a comment of what follows a #.
    if kind is str:
        return path, raw
    if kind == str | None:
        return path, None if raw.lower() in ("", "null", "~") else raw
    try:
        return path, yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"{path}: cannot read the value '{raw}'") from None


def dump_yaml(config: TrainConfig) -> str:
    """The configuration as YAML, every key present."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        ConfigError: Missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file ({detail})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys; expected lines such as 'seed: 0'")
    for section, shorthand in SHORTHANDS.items():
        if isinstance(values.get(section), str):
            values[section] = {shorthand.rpartition(".")[2]: values[section]}
    return values


def changed_keys(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with the old and the new value."""
    before, after = _flatten(old), _flatten(new)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def _read_target(target: str | None) -> tuple[dict[str, Any], str]:
    """Values that the target stands for, and a name for the run."""
    if target is None:
        return {}, ""
    path = Path(target)
    if path.suffix.lower() in (".yaml", ".yml"):
        values = read_yaml(path)
        validate({"dataset": {"source": "any"}, **_with_source(values)}, where=str(path))
        return values, path.stem
    if target in preset_names():
        return read_yaml(PRESETS / f"{target}.yaml"), target
    if ":" in target or path.is_file() or systems(path):
        return {"dataset": {"source": target}}, ""
    if path.is_dir():
        raise ConfigError(
            f"{target} is a folder, and not one of DeePMD-kit. To continue a run, add --resume; to train "
            "on a file in it, name it"
        )
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{target}: no such file")
    raise ConfigError(
        f"unknown preset '{target}'{_nearest(target, preset_names())} "
        f"Presets: {', '.join(preset_names())}; or name a YAML file or a data file"
    )


def _with_source(values: dict[str, Any]) -> dict[str, Any]:
    """The values with some data set, so that a file that leaves it to the command line can be checked."""
    section = values.get("dataset")
    if isinstance(section, Mapping) and "source" not in section:
        return {**values, "dataset": {"source": "any", **section}}
    return values


def _stem(source: str) -> str:
    """A file's name without its ending, a folder's name, or that of a named set as it is."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve().name
    if ":" in source:
        return source
    return Path(path.stem).stem if path.suffix.lower() in (".gz", ".bz2", ".xz") else path.stem


def _run_name(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.+") or "run"


def _full_path(key: str) -> str:
    paths = [entry.path for entry in config_keys()]
    key = SHORTHANDS.get(key, key)
    if key in paths:
        return key
    matches = [path for path in paths if path.rpartition(".")[2] == key]
    if matches:
        return matches[0]
    inside = [path for path in paths if path.startswith(f"{key}.")]
    if inside:
        raise ConfigError(f"'{key}' is a section: set one of its keys, such as {inside[0]}=...")
    raise ConfigError(f"unknown key '{key}'{_nearest_key(key)}")


def _nearest_key(key: str) -> str:
    """The known key that looks most like this one, as a question."""
    paths = [entry.path for entry in config_keys()]
    section, _, leaf = key.rpartition(".")
    inside = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == section}
    anywhere = {path.rpartition(".")[2]: path for path in paths}
    for names in (inside, anywhere):
        near = difflib.get_close_matches(leaf, names, n=1)
        if near:
            return f"; did you mean '{names[near[0]]}'?"
    return "; train-potential --help lists every key"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "."


def _override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Change nested values; who asks for epochs no longer wants the minutes that were set before.

    Returns:
        What was asked for.
    """
    changes = dict(parse_override(text) for text in overrides)
    if "training.epochs" in changes:
        changes.setdefault("training.minutes", None)
    for path, value in changes.items():
        _assign(values, path, value)
    return changes


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries."""
    *sections, leaf = path.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    values[leaf] = value


def _explain(error: Any) -> str:
    """One of pydantic's findings in one short line."""
    path = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function"))
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        return f"unknown key '{path}'{_nearest_key(path)}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "model_type":
        return f"{path} is a section: give it keys and values, not {error['input']!r}"
    if kind == "string_pattern_mismatch":
        return f"{path} may hold letters, digits and . _ + -, found {error['input']!r}"
    message = message.replace("Input should be", "must be").partition(", unable to parse")[0]
    return f"{path} {message[0].lower()}{message[1:]}, found {error['input']!r}"


def _flatten(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump()
    flat = {}
    for key in config_keys():
        section, _, leaf = key.path.rpartition(".")
        flat[key.path] = values[section][leaf] if section else values[leaf]
    return flat
