"""The last layer in closed form: what it mends, and when it keeps its hands off."""

import numpy as np
import pytest
import torch

from forcefield import Potential, load_potential
from forcefield.pretrained import BACKBONE
from forcefield.transfer import restrict_species
from training.config import TrainingConfig
from training.datasets.frames import Frame
from training.evaluate import predict
from training.graphs import GraphDataset
from training.last_layer import refit, refit_for, rows


@pytest.fixture(scope="module")
def trained() -> Potential:
    return restrict_species(load_potential(BACKBONE)[0], [1, 6, 8]).eval()


def labelled(potential: Potential, structure, count: int, seed: int, shift: float) -> GraphDataset:
    """Rattled structures with the potential's own labels: energies shifted by eV, noisy forces."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        moved = structure.positions + 0.05 * rng.normal(size=structure.positions.shape)
        values = structure.moved(moved).evaluate(potential)
        forces = values["forces"] + 0.01 * rng.normal(size=moved.shape)
        energy = float(values["energy"][0]) + shift + 0.001 * rng.normal()
        frames.append(Frame(structure.numbers, moved, energy, forces, source=f"frame {k}"))
    return GraphDataset(frames, potential.cutoff)


def test_a_shift_of_all_energies_goes_at_little_cost_of_forces(trained, ethanol):
    train, valid = labelled(trained, ethanol, 30, 0, 0.02), labelled(trained, ethanol, 20, 1, 0.02)
    test = labelled(trained, ethanol, 20, 2, 0.02)
    before = predict(trained, test, "cpu").errors()
    assert before["energy_mae_meV"] == pytest.approx(20.0, abs=1.0)
    refitted = restrict_species(trained, [1, 6, 8]).eval()
    parts = refit(refitted, rows(refitted, train, "cpu"), rows(refitted, valid, "cpu"))
    after = predict(refitted, test, "cpu").errors()
    assert after["energy_mae_meV"] < 2.0
    assert after["forces_mae_meV_per_A"] < 1.15 * before["forces_mae_meV_per_A"]
    # The rows that come back are those of the new weights.
    again = rows(refitted, valid, "cpu")
    torch.testing.assert_close(parts[1].energy_errors, again.energy_errors, rtol=0.0, atol=2e-5)
    torch.testing.assert_close(parts[1].forces_errors, again.forces_errors, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_what_was_not_to_be_learned_does_not_move_the_weights(trained, ethanol, weights):
    train, valid = labelled(trained, ethanol, 30, 0, 0.02), labelled(trained, ethanol, 20, 1, 0.02)
    potential = restrict_species(trained, [1, 6, 8]).eval()
    before = potential.readout.network[2].weight.clone()
    given = [rows(potential, train, "cpu"), rows(potential, valid, "cpu")]
    settings = TrainingConfig(energy_weight=weights[0], forces_weight=weights[1])
    parts = refit_for(settings, potential, valid, given, "cpu")
    moved = not torch.equal(before, potential.readout.network[2].weight)
    assert moved == all(weights)
    assert (parts[1] is given[1]) == (not moved)


@pytest.mark.parametrize("worse", [False, True])
def test_stresses_that_would_come_out_worse_keep_the_weights(trained, ethanol, worse):
    """Labels of the stress are those of the weights before, or of the weights that come out."""
    train, valid = labelled(trained, ethanol, 30, 0, 0.02), labelled(trained, ethanol, 20, 1, 0.02)
    potential, after = (restrict_species(trained, [1, 6, 8]).eval() for _ in range(2))
    before = potential.readout.network[2].weight.clone()
    given = [rows(potential, train, "cpu"), rows(potential, valid, "cpu")]
    refit(after, *given)
    # In a cell that no pair of atoms reaches across.
    valid.cell = (40.0 * torch.eye(3, dtype=torch.float64)).repeat(20, 1, 1)
    valid.stress = torch.zeros(20, 3, 3, dtype=torch.float64)
    source = potential if worse else after
    valid.stress = torch.as_tensor(predict(source, valid, "cpu").predicted_stress)
    parts = refit_for(TrainingConfig(), potential, valid, given, "cpu")
    assert torch.equal(before, potential.readout.network[2].weight) == worse
    assert (parts[1] is given[1]) == worse


def test_nothing_changes_where_the_validation_frames_disagree(trained, ethanol):
    train, valid = labelled(trained, ethanol, 10, 0, 0.5), labelled(trained, ethanol, 10, 1, 0.0)
    potential = restrict_species(trained, [1, 6, 8]).eval()
    before = [weight.clone() for weight in potential.parameters()]
    given = rows(potential, train, "cpu"), rows(potential, valid, "cpu")
    assert refit(potential, *given) == given
    assert all(torch.equal(a, b) for a, b in zip(before, potential.parameters(), strict=True))


def test_errors_that_are_not_finite_change_nothing(trained, ethanol):
    potential = restrict_species(trained, [1, 6, 8]).eval()
    part = rows(potential, labelled(potential, ethanol, 3, 0, 0.1), "cpu")
    part.energy_errors[0] = float("nan")
    before = potential.readout.network[2].weight.clone()
    refit(potential, part, part)
    assert torch.equal(before, potential.readout.network[2].weight)


def test_structures_of_different_size_weigh_alike(trained, ethanol):
    """As in the losses: two copies of a molecule far from each other, one frame, count as one does."""
    change = []
    for copies in (1, 2):
        potential = restrict_species(trained, [1, 6, 8]).eval()
        given = [
            rows(potential, labelled(potential, ethanol, 20, seed, 0.02), "cpu") for seed in (0, 1)
        ]
        for part in given:
            for values in (part.features, part.energy_errors, part.num_atoms):
                values[::2] *= copies
        before = potential.readout.network[2].weight.clone()
        refit(potential, *given)
        change.append(potential.readout.network[2].weight.detach() - before.detach())
    assert float(change[0].abs().max()) > 0
    torch.testing.assert_close(*change, rtol=1e-3, atol=1e-6)
