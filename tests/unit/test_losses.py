"""Losses, metrics and the learning rate."""

import itertools
import math

import numpy as np
import pytest
import torch

from training.config import TrainingConfig
from training.losses import energy_loss, forces_loss, stress_loss
from training.metrics import NUM_SUMS, error_sums, summarize
from training.schedule import LearningRate

GENERATOR = torch.Generator().manual_seed(0)
ENERGY_ERRORS = torch.randn(7, dtype=torch.float64, generator=GENERATOR)
FORCES_ERRORS = torch.randn(20, 3, dtype=torch.float64, generator=GENERATOR)
ATOMS = torch.tensor(20.0)


def test_mse_and_l1_are_the_textbook_means():
    energy, forces = ENERGY_ERRORS.numpy(), FORCES_ERRORS.numpy()
    assert energy_loss(ENERGY_ERRORS, "mse", 1.0).item() == pytest.approx(np.mean(energy**2))
    assert forces_loss(FORCES_ERRORS, ATOMS, "mse", 1.0).item() == pytest.approx(np.mean(forces**2))
    assert energy_loss(ENERGY_ERRORS, "l1", 1.0).item() == pytest.approx(np.mean(np.abs(energy)))
    lengths = np.linalg.norm(forces, axis=1)
    assert forces_loss(FORCES_ERRORS, ATOMS, "l1", 1.0).item() == pytest.approx(np.mean(lengths))


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
def test_atoms_that_fill_up_a_batch_do_not_count(loss):
    filled = torch.cat([FORCES_ERRORS, torch.zeros(9, 3, dtype=torch.float64)])
    expected = forces_loss(FORCES_ERRORS, ATOMS, loss, 0.1).item()
    assert forces_loss(filled, ATOMS, loss, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_huber_is_quadratic_below_delta_and_linear_above():
    small, large = torch.tensor([0.01]), torch.tensor([3.0])
    assert energy_loss(small, "huber", 0.05).item() == pytest.approx(0.5 * 0.01**2)
    assert energy_loss(large, "huber", 0.05).item() == pytest.approx(0.05 * (3.0 - 0.025))


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_forces_loss_does_not_depend_on_orientation(loss):
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=GENERATOR))[0]
    before = forces_loss(FORCES_ERRORS, ATOMS, loss, 1.0).item()
    assert forces_loss(FORCES_ERRORS @ rotation, ATOMS, loss, 1.0).item() == pytest.approx(before)


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
def test_gradients_are_finite_where_the_errors_vanish(loss):
    errors = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    forces_loss(errors, torch.tensor(4.0), loss, 0.1).backward()
    assert torch.isfinite(errors.grad).all()


def test_metrics_of_several_batches_equal_those_of_all_frames():
    atoms = np.array([3, 5, 12])
    energy = np.array([0.3, -0.5, 0.1])
    forces = np.random.default_rng(0).normal(size=(20, 3))
    total = torch.zeros(NUM_SUMS, dtype=torch.float64)
    ends = np.cumsum(atoms)
    for k in range(3):
        total += error_sums(
            torch.tensor(energy[k : k + 1]),
            torch.tensor(forces[ends[k] - atoms[k] : ends[k]]),
            torch.tensor(atoms[k : k + 1], dtype=torch.float64),
        )
    errors = summarize(total.tolist())
    assert errors["energy_mae_meV"] == pytest.approx(1e3 * np.mean(np.abs(energy)))
    assert errors["energy_rmse_meV"] == pytest.approx(1e3 * np.sqrt(np.mean(energy**2)))
    assert errors["energy_mae_meV_per_atom"] == pytest.approx(1e3 * np.mean(np.abs(energy / atoms)))
    assert errors["energy_rmse_meV_per_atom"] == pytest.approx(
        1e3 * np.sqrt(np.mean((energy / atoms) ** 2))
    )
    assert errors["energy_bias_meV"] == pytest.approx(1e3 * np.mean(energy))
    assert errors["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.mean(np.abs(forces)))
    assert errors["forces_rmse_meV_per_A"] == pytest.approx(1e3 * np.sqrt(np.mean(forces**2)))


def test_metrics_count_in_float64_whatever_comes_in():
    sums = error_sums(torch.ones(1, dtype=torch.float32), torch.ones(2, 3), torch.tensor([2.0]))
    assert sums.dtype == torch.float64


def test_cosine_rises_then_falls_to_the_final_rate():
    config = TrainingConfig(learning_rate=1e-2, final_learning_rate=1e-4, warmup_steps=10)
    rate = LearningRate(config, total_steps=1000)
    rates = [rate.at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-2 / 11)
    assert rates[10] == pytest.approx(1e-2)
    assert rates[505] == pytest.approx(0.5 * (1e-2 + 1e-4))
    assert rates[1000] == pytest.approx(1e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_warmup_is_at_most_a_tenth_of_a_short_run():
    rate = LearningRate(TrainingConfig(warmup_steps=1000), total_steps=50)
    assert rate.at(5) == pytest.approx(rate.peak)


def test_plateau_falls_only_when_the_loss_stalls_and_survives_a_restart():
    config = TrainingConfig(
        schedule="plateau", plateau_epochs=4, plateau_factor=0.5, warmup_steps=0, learning_rate=1e-2
    )
    rate = LearningRate(config, 1000)
    for loss in (3.0, 2.0, 1.0):
        rate.validated(loss, epochs=2)
    assert rate.at(100) == pytest.approx(1e-2)
    for _ in range(2):
        rate.validated(1.5, epochs=2)
    again = LearningRate(config, 1000)
    again.load_state_dict(rate.state_dict())
    again.validated(1.5, epochs=2)
    assert again.at(100) == pytest.approx(5e-3)
    for _ in range(1000):
        again.validated(1.5, epochs=2)
    assert again.at(100) == pytest.approx(config.final_learning_rate)
    assert math.isclose(again.best, 1.0)


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
def test_stress_loss_is_the_mean_over_structures_that_have_one(loss):
    cell = torch.diag_embed(
        torch.tensor([[2.0, 3.0, 4.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]).double()
    )
    num_atoms = torch.tensor([4.0, 3.0, 25.0]).double()
    errors = 1e-2 * torch.randn(3, 3, 3, dtype=torch.float64, generator=GENERATOR)
    errors[1] = torch.nan
    errors.requires_grad_(True)
    found = stress_loss(errors, cell, num_atoms, loss, 0.05)
    per_atom = errors.detach()[[0, 2]] * torch.tensor([24.0 / 4, 125.0 / 25]).view(2, 1, 1)
    expected = per_atom.abs().mean() if loss == "l1" else energy_loss(per_atom, loss, 0.05)
    assert found.item() == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(found, errors)
    assert torch.equal(gradient[1], torch.zeros(3, 3, dtype=torch.float64))
    assert (gradient[[0, 2]] != 0).all()


def test_errors_of_stresses_leave_out_what_is_not_known():
    errors = torch.full((3, 3, 3), 2e-3, dtype=torch.float64)
    errors[1] = torch.nan
    atoms = torch.ones(7, dtype=torch.float64)
    sums = error_sums(ENERGY_ERRORS, FORCES_ERRORS, atoms, errors).tolist()
    assert summarize(sums)["stress_mae_meV_per_A3"] == pytest.approx(2.0)
    assert summarize(sums)["stress_rmse_meV_per_A3"] == pytest.approx(2.0)
    without = summarize(error_sums(ENERGY_ERRORS, FORCES_ERRORS, atoms).tolist())
    assert not any(key.startswith("stress") for key in without)
