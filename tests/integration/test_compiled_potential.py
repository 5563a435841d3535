"""Potentials compiled for the processor: the same results, or a sentence that says why not."""

import shutil

import numpy as np
import pytest
import torch

from calculators import PotentialCalculator
from forcefield import build_graph, build_potential, export_potential, load_exported
from forcefield.compiled import CACHE_VARIABLE, CompiledModule, compile_exported
from forcefield.errors import CompilationError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


def small_potential(path, seed: int):
    """One layer, so that its compilation takes seconds rather than a minute."""
    torch.manual_seed(seed)
    potential = build_potential(
        {"name": "egnn", "cutoff": 4.0, "layers": 1, "features": 16},
        [1, 6, 8],
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1029.0, 8: -2041.0},
        avg_neighbors=8.0,
    ).eval()
    export_potential(potential, path)
    return load_exported(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return small_potential(tmp_path_factory.mktemp("exported") / "a.pt", 0)


@pytest.fixture(scope="module")
def compiled(exported, cache):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    return compile_exported(exported)


def inputs(atoms, exported, cell=None, pbc=False):
    graph = build_graph(atoms.positions, atoms.numbers, exported.cutoff, cell, pbc)
    return graph.tensors()


def test_agrees_with_the_interpreted_potential(compiled, exported, ethanol, water_box):
    for atoms, stress in ((ethanol, False), (water_box, True)):
        arguments = inputs(atoms, exported, atoms.cell.array, atoms.pbc)
        found = compiled.module(*arguments, stress)
        expected = exported.module(*arguments, stress)
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_batches_and_lone_atoms_go_the_other_way(compiled, exported, ethanol):
    lone = inputs(ethanol[:1], exported)
    assert torch.equal(compiled.module(*lone)["energy"], exported.module(*lone)["energy"])
    positions, numbers, edges, shifts, _, _ = inputs(ethanol, exported)
    twice = (
        torch.cat([positions, positions + 1.0]),
        torch.cat([numbers, numbers]),
        torch.cat([edges, edges + len(numbers)], dim=1),
        torch.cat([shifts, shifts]),
        torch.zeros(2, 3, 3, dtype=torch.float64),
        torch.arange(2).repeat_interleave(len(numbers)),
    )
    torch.testing.assert_close(
        compiled.module(*twice)["energy"], exported.module(*twice)["energy"], rtol=0, atol=1e-5
    )


def test_one_library_serves_other_weights(compiled, cache, ethanol, tmp_path):
    libraries = set(cache.glob("*.pt2"))
    other = small_potential(tmp_path / "b.pt", 1)
    arguments = inputs(ethanol, other)
    found = compile_exported(other).module(*arguments)
    assert set(cache.glob("*.pt2")) == libraries
    expected = other.module(*arguments)
    torch.testing.assert_close(found["forces"], expected["forces"], rtol=0, atol=1e-5)
    assert not torch.allclose(found["forces"], compiled.module(*arguments)["forces"], atol=1e-3)


def test_the_calculator_takes_it(compiled, exported, ethanol):
    ethanol.calc = PotentialCalculator(exported, compile=True)
    assert isinstance(ethanol.calc.potential.module, CompiledModule)
    forces = ethanol.get_forces()
    ethanol.calc = PotentialCalculator(exported)
    np.testing.assert_allclose(forces, ethanol.get_forces(), atol=1e-5)


def test_a_library_that_is_wrong_is_found_out(compiled, exported, ethanol):
    def wrong(*arguments):
        energies, forces, virial = compiled.module.library(*arguments)
        return energies, forces + 0.01, virial

    module = CompiledModule(exported.module, wrong, torch.float32)
    with pytest.raises(CompilationError, match=r"differs from the interpreted one by 1.0e-02"):
        module(*inputs(ethanol, exported))


def test_without_a_compiler_it_says_so(exported, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    nothing = torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",)})
    with nothing, pytest.raises(CompilationError, match=r"compiler.*compile=False"):
        compile_exported(exported)
    assert not list(tmp_path.glob("*.pt2"))
