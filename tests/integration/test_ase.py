"""The ASE calculator against the eager model, its errors, its cache and its neighbour lists."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

from calculators import PotentialCalculator
from forcefield import build_graph, load_exported
from forcefield.errors import (
    CheckpointError,
    ConfigError,
    InvalidStructureError,
    NonFiniteForceError,
    UnknownElementError,
)


def eager_results(potential, atoms: Atoms, compute_stress: bool = False) -> dict[str, np.ndarray]:
    graph = build_graph(
        atoms.positions, atoms.numbers, potential.cutoff, atoms.cell.array, atoms.pbc
    )
    output = potential(*graph.tensors(), compute_stress)
    return {key: value.detach().numpy() for key, value in output.items()}


class Counting(PotentialCalculator):
    """Counts evaluations of the model."""

    evaluations = 0

    def calculate(self, *args, **kwargs):
        self.evaluations += 1
        super().calculate(*args, **kwargs)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("float64", 1e-9)])
def test_agrees_with_the_eager_model(precision, tolerance, ethanol, water_box, request):
    exported = request.getfixturevalue(f"{precision}_potential")
    water_box.positions += [40.0, -30.0, 0.0]  # far outside the cell
    slab = water_box.copy()
    slab.pbc = [True, True, False]
    for atoms in (ethanol, water_box, slab, molecule("O")):
        expected = eager_results(exported.eager, atoms)
        atoms.calc = PotentialCalculator(exported.path)
        assert atoms.get_potential_energy() == pytest.approx(
            expected["energy"].item(), abs=len(atoms) * tolerance
        )
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        np.testing.assert_allclose(
            atoms.get_potential_energies(), expected["energies"], atol=tolerance, rtol=0
        )
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=tolerance, rtol=0)
    assert np.abs(eager_results(exported.eager, ethanol)["forces"]).max() > 0.1


def test_stress_is_the_derivative_of_the_energy_with_respect_to_strain(
    float64_potential, water_box
):
    water_box.calc = PotentialCalculator(float64_potential.path)
    stress = water_box.get_stress()
    cell, step = water_box.cell.array.copy(), 1e-5

    def energy(strain: np.ndarray) -> float:
        strained = water_box.copy()
        strained.set_cell(cell @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = water_box.calc
        return strained.get_potential_energy()

    # ASE's Voigt order: xx, yy, zz, yz, xz, xy.
    for component, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        derivative = (energy(strain) - energy(-strain)) / (2.0 * step)
        assert stress[component] == pytest.approx(derivative / water_box.get_volume(), abs=1e-8)
    assert np.abs(stress).max() > 1e-4


def test_stress_needs_three_periodic_directions(float32_potential, ethanol, water_box):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        ethanol.get_stress()
    water_box.pbc = [True, True, False]
    water_box.calc = PotentialCalculator(float32_potential.path)
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        water_box.get_stress()
    assert np.isfinite(water_box.get_potential_energy())


def test_one_evaluation_serves_all_properties(float32_potential, ethanol):
    calculator = ethanol.calc = Counting(float32_potential.path)
    ethanol.get_forces()
    ethanol.get_potential_energy()
    ethanol.get_potential_energies()
    ethanol.set_initial_charges(np.ones(9))
    ethanol.get_forces()
    assert calculator.evaluations == 1
    assert "stress" not in calculator.results
    assert not calculator.calculation_required(ethanol, ["energy", "forces"])


@pytest.mark.parametrize("change", ["positions", "numbers", "cell", "pbc", "order", "number"])
def test_every_change_of_the_structure_is_seen(change, float64_potential, water_box):
    calculator = water_box.calc = PotentialCalculator(float64_potential.path)
    before = water_box.get_potential_energy()
    if change == "positions":
        water_box.positions[4, 2] += 1e-7
    elif change == "numbers":
        water_box.numbers[4] = 6
    elif change == "cell":
        water_box.set_cell(water_box.cell.array * 0.99)
    elif change == "pbc":
        water_box.pbc = [True, True, False]
    elif change == "order":
        water_box.numbers[:2] = water_box.numbers[1::-1]
    else:
        del water_box[[0, 1, 2]]
    assert calculator.calculation_required(water_box, ["energy"])
    after = water_box.get_potential_energy()
    assert after != before
    fresh = water_box.copy()
    fresh.calc = PotentialCalculator(float64_potential.path)
    assert after == pytest.approx(fresh.get_potential_energy(), abs=1e-9)


def test_results_are_copies(float32_potential, ethanol):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    forces = ethanol.get_forces()
    expected = forces.copy()
    forces += 1.0
    np.testing.assert_array_equal(ethanol.get_forces(), expected)


def test_a_barostat_pays_for_one_evaluation_per_step(float32_potential, water_box):
    calculator = water_box.calc = Counting(float32_potential.path)
    for step in range(4):
        water_box.positions[0, 0] += 0.01
        water_box.get_forces()
        water_box.get_stress()
        assert calculator.evaluations == step + 2
    for _ in range(2):
        water_box.positions[0, 0] += 0.01
        water_box.get_forces()
    assert "stress" not in calculator.results


@pytest.mark.parametrize("skin", [0.0, 0.5])
@pytest.mark.parametrize("step", [0.01, 0.1])
def test_neighbour_list_is_right_while_atoms_and_cell_move(
    skin, step, float64_potential, water_box
):
    water_box.calc = PotentialCalculator(float64_potential.path, skin=skin)
    generator = np.random.default_rng(11)
    calls = 12
    for call in range(calls):
        water_box.positions += step * generator.normal(size=water_box.positions.shape)
        if call == 6:
            water_box.set_cell(water_box.cell.array * 0.97, scale_atoms=True)
        if call == 9:
            water_box.positions[5] += 2.0 * water_box.cell.array[1]
        expected = eager_results(float64_potential.eager, water_box)["forces"]
        np.testing.assert_allclose(water_box.get_forces(), expected, atol=1e-9)
    builds = water_box.calc.evaluator.neighbors.builds
    if skin == 0.0:
        assert builds == calls
    elif step == 0.01:
        assert builds < calls / 2


def test_large_molecules_outside_a_cell_get_a_neighbour_list(float64_potential, water_box):
    water_box.pbc = False
    water_box.calc = PotentialCalculator(float64_potential.path)
    expected = eager_results(float64_potential.eager, water_box)["forces"]
    np.testing.assert_allclose(water_box.get_forces(), expected, atol=1e-9)
    assert water_box.calc.evaluator.neighbors.builds == 1


def test_unknown_element_is_named(float32_potential):
    atoms = molecule("CH3Cl")
    atoms.calc = PotentialCalculator(float32_potential.path)
    with pytest.raises(UnknownElementError, match="atom 1 is Cl"):
        atoms.get_forces()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_position_that_is_not_finite_is_named(value, float32_potential, ethanol):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    ethanol.get_forces()
    ethanol.positions[2, 1] = value
    for _ in range(2):  # the failure must not be mistaken for a cached result
        with pytest.raises(InvalidStructureError, match=r"atom 2 \(O\)"):
            ethanol.get_forces()
    ethanol.positions[2, 1] = 0.5
    assert np.isfinite(ethanol.get_forces()).all()


def test_singular_cell_is_refused(float32_potential, ethanol):
    ethanol.pbc = True
    ethanol.set_cell([10.0, 10.0, 0.0])
    ethanol.calc = PotentialCalculator(float32_potential.path)
    with pytest.raises(InvalidStructureError, match="cell"):
        ethanol.get_forces()


def test_forces_that_are_not_finite_are_named(broken_potential, ethanol):
    ethanol.calc = PotentialCalculator(broken_potential)
    with pytest.raises(NonFiniteForceError, match=r"atom \d \((C|O|H)\)"):
        ethanol.get_forces()


def test_files_that_are_no_potentials_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.pt"):
        PotentialCalculator(tmp_path / "missing.pt")
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        PotentialCalculator(other)


def test_loaded_potential_serves_several_calculators(float32_potential, ethanol):
    loaded = load_exported(float32_potential.path)
    water = molecule("H2O")
    ethanol.calc, water.calc = PotentialCalculator(loaded), PotentialCalculator(loaded)
    alone = molecule("H2O")
    alone.calc = PotentialCalculator(float32_potential.path)
    for _ in range(2):
        ethanol.rattle(0.01)
        ethanol.get_forces()
        assert water.get_potential_energy() == alone.get_potential_energy()


def test_double_precision_on_request(float32_potential, float64_potential, ethanol):
    loaded = load_exported(float32_potential.path)
    ethanol.calc = PotentialCalculator(loaded, dtype=torch.float64)
    promoted = ethanol.get_forces()
    eager = load_exported(float32_potential.path).module.double()
    graph = build_graph(ethanol.positions, ethanol.numbers, 4.0)
    np.testing.assert_allclose(promoted, eager(*graph.tensors())["forces"].numpy(), atol=1e-10)
    # The loaded potential itself stays as it was.
    assert next(loaded.module.parameters()).dtype == torch.float32
    with pytest.raises(ConfigError, match="float32"):
        PotentialCalculator(float64_potential.path, dtype=torch.float32)


def test_works_under_no_grad(float32_potential, ethanol):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    expected = ethanol.get_forces()
    ethanol.calc = PotentialCalculator(float32_potential.path)
    with torch.no_grad():
        np.testing.assert_array_equal(ethanol.get_forces(), expected)


def test_error_of_the_total_energy_falls_with_the_square_of_the_time_step(
    float64_potential, ethanol
):
    """As velocity Verlet promises for forces that are the derivative of a smooth energy."""

    def error(steps: int) -> float:
        atoms = ethanol.copy()
        atoms.set_momenta(np.random.default_rng(1).normal(size=(9, 3)))
        atoms.calc = PotentialCalculator(float64_potential.path)
        start = atoms.get_total_energy()
        errors = []
        dynamics = VelocityVerlet(atoms, 20.0 / steps * units.fs)
        dynamics.attach(lambda: errors.append(abs(atoms.get_total_energy() - start)))
        dynamics.run(steps)
        assert np.abs(atoms.positions - ethanol.positions).max() > 0.1
        return max(errors)

    coarse, fine = error(80), error(160)
    assert coarse < 5e-3 * len(ethanol)
    assert coarse / fine == pytest.approx(4.0, rel=0.15)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(float32_potential, ethanol, water_box):
    for atoms in (ethanol, water_box):
        atoms.calc = PotentialCalculator(float32_potential.path)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = PotentialCalculator(float32_potential.path, device="cuda")
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-4)
        # The molecule's step is recorded now, and replayed for other positions.
        atoms.rattle(0.05, seed=8)
        replayed = atoms.get_forces()
        atoms.calc = PotentialCalculator(float32_potential.path)
        np.testing.assert_allclose(atoms.get_forces(), replayed, atol=1e-4)
        assert np.abs(replayed - forces).max() > 0.01


def test_importing_the_package_is_light():
    code = (
        "import sys, calculators; "
        "assert not {'torch', 'ase', 'openmm'} & set(sys.modules), 'heavy import'; "
        "from calculators import PotentialCalculator; print(PotentialCalculator.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout.strip() == "PotentialCalculator", done.stderr
