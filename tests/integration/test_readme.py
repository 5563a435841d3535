"""The Python in the README does what it says, in the order in which a reader meets it."""

import re
from pathlib import Path

import numpy as np
from ase.build import molecule
from openmm import app, unit

from forcefield import save_potential

README = Path(__file__).parents[2] / "README.md"


def test_the_snippets_run(float32_potential, tmp_path, monkeypatch):
    folder = tmp_path / "runs/rmd17-ethanol"
    folder.mkdir(parents=True)
    (folder / "potential.pt").write_bytes(float32_potential.path.read_bytes())
    save_potential(float32_potential.eager, folder / "potential.safetensors")
    ethanol = molecule("CH3CH2OH")
    ethanol.write(tmp_path / "ethanol.xyz")
    topology = app.Topology()
    residue = topology.addResidue("EOH", topology.addChain())
    for index, symbol in enumerate(ethanol.get_chemical_symbols()):
        topology.addAtom(f"{symbol}{index}", app.Element.getBySymbol(symbol), residue)
    with (tmp_path / "ethanol.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, ethanol.positions * unit.angstrom, file)
    monkeypatch.chdir(tmp_path)

    text = README.read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        assert "10_000" in snippet or "features" in snippet
        exec(snippet.replace("10_000", "40"), names)

    assert (tmp_path / "md.dcd").is_file()
    features = names["features"]
    assert features.scalars.shape[:2] == (2, 9)
    assert features.vectors.shape[:3] == (2, 9, 3)
    assert np.isfinite(features.scalars).all()


def test_the_files_it_names_exist():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 5
    assert all((README.parent / link).exists() for link in local)
