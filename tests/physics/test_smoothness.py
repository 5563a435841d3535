"""Nothing happens at the cutoff: energy and forces go to zero smoothly, and nothing lies beyond."""

import numpy as np
import pytest
import torch

from forcefield import Potential, build_graph
from forcefield.basis import PolynomialEnvelope
from forcefield.neighbors import all_pairs
from tests.conftest import REFERENCE_ENERGIES, Structure


def test_an_isolated_atom_has_its_reference_energy(potential: Potential):
    for z, reference in REFERENCE_ENERGIES.items():
        lone = Structure(np.zeros((1, 3)), np.array([z])).evaluate(potential)
        assert lone["energy"][0] == pytest.approx(reference, abs=1e-12)
        assert not lone["forces"].any()


def test_molecules_out_of_reach_do_not_interact(potential: Potential, ethanol: Structure):
    alone = ethanol.evaluate(potential)
    apart = np.array([potential.cutoff + 6.0, 0.0, 0.0])
    pair = Structure(
        np.vstack([ethanol.positions, ethanol.positions + apart]), np.tile(ethanol.numbers, 2)
    ).evaluate(potential)
    np.testing.assert_allclose(pair["energy"], 2 * alone["energy"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(pair["forces"], np.tile(alone["forces"], (2, 1)), atol=1e-10)


def test_an_atom_that_crosses_the_cutoff(potential: Potential, ethanol: Structure):
    """A fourth hydrogen leaves along x; its last neighbour is the methyl carbon's side of ethanol."""
    outermost = ethanol.positions[:, 0].max()

    def with_probe(distance: float) -> dict[str, np.ndarray]:
        # On the axis through the outermost atom, so that this atom is the last neighbour.
        last = ethanol.positions[ethanol.positions[:, 0].argmax()]
        probe = last + np.array([distance, 0.0, 0.0])
        assert probe[0] - outermost == pytest.approx(distance)
        return Structure(
            np.vstack([ethanol.positions, probe]), np.append(ethanol.numbers, 1)
        ).evaluate(potential)

    alone = ethanol.evaluate(potential)
    edge = potential.cutoff
    outside = with_probe(edge + 1e-9)
    assert outside["energy"][0] == pytest.approx(
        alone["energy"][0] + REFERENCE_ENERGIES[1], abs=1e-10
    )
    np.testing.assert_allclose(outside["forces"][:-1], alone["forces"], rtol=0, atol=1e-12)

    # Energy falls at least like x³ and forces like x² as x = distance to the cutoff goes to zero.
    depths = np.array([0.2, 0.1, 0.05, 0.025])
    inside = [with_probe(edge - x) for x in depths]
    energies = np.array([abs(r["energy"][0] - outside["energy"][0]) for r in inside])
    forces = np.array([np.abs(r["forces"] - outside["forces"]).max() for r in inside])
    assert energies[0] > 1e-9
    assert (np.diff(np.log(energies)) / np.diff(np.log(depths)) > 2.5).all()
    assert (np.diff(np.log(forces)) / np.diff(np.log(depths)) > 1.5).all()


def test_envelope_is_twice_differentiable_and_zero_outside():
    envelope = PolynomialEnvelope(5.0)
    distance = torch.tensor(
        [[1e-6], [5.0 - 1e-5], [5.0], [7.0]], dtype=torch.float64, requires_grad=True
    )
    value = envelope(distance)
    (first,) = torch.autograd.grad(value.sum(), distance, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), distance)
    assert value[0].item() == pytest.approx(1.0, abs=1e-12)
    assert value[2:].abs().max() == 0
    assert max(abs(value[1].item()), abs(first[1].item())) < 1e-9
    assert abs(second[1].item()) < 1e-3
    assert first[2:].abs().max() == 0


def test_pairs_beyond_the_cutoff_count_for_nothing(potential: Potential):
    """All pairs of a stretched molecule, and only its pairs within the cutoff: the same results."""
    rng = np.random.default_rng(3)
    positions = np.cumsum(rng.uniform(0.7, 1.0, (12, 3)), axis=0)
    numbers = rng.choice([1, 6, 8], 12)
    near = build_graph(positions, numbers, potential.cutoff)
    pairs = all_pairs(12)
    assert pairs.shape[1] > near.edge_index.shape[1]
    full = potential(
        near.positions,
        near.atomic_numbers,
        pairs,
        torch.zeros(pairs.shape[1], 3, dtype=torch.float64),
        near.cell,
        near.batch,
    )
    sparse = potential(*near.tensors())
    for key in sparse:
        torch.testing.assert_close(full[key], sparse[key], rtol=0, atol=1e-11)
