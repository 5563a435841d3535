"""Potentials compiled for the processor: the same results, or a sentence that says why not."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from calculators import PotentialCalculator, calculate_many
from forcefield import (
    build_graph,
    build_potential,
    collate,
    export_potential,
    load_exported,
    pieces,
)
from forcefield.compiled import CompiledModule, compile_exported
from forcefield.compiled_pieces import compile_pieces
from forcefield.errors import CompilationError
from forcefield.libraries import CACHE_VARIABLE, Shelf
from forcefield.pieces import MANY_PAIRS, PAIRS_PER_PIECE, piecewise
from tests.conftest import ARCHITECTURES
from tests.integration.conftest import SMALL_ARCHITECTURE


def small_potential(path, seed: int, architecture=SMALL_ARCHITECTURE):
    torch.manual_seed(seed)
    potential = build_potential(
        architecture,
        [1, 6, 8],
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1029.0, 8: -2041.0},
        avg_neighbors=8.0,
    ).eval()
    export_potential(potential, path, {"file": str(path)})
    return load_exported(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return small_potential(tmp_path_factory.mktemp("exported") / "a.pt", 0)


@pytest.fixture(scope="module")
def compiled(exported, compiler_cache):
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


def test_lone_atoms_go_the_other_way(compiled, exported, ethanol):
    lone = inputs(ethanol[:1], exported)
    assert torch.equal(compiled.module(*lone)["energy"], exported.module(*lone)["energy"])


def test_batches_go_the_same_way(compiled, exported, ethanol, water_box):
    structures = [ethanol, water_box, ethanol[:1], ethanol[[0, 2]]]
    found = calculate_many(compiled, structures)
    for results, expected in zip(found, calculate_many(exported, structures), strict=True):
        assert set(results) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-5)
    module = compiled.module
    calls = []
    counted = CompiledModule(
        module.scripted, lambda *data: calls.append(data) or module.library(*data), torch.float32
    )
    calculate_many(replace(compiled, module=counted), structures, max_pairs=10_000)
    assert len(calls) == 1


def test_one_library_serves_other_weights(compiled, compiler_cache, ethanol, tmp_path):
    libraries = set(compiler_cache.glob("*.pt2"))
    other = small_potential(tmp_path / "b.pt", 1)
    arguments = inputs(ethanol, other)
    found = compile_exported(other).module(*arguments)
    assert set(compiler_cache.glob("*.pt2")) == libraries
    expected = other.module(*arguments)
    torch.testing.assert_close(found["forces"], expected["forces"], rtol=0, atol=1e-5)
    assert not torch.allclose(found["forces"], compiled.module(*arguments)["forces"], atol=1e-3)


def test_the_calculator_takes_it(compiled, exported, ethanol):
    ethanol.calc = PotentialCalculator(exported, compile=True)
    assert isinstance(ethanol.calc.potential.module, CompiledModule)
    forces = ethanol.get_forces()
    ethanol.calc = PotentialCalculator(exported)
    np.testing.assert_allclose(forces, ethanol.get_forces(), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "error", "found"),
    [("highest", 1e-2, True), ("highest", 1e-3, True), ("high", 1e-3, False), ("high", 1e-1, True)],
)
def test_a_library_that_is_wrong_is_found_out(
    precision, error, found, compiled, exported, ethanol, monkeypatch
):
    """Where the user allows TF32, its rounding is not taken for a mistake."""

    def wrong(*arguments):
        energy, energies, forces, virial = compiled.module.library(*arguments)
        return energy, energies, forces + error, virial

    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    module = CompiledModule(exported.module, wrong, torch.float32)
    expected = pytest.raises(
        CompilationError, match=f"differs from the interpreted one by {error:.1e}"
    )
    with expected if found else nullcontext():
        module(*inputs(ethanol, exported))


def test_a_folder_that_cannot_be_written_to_is_named(exported, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    message = rf"kept in .*cache, which cannot be written to .*; set {CACHE_VARIABLE} to a folder"
    with pytest.raises(CompilationError, match=message):
        compile_exported(exported)


def test_without_a_compiler_it_says_so(exported, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    nothing = torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",)})
    with nothing, pytest.raises(CompilationError, match=r"compiler.*compile=False"):
        compile_exported(exported)
    assert not list(tmp_path.glob("*.pt2"))


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """A HEGNN whose pairs can be evaluated in pieces; two layers share their libraries."""
    torch.manual_seed(3)
    potential = build_potential(
        {"name": "hegnn", "cutoff": 4.0, "layers": 2, "features": 8, "channels": 4, "lmax": 2},
        [1, 6, 8],
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1029.0, 8: -2041.0},
        avg_neighbors=8.0,
    ).eval()
    path = tmp_path_factory.mktemp("exported") / "c.pt"
    export_potential(potential, path, {"file": str(path)})
    return load_exported(path)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def mixture(exported, *structures):
    graphs = [
        build_graph(a.positions, a.numbers, exported.cutoff, a.cell.array, a.pbc)
        for a in structures
    ]
    return collate(graphs).tensors()


@pytest.mark.parametrize("pairs_per_piece", [3, 100, 10**6])
def test_pieces_add_up(two_layers, ethanol, water_box, pairs_per_piece):
    pieces = piecewise(two_layers)
    pieces.pairs_per_piece = pairs_per_piece
    for arguments, stress in (
        (mixture(two_layers, water_box), True),
        (mixture(two_layers, ethanol, water_box, ethanol[:1]), False),
        (mixture(two_layers, ethanol[:1]), False),
    ):
        assert_same(pieces(*arguments, stress), two_layers.module(*arguments, stress))


def test_pieces_add_up_where_atoms_multiply_their_features(
    ethanol, water_box, tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, "ATOMS_PER_BLOCK", 5)
    exported = small_potential(tmp_path / "products.pt", 0, ARCHITECTURES["hegnn-products"])
    arguments = mixture(exported, ethanol, water_box, ethanol[:1])
    assert_same(piecewise(exported)(*arguments), exported.module(*arguments))


@pytest.mark.usefixtures("compiler_cache")
def test_products_are_compiled(ethanol, tmp_path):
    exported = small_potential(tmp_path / "products.pt", 0, ARCHITECTURES["hegnn-products"])
    arguments = inputs(ethanol, exported)
    assert_same(compile_exported(exported).module(*arguments), exported.module(*arguments))


def test_many_pairs_go_in_compiled_pieces(
    two_layers, compiler_cache, ethanol, water_box, monkeypatch
):
    monkeypatch.setitem(MANY_PAIRS, "cpu", 100)
    monkeypatch.setitem(PAIRS_PER_PIECE, "cpu", 64)
    module = CompiledModule(
        two_layers.module,
        None,
        torch.float32,
        partial(compile_pieces, two_layers, Shelf(two_layers)),
    )
    for arguments, stress in (
        (mixture(two_layers, water_box), True),
        (mixture(two_layers, *[ethanol] * 5), False),
    ):
        assert_same(module(*arguments, stress), two_layers.module(*arguments, stress))
    # One each for the initial features and for the layers, and another for its derivative.
    names = {path.stem.split("-", 1)[1] for path in compiler_cache.glob("*.pt2")}
    assert {
        f"{part}-{kind}" for part in ("messages", "gradients") for kind in ("initial", "layer")
    } <= names


def test_many_pairs_go_in_pieces_without_a_compiler(two_layers, water_box, monkeypatch):
    found = {}
    for limit in (10**6, 100):
        monkeypatch.setitem(MANY_PAIRS, "cpu", limit)
        water_box.calc = PotentialCalculator(two_layers)
        found[limit] = (
            water_box.get_forces(),
            water_box.get_stress(),
            calculate_many(two_layers, [water_box])[0]["forces"],
        )
        assert (water_box.calc.evaluator._model._pieces is None) == (limit == 10**6)
    for whole, divided in zip(found[10**6], found[100], strict=True):
        np.testing.assert_allclose(divided, whole, atol=1e-5)


@pytest.mark.gpu
def test_pieces_on_a_gpu(two_layers, water_box, monkeypatch):
    monkeypatch.setitem(MANY_PAIRS, "cuda", 100)
    monkeypatch.setitem(PAIRS_PER_PIECE, "cuda", 500)
    arguments = mixture(two_layers, water_box)
    expected = two_layers.module(*arguments, True)
    compiled = compile_exported(load_exported(two_layers.metadata["file"], "cuda"))
    found = compiled.module(*(tensor.cuda() for tensor in arguments), True)
    assert compiled.module.pieces is not None
    assert_same({name: value.cpu() for name, value in found.items()}, expected)


@pytest.mark.gpu
def test_on_a_gpu(exported, ethanol, water_box):
    compiled = compile_exported(load_exported(exported.metadata["file"], "cuda"))
    for atoms in (ethanol, water_box):
        atoms.calc = PotentialCalculator(exported)
        expected = atoms.get_forces()
        atoms.calc = PotentialCalculator(compiled)
        for _ in range(3):  # The first call compares, and then steps are recorded and replayed.
            atoms.calc.reset()
            np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-5)
    found = calculate_many(compiled, [ethanol, water_box])
    expected = calculate_many(exported, [ethanol, water_box])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-5)
        np.testing.assert_allclose(one["energy"], other["energy"], atol=1e-3)
