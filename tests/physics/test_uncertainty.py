"""Estimated errors against linear regression done by hand, and under the symmetries of space."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm, ortho_group

import forcefield.uncertainty
from forcefield import build_graph, collate
from forcefield.errors import CheckpointError, ConfigError
from forcefield.uncertainty import (
    PRIORS,
    Rows,
    check_uncertainty,
    features_and_jacobian,
    fit_posterior,
    has_uncertainty,
    predict_uncertainty,
)
from tests.conftest import ARCHITECTURES, make_potential


def graph_of(potential, structure):
    return build_graph(
        structure.positions, structure.numbers, potential.cutoff, structure.cell, structure.pbc
    )


def rattled(structure, number, size=0.1, seed=0):
    generator = np.random.default_rng(seed)
    return [
        structure.moved(
            structure.positions + size * generator.normal(size=(len(structure.numbers), 3))
        )
        for _ in range(number)
    ]


def rows_of(potential, structures, seed=0):
    """Rows with errors drawn at random: what they are does not matter to the algebra."""
    generator = torch.Generator().manual_seed(seed)
    inputs = collate([graph_of(potential, structure) for structure in structures]).tensors()
    features, jacobian = features_and_jacobian(potential, *inputs)
    return Rows(
        features,
        jacobian,
        0.02 * torch.randn(len(features), generator=generator, dtype=torch.float64),
        0.1 * torch.randn(jacobian.shape[:2], generator=generator, dtype=torch.float64),
        torch.tensor([len(structure.numbers) for structure in structures]),
    )


def by_hand(potential, structure):
    """f and g from energies and forces alone, with one weight of the last layer 1 and the others 0."""
    last = potential.readout.network[2]
    origin = potential.readout.reference_energies.clone()
    features, jacobian = [], []
    with torch.no_grad():
        weights = last.weight.clone()
        potential.readout.reference_energies.zero_()
    for k in range(weights.shape[1]):
        with torch.no_grad():
            last.weight.zero_()
            last.weight[0, k] = 1.0
        found = structure.evaluate(potential)
        features.append(found["energy"].item())
        jacobian.append(found["forces"])
    with torch.no_grad():
        last.weight.copy_(weights)
        potential.readout.reference_energies.copy_(origin)
    return np.array(features), np.stack(jacobian, axis=-1)


@pytest.fixture
def fitted(potential, ethanol):
    potential.requires_grad_(False)
    factor, scales, _ = fit_posterior(
        rows_of(potential, rattled(ethanol, 6)), rows_of(potential, rattled(ethanol, 4, seed=1), 1)
    )
    potential.posterior.set(factor, scales)
    return potential


def test_features_are_what_the_last_layer_multiplies(potential, ethanol, crystal):
    for structure in (ethanol, crystal):
        features, jacobian = features_and_jacobian(
            potential, *graph_of(potential, structure).tensors()
        )
        expected_features, expected_jacobian = by_hand(potential, structure)
        np.testing.assert_allclose(features[0].numpy(), expected_features, rtol=0, atol=1e-11)
        np.testing.assert_allclose(jacobian.numpy(), expected_jacobian, rtol=0, atol=1e-11)
        assert np.abs(expected_jacobian).max() > 1e-3
        weights = potential.readout.network[2].weight[0].detach()
        forces = structure.evaluate(potential)["forces"]
        np.testing.assert_allclose((jacobian @ weights).numpy(), forces, rtol=0, atol=1e-11)


@pytest.mark.parametrize("copied", [1, 40, 100_000])
def test_jacobian_is_the_derivative_of_the_features(copied, potential, ethanol, monkeypatch):
    """One feature at a time, some of them at a time, all of them at once."""
    monkeypatch.setattr(forcefield.uncertainty, "COPIED_ATOMS", copied)

    def features(positions):
        inputs = graph_of(potential, ethanol.moved(positions)).tensors()
        return features_and_jacobian(potential, *inputs)[0][0].numpy()

    inputs = graph_of(potential, ethanol).tensors()
    jacobian = features_and_jacobian(potential, *inputs)[1].numpy()
    step = 1e-5
    for atom, axis in ((0, 0), (2, 1), (8, 2)):
        shift = np.zeros_like(ethanol.positions)
        shift[atom, axis] = step
        forward = features(ethanol.positions + shift)
        backward = features(ethanol.positions - shift)
        numeric = -(forward - backward) / (2.0 * step)
        np.testing.assert_allclose(jacobian[atom, axis], numeric, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_variances_are_those_of_bayesian_linear_regression(name, ethanol):
    potential = make_potential(name)
    potential.requires_grad_(False)
    training, validation = rattled(ethanol, 6), rattled(ethanol, 4, seed=1)
    valid_rows = rows_of(potential, validation, 1)
    factor, scales, prior = fit_posterior(rows_of(potential, training), valid_rows)
    potential.posterior.set(factor, scales)

    energy_errors = valid_rows.energy_errors.numpy()
    forces_errors = valid_rows.forces_errors.numpy()
    precision = 0.0
    for structure in training:
        f, g = by_hand(potential, structure)
        precision = precision + np.outer(f, f) / np.mean(energy_errors**2)
        precision = precision + np.einsum("nck,ncl->kl", g, g) / np.mean(forces_errors**2)
    covariance = np.linalg.inv(precision + prior * np.trace(precision) * np.eye(len(precision)))

    def variances(structure):
        f, g = by_hand(potential, structure)
        return f @ covariance @ f, np.einsum("nck,kl,ncl->n", g, covariance, g) / 3.0

    found = [variances(structure) for structure in validation]
    alpha_energy = np.mean(energy_errors**2 / [energy for energy, _ in found])
    squares = np.mean(forces_errors**2, axis=1)
    alpha_forces = np.mean(squares / np.concatenate([forces for _, forces in found]))

    other = rattled(ethanol, 1, size=0.3, seed=2)[0]
    expected_energy, expected_forces = variances(other)
    energy, forces = predict_uncertainty(potential, *graph_of(potential, other).tensors())
    np.testing.assert_allclose(energy.item() ** 2, alpha_energy * expected_energy, rtol=1e-5)
    np.testing.assert_allclose(forces.numpy() ** 2, alpha_forces * expected_forces, rtol=1e-5)


def test_the_prior_is_the_likeliest_for_the_validation_frames(ethanol):
    potential = make_potential("hegnn")
    training = rows_of(potential, rattled(ethanol, 3))
    validation = rows_of(potential, rattled(ethanol, 4, seed=1), 1)
    # Errors that follow the variances of one prior in the middle of the grid.
    precision = training.features.T @ training.features + training.jacobian.flatten(
        0, 1
    ).T @ training.jacobian.flatten(0, 1)
    identity = torch.eye(len(precision), dtype=torch.float64)
    inverse = torch.linalg.inv(precision + 1e-4 * torch.trace(precision) * identity)
    sigma = torch.einsum("nck,kl,ncl->n", validation.jacobian, inverse, validation.jacobian).sqrt()
    errors = validation.forces_errors * 10.0 * sigma.unsqueeze(1)
    validation = replace(validation, forces_errors=errors)

    def likelihood(prior):
        energy_noise = validation.energy_errors.square().mean()
        forces_noise = errors.square().mean()
        a = training.features.T @ training.features / energy_noise
        a = a + training.jacobian.flatten(0, 1).T @ training.jacobian.flatten(0, 1) / forces_noise
        covariance = torch.linalg.inv(a + prior * torch.trace(a) * identity)
        total = 0.0
        f, g = validation.features, validation.jacobian
        for error, variance in (
            (validation.energy_errors[:, None], torch.einsum("bk,kl,bl->b", f, covariance, f)),
            (errors, torch.einsum("nck,kl,ncl->n", g, covariance, g) / 3.0),
        ):
            alpha = (error.square().mean(1) / variance).mean()
            scale = (alpha * variance).sqrt()[:, None].expand_as(error)
            total += norm.logpdf(error.numpy(), scale=scale.numpy()).sum()
        return total

    best = max(PRIORS, key=likelihood)
    assert PRIORS[0] < best < PRIORS[-1]
    assert fit_posterior(training, validation)[2] == best


def test_symmetries(fitted, ethanol):
    energy, forces = predict_uncertainty(fitted, *graph_of(fitted, ethanol).tensors())
    assert energy.item() > 0
    assert len(np.unique(forces.numpy().round(9))) == len(forces)
    for determinant in (1, -1):
        rotation = ortho_group.rvs(3, random_state=4)
        rotation[0] *= determinant * np.sign(np.linalg.det(rotation))
        order = np.random.default_rng(5).permutation(9)
        moved = type(ethanol)((ethanol.positions @ rotation.T + 3.0)[order], ethanol.numbers[order])
        new_energy, new_forces = predict_uncertainty(fitted, *graph_of(fitted, moved).tensors())
        np.testing.assert_allclose(new_energy, energy, rtol=1e-6)
        np.testing.assert_allclose(new_forces, forces[order], rtol=1e-6)


def test_a_batch_gives_what_its_structures_give(fitted, ethanol, crystal):
    graphs = [graph_of(fitted, structure) for structure in (ethanol, crystal, ethanol)]
    energy, forces = predict_uncertainty(fitted, *collate(graphs).tensors())
    single = [predict_uncertainty(fitted, *graph.tensors()) for graph in graphs]
    np.testing.assert_allclose(energy, torch.cat([e for e, _ in single]), rtol=1e-6)
    np.testing.assert_allclose(forces, torch.cat([f for _, f in single]), rtol=1e-6)


def test_a_lone_atom_is_certain(fitted):
    lone = build_graph(np.zeros((1, 3)), [8], fitted.cutoff)
    energy, forces = predict_uncertainty(fitted, *lone.tensors())
    assert energy.item() == pytest.approx(0.0, abs=1e-9)
    assert forces.tolist() == [0.0]


def test_validation_errors_are_normalised(fitted, ethanol):
    rows = rows_of(fitted, rattled(ethanol, 4, seed=1), 1)
    energy, forces = fitted.posterior(rows.features, rows.jacobian)
    assert ((rows.energy_errors / energy) ** 2).mean().item() == pytest.approx(1.0)
    normalised = rows.forces_errors / forces[:, None]
    assert (normalised**2).mean().item() == pytest.approx(1.0)


def test_forces_that_vanish_by_symmetry_do_not_spoil_the_scale(ethanol):
    potential = make_potential("hegnn")
    training = rows_of(potential, rattled(ethanol, 4))
    validation = rows_of(potential, rattled(ethanol, 4, seed=1), 1)
    _, scales, _ = fit_posterior(training, validation)
    jacobian, errors = validation.jacobian.clone(), validation.forces_errors.clone()
    jacobian[:3] = 1e-20
    errors[:3] = 1e-5
    symmetric = replace(validation, jacobian=jacobian, forces_errors=errors)
    _, others, _ = fit_posterior(training, symmetric)
    assert torch.isfinite(others).all()
    assert 0.5 < others[1] / scales[1] < 2.0


def test_what_cannot_be_calibrated(ethanol):
    potential = make_potential("hegnn")
    rows = rows_of(potential, rattled(ethanol, 2))
    none = Rows(*(tensor[:0] for tensor in vars(rows).values()))
    with pytest.raises(ConfigError, match="validation frames"):
        fit_posterior(rows, none)
    broken = replace(rows, energy_errors=rows.energy_errors * np.nan)
    with pytest.raises(ConfigError, match="not finite"):
        fit_posterior(rows, broken)


def test_a_potential_without_an_estimate_says_so():
    potential = make_potential("hegnn")
    older = torch.nn.Linear(2, 2)  # An exported file from before there were estimates.
    for module in (potential, older):
        assert not has_uncertainty(module)
        with pytest.raises(CheckpointError, match="validation frames"):
            check_uncertainty(module)
    potential.posterior.set(torch.eye(16), torch.ones(2))
    check_uncertainty(potential)
    potential.posterior.clear()
    assert not has_uncertainty(potential)
