"""The weights that ship with the package as an exported file, made once for all tests."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from forcefield import export_potential, load_potential
from forcefield.pretrained import BACKBONE

FOLDER = TemporaryDirectory()
"""Goes when the tests end."""


@cache
def general_file() -> Path:
    """The exported potential; it takes seconds to make."""
    path = Path(FOLDER.name) / "general.pt"
    export_potential(load_potential(BACKBONE)[0], path)
    return path
