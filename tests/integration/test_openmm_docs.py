"""The Python in docs/openmm.md runs, in the order in which a reader meets it."""

import re
import shutil

import numpy as np
import pytest

from tests.integration.openmm_systems import ROOT, general_file

openmm = pytest.importorskip("openmm")
PAGE = ROOT / "docs/openmm.md"


def test_the_snippets_run(tmp_path, monkeypatch):
    shutil.copy(ROOT / "examples/alanine_dipeptide.pdb", tmp_path)
    shutil.copy(general_file(), tmp_path / "potential.pt")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 5
    names: dict[str, object] = {}
    for snippet in snippets:
        if "openmmml" in snippet:
            pytest.importorskip("openmmml")
        exec(snippet.replace("10_000", "3").replace('"vacuum.dcd", 100', '"vacuum.dcd", 1'), names)
    assert (tmp_path / "vacuum.dcd").is_file()
    state = names["simulation"].context.getState(energy=True, positions=True)
    assert np.isfinite(state.getPotentialEnergy()._value)
    assert names["again"].getNumForces() == names["system"].getNumForces()
    assert names["mixed"].getNumParticles() == names["system"].getNumParticles()


def test_the_files_it_names_exist():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert all((PAGE.parent / link).exists() for link in local)
