"""Spherical harmonics against e3nn, radial functions against their definitions."""

import math

import pytest
import torch

from forcefield.basis import BesselBasis, SphericalHarmonics, degree_of_component, num_components


@pytest.mark.parametrize("lmax", range(1, 9))
def test_harmonics_are_those_of_e3nn(lmax):
    from e3nn import o3

    torch.manual_seed(lmax)
    direction = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=1)
    expected = o3.spherical_harmonics(
        list(range(1, lmax + 1)), direction, normalize=True, normalization="component"
    )
    found = SphericalHarmonics(lmax)(direction)
    assert found.shape == (200, num_components(lmax))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_harmonics_turn_with_wigner_matrices():
    from e3nn import o3

    rotation = o3.rand_matrix().to(torch.float64)
    irreps = o3.Irreps("1o + 2e + 3o + 4e")
    wigner = irreps.D_from_matrix(rotation).to(torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    harmonics = SphericalHarmonics(4)
    turned = harmonics(direction @ rotation.T)
    torch.testing.assert_close(turned, harmonics(direction) @ wigner.T, rtol=0, atol=1e-5)


def test_each_degree_has_the_norm_of_its_size():
    direction = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1)
    parts = SphericalHarmonics(6)(direction).split(
        [2 * degree + 1 for degree in range(1, 7)], dim=1
    )
    for degree, part in enumerate(parts, start=1):
        torch.testing.assert_close(
            part.square().sum(1), torch.full((50,), 2.0 * degree + 1.0, dtype=torch.float64)
        )
    assert degree_of_component(2) == [1, 1, 1, 2, 2, 2, 2, 2]


def test_second_derivatives_of_harmonics_exist_and_are_right():
    harmonics = SphericalHarmonics(3)
    vector = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def function(v: torch.Tensor) -> torch.Tensor:
        return harmonics(v / v.norm(dim=1, keepdim=True))

    assert torch.autograd.gradgradcheck(function, (vector,))


def test_bessel_functions_are_orthonormal_and_vanish_at_the_cutoff():
    cutoff, count = 5.0, 6
    radius = torch.linspace(1e-6, cutoff, 20001, dtype=torch.float64).unsqueeze(1)
    values = BesselBasis(cutoff, count)(radius)
    assert values[-1].abs().max() < 1e-12
    overlap = torch.trapezoid(
        (values * radius).unsqueeze(2) * (values * radius).unsqueeze(1), dx=cutoff / 20000, dim=0
    )
    torch.testing.assert_close(overlap, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-5)
    assert values[0, 0].item() == pytest.approx(math.sqrt(2 / cutoff) * math.pi / cutoff, rel=1e-6)
