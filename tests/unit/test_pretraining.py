"""Pretraining: which molecules, their labels, and one representation for several levels of theory."""

import numpy as np
import pytest
import torch
from ase.build import molecule

from forcefield import build_graph
from training import load_config
from training.datasets.frames import Frame
from training.pretraining.backbone import LEVEL, build, divide, raised
from training.pretraining.labels import heat
from training.pretraining.molecules import (
    ELEMENTS,
    EXCLUDED,
    MAX_ATOMS,
    assemble,
    composition,
    is_wanted,
)
from training.pretraining.storage import Structure, as_frame, load_structures, save_structures


def test_molecules_of_the_benchmarks_and_their_isomers_are_left_out():
    assert composition(molecule("CH3CH2OH").numbers) == EXCLUDED["ethanol"]
    assert not is_wanted(molecule("CH3OCH3").numbers)
    assert not is_wanted(molecule("C6H6").numbers)
    assert is_wanted(molecule("CH3OH").numbers)
    assert not is_wanted(molecule("CH3").numbers)  # a radical
    assert not is_wanted(molecule("SiH4").numbers)


def test_assembled_molecules_are_reproducible_and_of_known_elements():
    first, again = (list(assemble(12, seed=3)) for _ in range(2))
    assert len({s.molecule for s in first}) == 12
    for one, two in zip(first, again, strict=True):
        assert one.molecule == two.molecule
        np.testing.assert_array_equal(one.positions, two.positions)
        assert set(one.numbers.tolist()) <= ELEMENTS
        assert len(one.numbers) <= MAX_ATOMS
        distances = np.linalg.norm(one.positions[:, None] - one.positions[None], axis=2)
        assert distances[~np.eye(len(one.numbers), dtype=bool)].min() > 0.8


@pytest.fixture(scope="module")
def labelled() -> list[Structure]:
    atoms = molecule("CH3OH")
    return heat(Structure(atoms.numbers, atoms.positions, "methanol"), frames=3, steps=2, seed=0)


def test_labels_are_energies_and_their_gradients(labelled):
    from ase import units
    from tblite.interface import Calculator

    def energy(positions: np.ndarray) -> float:
        calculator = Calculator("GFN2-xTB", labelled[0].numbers, positions / units.Bohr)
        calculator.set("verbosity", 0)
        return float(calculator.singlepoint().get("energy")) * units.Hartree

    assert len(labelled) == 3
    frame, h = labelled[-1], 1e-3
    assert frame.energy == pytest.approx(energy(frame.positions), abs=1e-5)
    step = np.zeros_like(frame.positions)
    step[1, 2] = h
    slope = (energy(frame.positions + step) - energy(frame.positions - step)) / (2 * h)
    assert frame.forces[1, 2] == pytest.approx(-slope, abs=2e-3)
    moved = np.abs(labelled[-1].positions - labelled[0].positions).max()
    assert 0.01 < moved < 1.0


def test_structures_survive_the_disk(labelled, tmp_path):
    path = tmp_path / "labelled.npz"
    save_structures(labelled, path)
    for one, two in zip(labelled, load_structures(path), strict=True):
        assert one.molecule == two.molecule
        assert one.energy == two.energy
        np.testing.assert_array_equal(one.numbers, two.numbers)
        np.testing.assert_allclose(one.positions, two.positions, atol=1e-6)
        np.testing.assert_allclose(one.forces, two.forces, atol=1e-5)


def test_a_molecule_is_trained_on_or_held_out(labelled):
    frames = [
        Frame(f.atomic_numbers, f.positions, f.energy, f.forces, source=f"molecule {k}")
        for k in range(50)
        for f in map(as_frame, labelled)
    ]
    train, valid = divide(frames, held_out=0.1)
    assert len(train) + len(valid) == len(frames)
    assert len({f.source for f in valid}) == 5
    assert not {f.source for f in train} & {f.source for f in valid}


def test_every_level_has_its_own_readout_on_one_representation(labelled):
    low = [as_frame(s) for s in labelled]
    high = [Frame(f.atomic_numbers, f.positions, 2.0 * f.energy, 3.0 * f.forces) for f in low]
    keys = ["layers=1", "features=8", "channels=2", "lmax=2"]
    torch.manual_seed(0)
    config = load_config(None, ["dataset=x", *keys])
    both = build([low, high], config, neighbors=5.0).double().eval()
    graph = build_graph(low[0].positions, low[0].atomic_numbers, 5.0)
    upper = build_graph(low[0].positions, raised(low, 1)[0].atomic_numbers, 5.0)
    assert upper.atomic_numbers.min() > LEVEL
    energies = [float(both(*g.tensors())["energy"]) for g in (graph, upper)]
    # Random interactions aside, energies count from each level's own references.
    assert energies[0] == pytest.approx(low[0].energy, abs=50.0)
    assert energies[1] == pytest.approx(high[0].energy, abs=50.0)
    last = both.last_level().eval()
    result, expected = last(*graph.tensors()), both(*upper.tensors())
    torch.testing.assert_close(result["energy"], expected["energy"])
    torch.testing.assert_close(result["forces"], expected["forces"])
