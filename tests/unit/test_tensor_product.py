"""Products of steerable features: exact couplings, parity and scale."""

import importlib.util

import pytest
import torch
from e3nn import o3

from forcefield import build_potential
from forcefield.basis import SphericalHarmonics, degree_of_component
from forcefield.errors import ConfigError
from forcefield.tensor_product import TensorProduct, couplings
from training import load_config


@pytest.mark.parametrize("lmax", [2, 3, 4])
def test_couplings_are_wigner_3j_symbols(lmax):
    coupling, path, paths = couplings(lmax)
    degrees = degree_of_component(lmax)
    start = {d: degrees.index(d) for d in degrees}
    seen = set()
    for a in start:
        for b in start:
            for d in start:
                at = tuple(slice(start[k], start[k] + 2 * k + 1) for k in (a, b, d))
                block = coupling[at]
                if (a + b + d) % 2 or not abs(a - b) <= d <= a + b:
                    assert not block.any()
                    continue
                (number,) = path[at].unique().tolist()
                seen.add(number)
                symbols = o3.wigner_3j(a, b, d, dtype=torch.float64)
                factor = (block * symbols).sum() / symbols.square().sum()
                torch.testing.assert_close(block, factor * symbols, rtol=0, atol=1e-12)
                assert abs(factor) > 0.1
    assert seen == set(range(paths))


def test_a_product_of_harmonics_turns_with_them():
    torch.manual_seed(0)
    product = TensorProduct(3, 2).double()
    harmonics = SphericalHarmonics(3).double()
    u, v = torch.nn.functional.normalize(torch.randn(2, 5, 3, dtype=torch.float64), dim=2)

    def value(turn):
        a, b = harmonics(u @ turn.T), harmonics(v @ turn.T)
        return product(a.unsqueeze(2).expand(-1, -1, 2), b.unsqueeze(2).expand(-1, -1, 2))

    for sign in (1.0, -1.0):
        turn = sign * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
        # How harmonics turn: the matrix that maps those of many directions to those of the turned ones.
        many = torch.nn.functional.normalize(torch.randn(60, 3, dtype=torch.float64), dim=1)
        matrix = torch.linalg.lstsq(harmonics(many), harmonics(many @ turn.T)).solution
        found, expected = (
            value(turn),
            torch.einsum("nmc,mk->nkc", value(torch.eye(3).double()), matrix),
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_factors_of_variance_1_give_products_of_variance_1():
    torch.manual_seed(0)
    product = TensorProduct(3, 256).float()
    a, b = torch.randn(2, 400, 15, 256)
    variance = product(a, b).detach().square().mean(dim=(0, 2))
    torch.testing.assert_close(variance, torch.ones(15), rtol=0, atol=0.2)


def test_every_coupling_counts():
    torch.manual_seed(0)
    product = TensorProduct(3, 4).double()
    coupling, path, _ = couplings(3)
    a, b = torch.randn(2, 7, 15, 4, dtype=torch.float64)
    weights = product.weights.squeeze(1)[path] * coupling.unsqueeze(3)
    expected = torch.einsum("npc,nqc,pqkc->nkc", a, b, weights)
    torch.testing.assert_close(product(a, b), expected, rtol=0, atol=1e-12)


def test_vectors_alone_have_no_product():
    with pytest.raises(ConfigError, match="lmax=2"):
        build_potential({"name": "hegnn", "lmax": 1, "tensor_product": True}, [1])
    for key in ("lmax=1", "model=egnn"):
        with pytest.raises(ConfigError, match="tensor_product is for name=hegnn with lmax=2"):
            load_config(None, ["dataset=x.xyz", "tensor_product=true", key])


def test_kernels_for_a_gpu_do_not_leave_it_out(tmp_path):
    from forcefield import export_potential, load_exported
    from forcefield.fused import supports

    found = []
    for products in (False, True):
        potential = build_potential({"name": "hegnn", "tensor_product": products}, [1])
        export_potential(potential.eval(), tmp_path / "potential.pt", {})
        found.append(supports(load_exported(tmp_path / "potential.pt")))
    assert found == [importlib.util.find_spec("triton") is not None, False]
