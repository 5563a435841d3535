"""The calculator as an object: cache, copies, pickle, threads, processes, precision, devices, files."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read, write

from calculators import CommitteeCalculator, PotentialCalculator
from calculators.evaluator import Evaluator, open_potential
from calculators.loading import pack_potential, unpack_potential
from forcefield import load_exported
from forcefield.errors import AbsurdForceError, ConfigError, InvalidStructureError


class Counting(PotentialCalculator):
    """Counts evaluations of the model."""

    evaluations = 0

    def calculate(self, *args, **kwargs):
        self.evaluations += 1
        super().calculate(*args, **kwargs)


def test_the_cache_belongs_to_the_structure_not_to_the_object(float32_potential, ethanol):
    calculator = Counting(float32_potential.path)
    first = calculator.get_property("forces", ethanol)
    same = ethanol.copy()
    same.info["note"], same.arrays["labels"] = "another object", np.arange(9)
    np.testing.assert_array_equal(calculator.get_property("forces", same), first)
    assert calculator.get_property("energy") == calculator.get_property("energy", ethanol)
    assert calculator.evaluations == 1

    ethanol.pbc = True
    ethanol.set_cell(12.0 * np.eye(3))
    assert calculator.get_property("energy", ethanol, allow_calculation=False) is None
    assert calculator.evaluations == 1
    calculator.get_property("energy", ethanol)
    # The first structure is not the last one any more.
    calculator.get_property("energy", same)
    assert calculator.evaluations == 3
    calculator.reset()
    calculator.get_property("energy", same)
    assert calculator.evaluations == 4


def test_one_calculator_for_many_structures(float64_potential, ethanol, water_box):
    structures = [ethanol, molecule("H2O"), water_box, molecule("CH3OH"), ethanol]
    shared = PotentialCalculator(float64_potential.path)
    for atoms in structures:
        alone = PotentialCalculator(float64_potential.path)
        np.testing.assert_allclose(shared.get_forces(atoms), alone.get_forces(atoms), atol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_pickle_gives_the_same_calculator(precision, ethanol, water_box, request):
    path = request.getfixturevalue(f"{precision}_potential").path
    for atoms in (ethanol, water_box):
        atoms.calc = PotentialCalculator(path, skin=0.3, max_force=50.0)
        forces = atoms.get_forces()
        again = pickle.loads(pickle.dumps(atoms))
        assert again.calc.skin == 0.3
        assert again.calc.max_force == 50.0
        assert again.calc.potential.metadata == atoms.calc.potential.metadata
        # What was calculated is still there; and comes out the same when calculated again.
        assert not again.calc.calculation_required(again, ["forces"])
        again.calc.reset()
        np.testing.assert_array_equal(again.get_forces(), forces)
        np.testing.assert_array_equal(atoms.get_forces(), forces)


def test_pickle_keeps_double_precision_and_committees(float32_potential, ethanol):
    double = PotentialCalculator(float32_potential.path, dtype=torch.float64)
    committee = CommitteeCalculator([float32_potential.path] * 2)
    for calculator in (double, committee):
        again = pickle.loads(pickle.dumps(calculator))
        expected = calculator.get_property("forces", ethanol)
        np.testing.assert_array_equal(again.get_property("forces", ethanol), expected)
    assert pickle.loads(pickle.dumps(double)).potential.dtype == torch.float64


def test_copies_share_the_potential_and_nothing_else(float32_potential, ethanol):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    forces = ethanol.get_forces()
    twin = copy.deepcopy(ethanol)
    assert twin.calc is not ethanol.calc
    assert twin.calc.potential is ethanol.calc.potential
    twin.rattle(0.05)
    assert np.abs(twin.get_forces() - forces).max() > 1e-3
    np.testing.assert_array_equal(ethanol.get_forces(), forces)
    assert not ethanol.calc.calculation_required(ethanol, ["forces"])
    assert twin.calc.evaluator is not ethanol.calc.evaluator


def test_a_copy_does_not_write_the_potential_out(float32_potential, ethanol, monkeypatch):
    ethanol.calc = PotentialCalculator(float32_potential.path)
    ethanol.get_forces()
    monkeypatch.setattr("torch.jit.save", None)
    twin = copy.deepcopy(ethanol)
    np.testing.assert_array_equal(twin.get_forces(), ethanol.get_forces())


def test_a_refused_stress_leaves_no_results_of_another_structure(float32_potential, ethanol):
    calculator = PotentialCalculator(float32_potential.path)
    before = calculator.get_potential_energy(ethanol)
    other = moved(ethanol, 1)
    with pytest.raises(PropertyNotImplementedError):
        calculator.calculate(other, ["energy", "stress"])
    after = calculator.get_potential_energy(other)
    assert after != before
    assert after == PotentialCalculator(calculator.potential).get_potential_energy(other)


def test_settings_can_be_changed_between_evaluations(float32_potential, float64_potential, ethanol):
    calculator = PotentialCalculator(float32_potential.path)
    calculator.get_forces(ethanol)
    calculator.get_hessian(ethanol)
    calculator.potential = load_exported(float64_potential.path)
    expected = PotentialCalculator(float64_potential.path)
    other = moved(ethanol, 1)
    np.testing.assert_array_equal(calculator.get_forces(other), expected.get_forces(other))
    np.testing.assert_array_equal(calculator.get_hessian(other), expected.get_hessian(other))
    calculator.max_force = 1e-6
    with pytest.raises(AbsurdForceError):
        calculator.get_forces(ethanol)


def test_estimated_errors_do_not_disturb_ases_own_properties(float32_potential, ethanol):
    ethanol.calc = CommitteeCalculator([float32_potential.path] * 2)
    properties = ethanol.get_properties(["energy", "forces"])
    assert properties["energy"] == ethanol.calc.results["energy"]
    assert "energy_uncertainty" in ethanol.calc.results


def test_a_position_that_is_not_finite_has_no_second_derivatives(float32_potential, ethanol):
    ethanol.positions[2, 0] = np.nan
    with pytest.raises(InvalidStructureError, match="atom 2"):
        PotentialCalculator(float32_potential.path).get_hessian(ethanol)


def test_an_evaluator_keeps_its_limit_through_pickle(float32_potential, ethanol):
    evaluator = Evaluator(load_exported(float32_potential.path), ethanol.numbers, 0.2, np.inf)
    again = pickle.loads(pickle.dumps(evaluator))
    assert (again.skin, again.max_force) == (0.2, np.inf)
    expected = evaluator(ethanol.positions).forces
    np.testing.assert_array_equal(again(ethanol.positions).forces, expected)


def test_the_fuser_is_off_wherever_a_potential_comes_from(float32_potential):
    """A potential on the CPU may be moved to a GPU later, as OpenMM's plugin does."""
    potential = load_exported(float32_potential.path)
    packed = pack_potential(potential)
    for load in (
        lambda: load_exported(float32_potential.path),
        lambda: unpack_potential(packed),
    ):
        torch._C._jit_set_texpr_fuser_enabled(True)
        load()
        assert not torch._C._jit_texpr_fuser_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would stay on the GPU")
def test_a_potential_from_a_gpu_comes_back_on_the_cpu(float32_potential, ethanol):
    potential = load_exported(float32_potential.path)
    *packed, device = pack_potential(potential)
    assert device == "cpu"
    again = unpack_potential((*packed, "cuda:0"))
    expected = PotentialCalculator(potential).get_forces(ethanol)
    np.testing.assert_array_equal(PotentialCalculator(again).get_forces(ethanol), expected)


def moved(atoms: Atoms, number: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=number)
    return atoms


def test_threads_share_a_potential(float32_potential, ethanol, water_box):
    """Different structures at the same time, from the first call on, when TorchScript compiles."""
    loaded = load_exported(float32_potential.path)
    starts = [ethanol, water_box, molecule("CH3OH"), molecule("H2O")]

    def run(start: Atoms) -> list[np.ndarray]:
        calculator = PotentialCalculator(loaded)
        return [calculator.get_forces(moved(start, k)) for k in range(12)]

    with ThreadPoolExecutor(len(starts)) as pool:
        together = list(pool.map(run, starts))
    for start, found in zip(starts, together, strict=True):
        for forces, expected in zip(found, run(start), strict=True):
            np.testing.assert_allclose(forces, expected, atol=2e-6)


def test_worker_processes_get_the_calculator(float32_potential, ethanol):
    calculator = PotentialCalculator(float32_potential.path)
    frames = [moved(ethanol, k) for k in range(3)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        energies = list(pool.map(calculator.get_potential_energy, frames))
    assert energies == pytest.approx(
        [calculator.get_potential_energy(frame) for frame in frames], abs=1e-6
    )


def test_results_survive_the_usual_files(float64_potential, water_box, tmp_path):
    water_box.calc = PotentialCalculator(float64_potential.path)
    energy, forces, stress = (
        water_box.get_potential_energy(),
        water_box.get_forces(),
        water_box.get_stress(),
    )
    with ase.db.connect(tmp_path / "frames.db") as database:
        database.write(water_box)
    for name in ("frames.extxyz", "frames.traj", "frames.json"):
        write(tmp_path / name, water_box)
    for name in ("frames.extxyz", "frames.traj", "frames.json", "frames.db"):
        back = read(tmp_path / name)
        assert back.get_potential_energy() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(back.get_forces(), forces, atol=1e-7)
        np.testing.assert_allclose(back.get_stress(), stress, atol=1e-7)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("mps", "no double precision"),
        ("gpu", "choose 'cpu' or 'cuda'"),
        pytest.param(
            "cuda",
            "finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_named(device, sentence, float32_potential):
    with pytest.raises(ConfigError, match=sentence):
        PotentialCalculator(float32_potential.path, device=device)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_limit_of_forces_is_a_positive_number(value, float32_potential):
    with pytest.raises(ConfigError, match="max_force"):
        PotentialCalculator(float32_potential.path, max_force=value)


def test_the_limit_of_forces_is_the_users(float64_potential, ethanol):
    largest = np.linalg.norm(
        PotentialCalculator(float64_potential.path).get_forces(ethanol), axis=1
    )
    within = PotentialCalculator(float64_potential.path, max_force=1.001 * largest.max())
    assert np.isfinite(within.get_forces(ethanol)).all()
    beyond = PotentialCalculator(float64_potential.path, max_force=0.999 * largest.max())
    with pytest.raises(Exception, match=rf"atom {largest.argmax()} \(") as caught:
        beyond.get_forces(ethanol)
    assert type(caught.value).__name__ == "AbsurdForceError"


def test_descriptors_are_invariant_and_differ_where_surroundings_do(float64_potential, water_box):
    calculator = PotentialCalculator(float64_potential.path)
    expected = calculator.get_descriptors(water_box)
    assert expected.shape == (81, 16)
    assert expected.dtype == np.float64
    turned = water_box.copy()
    turned.rotate(77.0, (1.0, 2.0, -0.5), rotate_cell=True)
    turned.translate([3.0, -1.0, 0.4])
    turned.wrap()
    order = np.random.default_rng(0).permutation(81)
    # Constants of the network were rounded to single precision when it was built.
    np.testing.assert_allclose(
        calculator.get_descriptors(turned[order]), expected[order], atol=1e-7
    )
    methane = molecule("CH4")
    found = calculator.get_descriptors(methane)
    np.testing.assert_allclose(found[1:], np.broadcast_to(found[1], (4, 16)), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.abs(expected[0] - expected[3]).max() > 1e-4  # oxygens of different molecules
    # An atom by itself is where they are counted from.
    np.testing.assert_allclose(calculator.get_descriptors(molecule("O")), 0.0, atol=1e-12)


def test_the_energy_is_a_linear_function_of_the_descriptors(float64_potential, ethanol):
    calculator = PotentialCalculator(float64_potential.path)
    descriptors, energies = [], []
    for k in range(12):
        frame = moved(ethanol, k)
        references = np.array([{1: -13.6, 6: -1029.0, 8: -2041.0}[z] for z in frame.numbers])
        energies.append(calculator.get_potential_energies(frame) - references)
        descriptors.append(calculator.get_descriptors())  # of the last calculation
    inputs, outputs = np.concatenate(descriptors), np.concatenate(energies)
    weights = np.linalg.lstsq(inputs[:54], outputs[:54], rcond=None)[0]
    np.testing.assert_allclose(inputs[54:] @ weights, outputs[54:], atol=1e-6)


def test_a_loaded_potential_in_double_precision_is_a_copy(float32_potential):
    loaded = load_exported(float32_potential.path)
    double = open_potential(loaded, dtype=torch.float64)
    assert (loaded.dtype, double.dtype) == (torch.float32, torch.float64)
    assert double.module is not loaded.module
