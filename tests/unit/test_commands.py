"""Commands where something that they need is not installed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

WITHOUT = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
sys.argv = ["command", "--help"]
from {module} import {function}
{function}()
"""


def run(command: str, missing: str) -> subprocess.CompletedProcess[str]:
    module, _, function = SCRIPTS[command].partition(":")
    program = WITHOUT.format(missing=missing, module=module, function=function)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_missing_package_is_named(command):
    done = run(command, "typer")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{command} needs the package typer")
    assert "pip install 'hegnn-forcefield[" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_our_own_that_is_missing_is_no_mistake_of_the_user():
    done = run("train-potential", "training")
    assert "Traceback" in done.stderr


def test_commands_run_where_everything_is_there():
    done = run("export-potential", "nothing-of-this-name")
    assert done.returncode == 0, done.stderr
    assert "potential.safetensors" in done.stdout
