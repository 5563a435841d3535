"""Variants of the network for the ablation table: energies that do not turn, and that differ."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from benchmarks.ablation_blocks import VARIANTS, BlocksLayer, use
from forcefield import hegnn
from tests.conftest import make_potential


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """Whatever a test puts in place of the network is gone after it."""
    monkeypatch.setattr(hegnn, "HEGNNLayer", hegnn.HEGNNLayer)
    monkeypatch.setattr(hegnn, "PolynomialEnvelope", hegnn.PolynomialEnvelope)


def test_blocks_together_are_the_layer(ethanol):
    expected = ethanol.evaluate(make_potential("hegnn"))
    hegnn.HEGNNLayer = BlocksLayer
    found = ethanol.evaluate(make_potential("hegnn"))
    for name in ("energies", "forces"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_energies_do_not_turn_and_are_others(ethanol, name):
    usual = ethanol.evaluate(make_potential("hegnn"))["energies"]
    use(name)
    variant = make_potential("hegnn")
    energies = ethanol.evaluate(variant)["energies"]
    assert np.abs(energies - usual).max() > 1e-4
    for number, determinant in enumerate((1.0, -1.0)):
        turn = ortho_group.rvs(3, random_state=number)
        turn[0] *= determinant * np.linalg.det(turn)
        turned = ethanol.moved(ethanol.positions @ turn.T).evaluate(variant)["energies"]
        np.testing.assert_allclose(turned, energies, rtol=0, atol=1e-9)
