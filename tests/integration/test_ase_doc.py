"""The Python in docs/ase.md does what it says, in the order in which a reader meets it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from calculators import PotentialCalculator
from forcefield import errors
from tests.integration.general_potential import general_file

DOCUMENT = Path(__file__).parents[2] / "docs/ase.md"


def test_the_snippets_run(tmp_path, monkeypatch):
    shutil.copy(general_file(), tmp_path / "potential.pt")
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 12
    labelled = molecule("CH3CH2OH")
    labelled.calc = SinglePointCalculator(labelled, forces=np.full((9, 3), 0.1))
    write("labelled.extxyz", [labelled] * 2)
    names: dict[str, object] = {}
    for snippet in snippets:
        shorter = re.sub(r"run\((2000|500)\)", "run(20)", snippet)
        exec(shorter.replace("range(100)", "range(8)"), names)

    crystal = names["crystal"]
    assert np.sqrt(2.0) * crystal.cell.lengths()[0] == pytest.approx(3.59, abs=0.02)
    assert names["height"] == pytest.approx(0.25, abs=0.05)
    assert len(names["results"]) == 8
    for frame, result in zip(names["frames"], names["results"], strict=True):
        np.testing.assert_array_equal(frame.get_forces(), result["forces"])
    expected = PotentialCalculator("potential.pt").get_forces(labelled) - 0.1
    np.testing.assert_allclose(names["errors"], [expected] * 2, atol=1e-4)
    assert names["dynamics"].positions.shape == (8, 9, 3)
    frequencies = names["modes"].get_frequencies()
    assert len(frequencies) == 27
    assert 3500.0 < frequencies[-1].real < 4100.0
    assert names["descriptors"].shape == (9, 64)


def test_the_errors_and_files_that_it_names_exist():
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+Error)`", text)) - {"PropertyNotImplementedError"}
    assert len(named) >= 8
    assert all(issubclass(getattr(errors, name), errors.ForceFieldError) for name in named)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert len(links) > 8
    assert all((DOCUMENT.parent / link).exists() for link in links)
