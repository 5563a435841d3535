"""calculate_many: the same results as one by one, whatever the structures share a call with."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from calculators import CommitteeCalculator, PotentialCalculator, calculate_many
from calculators.batch import PAIRS_PER_CALL
from forcefield import export_potential, load_exported
from forcefield.errors import (
    AbsurdForceError,
    CheckpointError,
    ConfigError,
    InvalidStructureError,
    UnknownElementError,
)


@pytest.fixture
def mixture(ethanol, water_box) -> list[Atoms]:
    """Molecules, an atom, a slab, a chain, a liquid and a cell smaller than the cutoff."""
    slab, chain = water_box.copy(), water_box[:12]
    slab.pbc = [True, True, False]
    chain.pbc = [False, True, False]
    small = water_box[:3]
    small.set_cell([[3.1, 0.0, 0.0], [0.3, 3.3, 0.0], [0.0, -0.4, 3.0]])
    frames = []
    for seed in range(6):
        frame = ethanol.copy()
        frame.rattle(0.1, seed=seed)
        frames.append(frame)
    return [*frames[:3], water_box, molecule("O"), slab, small, *frames[3:], chain]


@pytest.mark.parametrize("max_pairs", [1, 100, None, 10**9])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 5e-6), ("float64", 1e-10)])
def test_equal_to_one_by_one(max_pairs, precision, tolerance, mixture, request):
    path = request.getfixturevalue(f"{precision}_potential").path
    found = calculate_many(path, iter(mixture), max_pairs=max_pairs)
    calculator = PotentialCalculator(path)
    assert len(found) == len(mixture)
    for atoms, results in zip(mixture, found, strict=True):
        assert atoms.calc is None
        expected = {
            name: calculator.get_property(name, atoms)
            for name in ("energy", "free_energy", "energies", "forces")
        }
        if atoms.pbc.all():
            expected["stress"] = calculator.get_property("stress", atoms)
        assert set(results) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                results[name], value, atol=len(atoms) * tolerance, rtol=0, err_msg=name
            )
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property("stress", mixture[0])


def test_a_call_holds_as_many_pairs_as_it_may(float32_potential, mixture):
    potential = load_exported(float32_potential.path)
    sizes: list[int] = []
    structures: list[int] = []

    class Spy(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            sizes.append(inputs[2].shape[1])
            structures.append(inputs[4].shape[0])
            return self.module(*inputs)

    spied = type(potential)(Spy(potential.module), potential.metadata)
    calculate_many(spied, mixture, max_pairs=300)
    assert sum(structures) == len(mixture)
    assert max(structures) > 1
    assert all(size <= 300 for size, count in zip(sizes, structures, strict=True) if count > 1)
    # As few calls as this order of the structures allows.
    assert all(a + b > 300 for a, b in pairwise(sizes))


def test_the_settings_are_those_of_a_calculator(float32_potential, mixture):
    double = PotentialCalculator(float32_potential.path, dtype=torch.float64)
    found = calculate_many(double, mixture[:2])
    expected = calculate_many(float32_potential.path, mixture[:2], dtype=torch.float64)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["forces"], other["forces"])
    strict = PotentialCalculator(float32_potential.path, max_force=1e-3)
    with pytest.raises(AbsurdForceError, match=r"structure 0: .*atom \d \("):
        calculate_many(strict, mixture)
    with pytest.raises(AbsurdForceError, match=r"structure 0: "):
        calculate_many(float32_potential.path, mixture, max_force=1e-3)


def test_one_structure_or_a_file_is_no_list(float32_potential, mixture, tmp_path):
    for wrong in (mixture[0], "frames.extxyz", tmp_path):
        with pytest.raises(ConfigError, match="takes a list of structures"):
            calculate_many(float32_potential.path, wrong)


def test_stress_may_be_left_out(float32_potential, mixture):
    assert all(
        "stress" not in results
        for results in calculate_many(float32_potential.path, mixture, stress=False)
    )


def test_a_committee_gives_means_and_deviations(float32_potential, float64_potential, mixture):
    committee = CommitteeCalculator([float32_potential.path, float64_potential.path])
    for atoms, results in zip(mixture, calculate_many(committee, iter(mixture)), strict=True):
        for name in ("energy", "forces", "forces_uncertainty"):
            expected = committee.get_property(name, atoms)
            np.testing.assert_allclose(results[name], expected, atol=2e-5)


def test_results_become_calculators(float64_potential, mixture):
    for atoms, results in zip(
        mixture, calculate_many(float64_potential.path, mixture), strict=True
    ):
        atoms.calc = SinglePointCalculator(atoms, **results)
        np.testing.assert_array_equal(atoms.get_forces(), results["forces"])


def test_results_are_of_their_own(float64_potential, mixture):
    first, second = calculate_many(float64_potential.path, mixture[:2])
    expected = second["forces"].copy()
    first["forces"] += 1.0
    np.testing.assert_array_equal(second["forces"], expected)


def test_a_generator_may_move_one_structure_on(float64_potential, ethanol):
    def walk(atoms):
        for _ in range(5):
            atoms.positions[0, 0] += 0.02
            yield atoms

    calculator = PotentialCalculator(float64_potential.path)
    expected = [calculator.get_potential_energy(atoms) for atoms in walk(ethanol.copy())]
    for source in (calculator, CommitteeCalculator([float64_potential.path] * 2)):
        energies = [r["energy"] for r in calculate_many(source, walk(ethanol.copy()))]
        assert energies == pytest.approx(expected, abs=1e-9)
    assert np.ptp(energies) > 1e-3


def test_no_structures_no_results(float32_potential):
    assert calculate_many(float32_potential.path, []) == []


@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (lambda a: a.numbers.__setitem__(2, 9), UnknownElementError, "structure 4: atom 2 is F"),
        (
            lambda a: a.positions.__setitem__(1, np.nan),
            InvalidStructureError,
            r"structure 4: the position of atom 1 \(C\) is not finite",
        ),
        (
            lambda a: a.positions.__setitem__(5, a.positions[3]),
            InvalidStructureError,
            r"structure 4: atom 3 \(H\) and atom 5 \(H\) lie on top of each other",
        ),
        (lambda a: a.set_pbc(True), InvalidStructureError, "structure 4: the cell vectors"),
    ],
)
def test_the_structure_that_cannot_be_evaluated_is_named(
    damage, error, sentence, float32_potential, ethanol
):
    frames = [ethanol.copy() for _ in range(6)]
    damage(frames[4])
    with pytest.raises(error, match=sentence):
        calculate_many(float32_potential.path, frames)


def test_what_cannot_be_asked_for(float32_potential, ethanol):
    with pytest.raises(ConfigError, match="max_pairs"):
        calculate_many(float32_potential.path, [ethanol], max_pairs=0)
    with pytest.raises(CheckpointError, match="no error estimate"):
        calculate_many(float32_potential.path, [ethanol], uncertainty=True)
    with pytest.raises(ConfigError, match="max_force"):
        calculate_many(float32_potential.path, [ethanol], max_force=-1.0)


def test_uncertainties_are_those_of_one_by_one(float64_potential, mixture, tmp_path):
    potential = copy.deepcopy(float64_potential.eager)
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    potential.posterior.set(factor, torch.tensor([0.7, 1.3]))
    export_potential(potential, tmp_path / "potential.pt")
    calculator = PotentialCalculator(tmp_path / "potential.pt", uncertainty=True)
    for source, options in (
        (calculator, {}),
        (tmp_path / "potential.pt", {"uncertainty": True, "max_pairs": 150}),
    ):
        found = calculate_many(source, mixture, **options)
        for atoms, results in zip(mixture, found, strict=True):
            expected = calculator.get_property("forces_uncertainty", atoms)
            np.testing.assert_allclose(results["forces_uncertainty"], expected, atol=1e-8)
            assert results["energy_uncertainty"] == pytest.approx(
                calculator.results["energy_uncertainty"], abs=1e-8
            )
    assert max(results["forces_uncertainty"].max() for results in found) > 0.01


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(float32_potential, mixture):
    found = calculate_many(float32_potential.path, mixture, device="cuda")
    expected = calculate_many(float32_potential.path, mixture)
    assert PAIRS_PER_CALL["cuda"] > PAIRS_PER_CALL["cpu"]
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-4)
