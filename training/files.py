"""JSON files of runs."""

import json
from pathlib import Path
from typing import Any

from forcefield.files import write_text


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
