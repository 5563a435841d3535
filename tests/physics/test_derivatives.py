"""Forces and stress are exact derivatives of the energy, and conserve what they must."""

import numpy as np
import pytest
import torch

from forcefield import Potential, build_graph, collate
from tests.conftest import ARCHITECTURES, Structure, make_potential

STEP = 1e-4
"""Å; central differences of a fourth-order formula are exact to about 1e-8 eV/Å here."""


def derivative(energy, step: float = STEP) -> float:
    """Fourth-order central difference at 0."""
    return (8 * (energy(step) - energy(-step)) - (energy(2 * step) - energy(-2 * step))) / (
        12 * step
    )


@pytest.mark.parametrize("fixture", ["ethanol", "crystal"])
def test_forces_are_minus_the_gradient(potential: Potential, fixture: str, request):
    structure: Structure = request.getfixturevalue(fixture)
    forces = structure.evaluate(potential)["forces"]
    for atom, axis in [(0, 0), (2, 1), (5, 2), (7, 0)]:

        def energy(x: float, atom: int = atom, axis: int = axis) -> float:
            positions = structure.positions.copy()
            positions[atom, axis] += x
            return structure.moved(positions).evaluate(potential)["energy"][0]

        assert forces[atom, axis] == pytest.approx(-derivative(energy), rel=1e-6, abs=2e-7)


def test_stress_is_the_strain_derivative_per_volume(potential: Potential, crystal: Structure):
    stress = crystal.evaluate(potential, stress=True)["stress"][0]
    volume = abs(np.linalg.det(crystal.cell))
    for a, b in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:

        def energy(x: float, a: int = a, b: int = b) -> float:
            strain = np.eye(3)
            strain[a, b] += x / 2
            strain[b, a] += x / 2
            deformed = crystal.moved(crystal.positions @ strain, crystal.cell @ strain)
            return deformed.evaluate(potential)["energy"][0]

        assert stress[a, b] == pytest.approx(derivative(energy) / volume, rel=1e-6, abs=1e-8)


def test_no_net_force_and_no_net_torque(potential: Potential, ethanol: Structure):
    forces = ethanol.evaluate(potential)["forces"]
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(ethanol.positions, forces).sum(axis=0), 0, atol=1e-11)


def test_a_batch_is_its_structures_one_by_one(potential: Potential, ethanol: Structure):
    small = Structure(ethanol.positions[:4], ethanol.numbers[:4])
    graphs = [
        build_graph(s.positions, s.numbers, potential.cutoff) for s in (ethanol, small, ethanol)
    ]
    together = potential(*collate(graphs).tensors())
    alone = [potential(*graph.tensors()) for graph in graphs]
    for key, cat in [("energy", torch.cat), ("energies", torch.cat), ("forces", torch.cat)]:
        torch.testing.assert_close(together[key], cat([r[key] for r in alone]), rtol=0, atol=1e-10)


def test_stress_in_a_batch(potential: Potential, crystal: Structure):
    stretched = crystal.moved(crystal.positions * 1.03, crystal.cell * 1.03)
    graphs = [
        build_graph(s.positions, s.numbers, potential.cutoff, s.cell, s.pbc)
        for s in (crystal, stretched)
    ]
    together = potential(*collate(graphs).tensors(), True)["stress"]
    for graph, stress in zip(graphs, together, strict=True):
        torch.testing.assert_close(potential(*graph.tensors(), True)["stress"][0], stress)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_loss_on_forces_reaches_every_weight_it_should(name: str, ethanol: Structure):
    """Double backward: the gradient of a force loss agrees with finite differences."""
    potential = make_potential(name).train()
    graph = build_graph(ethanol.positions, ethanol.numbers, potential.cutoff)

    def loss() -> torch.Tensor:
        return potential(*graph.tensors())["forces"].square().sum()

    loss().backward()
    checked = 0
    for parameter in potential.parameters():
        gradient = parameter.grad
        if gradient is None or gradient.abs().max() < 1e-6:
            continue
        index = int(gradient.abs().argmax())

        def moved(x: float, parameter: torch.Tensor = parameter, index: int = index) -> float:
            with torch.no_grad():
                parameter.view(-1)[index] += x
            value = loss().item()
            with torch.no_grad():
                parameter.view(-1)[index] -= x
            return value

        assert gradient.view(-1)[index].item() == pytest.approx(derivative(moved, 1e-3), rel=1e-4)
        checked += 1
    assert checked >= 10


def test_float32_follows_float64(ethanol: Structure):
    """Positions in float64 and atomic energies summed in float64: float32 weights lose little."""
    for name in ARCHITECTURES:
        exact = ethanol.evaluate(make_potential(name))
        single = ethanol.evaluate(make_potential(name, torch.float32))
        assert single["energy"].dtype == np.float64
        np.testing.assert_allclose(single["energy"], exact["energy"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(single["forces"], exact["forces"], rtol=0, atol=1e-5)
