"""Estimated errors of a trained potential: in its files, its calculator, its report; and committees."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from calculators import CommitteeCalculator, PotentialCalculator
from forcefield import build_graph, build_potential, export_potential, load_exported, load_potential
from forcefield.checkpoint import read_header
from forcefield.errors import CheckpointError, ConfigError, UnknownElementError
from forcefield.uncertainty import has_uncertainty, predict_uncertainty
from tests.conftest import make_potential
from training import finish, load_config, train
from training.datasets import load_split
from training.evaluate import Predictions, predict
from training.graphs import GraphDataset
from training.last_layer import rows
from training.report import uncertainty_section
from training.statistics import ISOLATED_ATOMS
from training.uncertainty import (
    Comparison,
    add_to_run,
    calibrate,
    calibration_figures,
    compare,
    with_uncertainty,
)

FRAMES = {"train": 40, "valid": 10, "test": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of quick-test, with its error estimate."""
    output = tmp_path_factory.mktemp("runs")
    config = load_config("quick-test", [f"output={output}", "threads=1", "name=first"])
    train(config, show_progress=False)
    add_to_run(output / "first")
    return output / "first"


@pytest.fixture(scope="module")
def split():
    return load_split("rmd17:ethanol", **FRAMES, seed=0)


@pytest.fixture(scope="module")
def predictions(run, split):
    potential, _ = load_potential(run / "potential.safetensors")
    dataset = GraphDataset(split.test, potential.cutoff)
    return with_uncertainty(predict(potential, dataset, "cpu"), potential, dataset, "cpu")


def test_an_estimate_is_added_to_a_run_with_isolated_atoms(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    data = json.loads((folder / "data.json").read_text())
    data["reference_energies_from"] = ISOLATED_ATOMS
    (folder / "data.json").write_text(json.dumps(data))
    before = (folder / "potential.safetensors").read_bytes()
    add_to_run(folder)
    assert (folder / "potential.safetensors").read_bytes() == before


def as_atoms(frame) -> Atoms:
    return Atoms(frame.atomic_numbers, frame.positions)


class TestFiles:
    def test_weights_and_exported_file_agree(self, run, split):
        potential, header = load_potential(run / "potential.safetensors")
        exported = load_exported(run / "potential.pt")
        assert header["uncertainty"] is True
        assert exported.metadata["uncertainty"] is True
        for frame in split.test[:3]:
            inputs = build_graph(frame.positions, frame.atomic_numbers, potential.cutoff).tensors()
            energy, forces = predict_uncertainty(potential, *inputs)
            for _ in range(4):  # TorchScript specialises itself during the first calls.
                found = predict_uncertainty(exported.module, *inputs)
            np.testing.assert_allclose(found[0], energy, rtol=1e-3)
            np.testing.assert_allclose(found[1], forces, rtol=1e-3)
            found_energy = exported.module(*inputs)["energy"]
            torch.testing.assert_close(
                found_energy, potential(*inputs)["energy"], rtol=0, atol=1e-5
            )

    def test_a_file_without_an_estimate_says_how_to_get_one(self, float32_potential, ethanol):
        with pytest.raises(CheckpointError, match=r"no error estimate.*add_to_run"):
            PotentialCalculator(float32_potential.path, uncertainty=True)
        ethanol.calc = PotentialCalculator(float32_potential.path)
        ethanol.get_forces()
        with pytest.raises(CheckpointError, match="no error estimate"):
            ethanol.calc.get_property("energy_uncertainty", ethanol)
        assert np.isfinite(ethanol.get_forces()).all()

    def test_no_validation_frames_no_estimate(self, run, split):
        potential, _ = load_potential(run / "potential.safetensors")
        assert has_uncertainty(potential)
        calibrate(potential, rows(potential, GraphDataset(split.train[:2], 5.0), "cpu"), None)
        assert not has_uncertainty(potential)

    def test_no_estimate_for_a_run_without_validation_frames(self, tmp_path):
        options = [
            "valid=0",
            "train=10",
            "epochs=1",
            f"output={tmp_path}",
            "name=none",
            "threads=1",
        ]
        train(load_config("quick-test", options), show_progress=False)
        with pytest.raises(ConfigError, match="validation frames"):
            add_to_run(tmp_path / "none")
        assert read_header(tmp_path / "none" / "potential.safetensors")["uncertainty"] is False


class TestCalculator:
    def test_with_every_structure(self, run, split):
        atoms = as_atoms(split.test[0])
        calculator = atoms.calc = PotentialCalculator(run / "potential.pt", uncertainty=True)
        atoms.get_potential_energy()
        before = calculator.results["energy_uncertainty"]
        assert before > 0
        assert calculator.results["forces_uncertainty"].shape == (9,)
        atoms.rattle(0.05, seed=1)
        atoms.get_potential_energy()
        assert calculator.results["energy_uncertainty"] != before

    def test_only_when_asked(self, run, split):
        atoms = as_atoms(split.test[0])
        calculator = atoms.calc = PotentialCalculator(run / "potential.pt")
        atoms.get_forces()
        assert "energy_uncertainty" not in calculator.results
        forces = calculator.get_property("forces_uncertainty", atoms)
        assert calculator.results["energy_uncertainty"] > 0
        atoms.calc = PotentialCalculator(run / "potential.pt", uncertainty=True)
        atoms.get_forces()
        np.testing.assert_allclose(forces, atoms.calc.results["forces_uncertainty"], rtol=1e-3)
        atoms.positions[0, 0] += 0.01
        atoms.calc = calculator
        atoms.get_forces()
        assert "energy_uncertainty" not in calculator.results

    def test_in_a_periodic_cell_with_a_neighbour_list(self, run, water_box):
        water_box.calc = PotentialCalculator(run / "potential.pt", uncertainty=True)
        with torch.no_grad():
            stress = water_box.get_stress()
        assert stress.shape == (6,)
        forces = water_box.calc.results["forces_uncertainty"].copy()
        water_box.positions += water_box.cell.array[1]
        water_box.get_forces()
        np.testing.assert_allclose(water_box.calc.results["forces_uncertainty"], forces, rtol=1e-2)

    def test_distorted_geometries_are_less_certain(self, run, split):
        calculator = PotentialCalculator(run / "potential.pt", uncertainty=True)

        def estimates(stretch):
            found = []
            for frame in split.train[:10]:
                atoms = as_atoms(frame)
                atoms.rattle(stretch, seed=frame.index)
                atoms.calc = calculator
                atoms.get_forces()
                results = calculator.results
                found.append((results["energy_uncertainty"], results["forces_uncertainty"].max()))
            return np.mean(found, axis=0)

        assert (estimates(0.15) > 1.5 * estimates(0.0)).all()


class TestComparison:
    def test_of_the_test_frames(self, predictions):
        figures = calibration_figures(predictions)
        assert figures["frames"] == FRAMES["test"]
        assert figures["forces_spearman"] > 0.1
        for quantity in ("energy", "forces"):
            assert 0.2 < figures[f"{quantity}_mean_squared_normalized"] < 5.0
            assert figures[f"{quantity}_within_1_sigma"] < figures[f"{quantity}_within_2_sigma"]
        json.dumps(figures)

    @pytest.mark.parametrize(
        ("limit", "count", "expected"),
        [
            ("TEST_FRAMES", 7, [0, 3, 6, 9, 12, 15, 18]),
            ("TEST_ATOMS", 24, [0, 8, 16]),  # of 180
        ],
    )
    def test_estimates_of_frames_that_were_left_out_are_nan(
        self, run, split, predictions, monkeypatch, limit, count, expected
    ):
        monkeypatch.setattr(f"training.uncertainty.{limit}", count)
        potential, _ = load_potential(run / "potential.safetensors")
        dataset = GraphDataset(split.test, potential.cutoff)
        plain = replace(predictions, energy_uncertainty=None, forces_uncertainty=None)
        thin = with_uncertainty(plain, potential, dataset, "cpu")
        chosen = np.isfinite(thin.energy_uncertainty)
        assert np.flatnonzero(chosen).tolist() == expected
        np.testing.assert_allclose(
            thin.energy_uncertainty[chosen], predictions.energy_uncertainty[chosen], rtol=1e-3
        )
        atoms = np.repeat(chosen, 9)
        assert np.isnan(thin.forces_uncertainty[~atoms]).all()
        np.testing.assert_allclose(
            thin.forces_uncertainty[atoms], predictions.forces_uncertainty[atoms], rtol=1e-3
        )
        assert len(compare(thin)["forces"].errors) == len(expected) * 9

    def test_figures_of_known_errors(self):
        generator = np.random.default_rng(0)
        sigma = np.exp(generator.normal(size=20_000))
        errors = sigma[:, None] * generator.normal(size=(20_000, 3))
        figures = Comparison(sigma, errors).figures()
        assert figures["within_1_sigma"] == pytest.approx(0.683, abs=0.01)
        assert figures["within_2_sigma"] == pytest.approx(0.954, abs=0.01)
        assert figures["mean_squared_normalized"] == pytest.approx(1.0, abs=0.03)
        assert 0.8 < figures["spearman"] < 1.0
        estimated, true = Comparison(sigma, errors).bins()
        assert (np.diff(estimated) > 0).all()
        np.testing.assert_allclose(estimated, true, rtol=0.1)
        assert Comparison(sigma, 2.0 * errors).figures()["mean_squared_normalized"] > 3.5
        sigma[0], errors[0] = 0.0, 1e-9
        assert np.isfinite(list(Comparison(sigma, errors).figures().values())).all()
        sigma[0] = 1.0
        assert Comparison(1.0 / sigma, errors).figures()["spearman"] < -0.8

    def test_predictions_come_back_from_disk(self, predictions, tmp_path):
        predictions.save(tmp_path / "predictions.npz")
        loaded = Predictions.load(tmp_path / "predictions.npz")
        assert calibration_figures(loaded) == pytest.approx(
            calibration_figures(predictions), abs=0.01
        )
        replace(predictions, energy_uncertainty=None, forces_uncertainty=None).save(
            tmp_path / "plain.npz"
        )
        assert compare(Predictions.load(tmp_path / "plain.npz")) == {}

    def test_report_and_summary(self, run, split, predictions):
        section = uncertainty_section(predictions, 8)
        assert "from 8 validation frames" in section.body
        assert "about 25 %" in section.body
        assert section.body.count("<img") == 2
        assert "rank correlation" in section.body
        plain = replace(predictions, energy_uncertainty=None, forces_uncertainty=None)
        assert "no error estimate" in uncertainty_section(plain, 8).body
        potential, _ = load_potential(run / "potential.safetensors")
        graphs = {
            "test": GraphDataset(split.test, potential.cutoff),
            "valid": GraphDataset(split.valid, potential.cutoff),
        }
        found, errors = finish.test(potential, graphs, "cpu")
        assert errors["uncertainty"] == pytest.approx(calibration_figures(predictions), rel=1e-3)
        assert found.energy_uncertainty is not None


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three exported potentials with different random weights."""
    folder = tmp_path_factory.mktemp("committee")
    for seed in range(3):
        export_potential(make_potential("hegnn", seed=seed), folder / f"{seed}.pt")
    return [folder / f"{seed}.pt" for seed in range(3)]


class TestCommittee:
    def test_means_and_standard_deviations(self, paths, water_box):
        water_box.calc = CommitteeCalculator(paths)
        energy, forces = water_box.get_potential_energy(), water_box.get_forces()
        stress = water_box.get_stress()
        results = water_box.calc.results
        single = []
        for path in paths:
            atoms = water_box.copy()
            atoms.calc = PotentialCalculator(path)
            single.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
        energies, all_forces, stresses = (np.array(values) for values in zip(*single, strict=True))
        assert energy == pytest.approx(energies.mean(), abs=1e-8)
        np.testing.assert_allclose(forces, all_forces.mean(0), rtol=0, atol=1e-10)
        np.testing.assert_allclose(stress, stresses.mean(0), rtol=0, atol=1e-10)
        assert results["energy_uncertainty"] == pytest.approx(energies.std(ddof=1), rel=1e-6)
        deviation = np.square(all_forces - all_forces.mean(0)).sum(0) / 2.0
        np.testing.assert_allclose(
            results["forces_uncertainty"], np.sqrt(deviation.mean(1)), rtol=1e-6
        )
        assert results["free_energy"] == results["energy"]

    def test_members_that_agree_are_certain(self, paths, ethanol):
        ethanol.calc = CommitteeCalculator([paths[0], load_exported(paths[0])])
        ethanol.get_forces()
        assert ethanol.calc.results["energy_uncertainty"] == 0.0
        assert not ethanol.calc.get_property("forces_uncertainty", ethanol).any()

    def test_one_evaluation_of_each_serves_all_properties(self, paths, ethanol):
        calculator = ethanol.calc = CommitteeCalculator(paths)
        ethanol.get_forces()
        forces = calculator.results["forces"]
        ethanol.get_potential_energy()
        calculator.get_property("energy_uncertainty", ethanol)
        assert calculator.results["forces"] is forces

    def test_what_does_not_fit_together(self, paths, tmp_path):
        with pytest.raises(ConfigError, match="two or more"):
            CommitteeCalculator([paths[0]])
        with pytest.raises(ConfigError, match="two or more"):
            CommitteeCalculator(str(paths[0]))
        other = build_potential({"name": "egnn", "layers": 1, "features": 8}, [1, 6])
        export_potential(other, tmp_path / "other.pt")
        with pytest.raises(ConfigError, match=r"species.*\[1, 6, 8\], of number 2 \[1, 6\]"):
            CommitteeCalculator([paths[0], tmp_path / "other.pt"])
        loaded = load_exported(paths[1])
        units = replace(loaded, metadata=loaded.metadata | {"units": {"energy": "kcal/mol"}})
        with pytest.raises(ConfigError, match=r"units.*number 3.*kcal/mol"):
            CommitteeCalculator([paths[0], paths[1], units])

    def test_unknown_element(self, paths):
        atoms = molecule("CH3Cl")
        atoms.calc = CommitteeCalculator(paths)
        with pytest.raises(UnknownElementError, match="atom 1 is Cl"):
            atoms.get_forces()
