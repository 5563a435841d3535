"""Weights and exported files: what goes in comes out, and wrong files say what is wrong."""

import copy
import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import forcefield
from forcefield import (
    build_graph,
    build_potential,
    export_potential,
    load_exported,
    load_potential,
    save_potential,
)
from forcefield.checkpoint import FORMAT_VERSION, read_header
from forcefield.errors import CheckpointError, ConfigError, UnknownElementError
from tests.conftest import ARCHITECTURES, REFERENCE_ENERGIES, make_potential


def graph_of(structure, cutoff):
    return build_graph(
        structure.positions, structure.numbers, cutoff, structure.cell, structure.pbc
    ).tensors()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_eager_scripted_and_reloaded_agree_to_rounding(name, dtype, ethanol, crystal, tmp_path):
    potential = make_potential(name, dtype)
    export_potential(potential, tmp_path / "potential.pt", {"note": "hello"})
    exported = load_exported(tmp_path / "potential.pt")
    assert exported.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for structure, stress in ((ethanol, False), (crystal, True)):
        inputs = graph_of(structure, potential.cutoff)
        expected = potential(*inputs, stress)
        # TorchScript specialises itself during the first calls: the later ones run other code.
        for _ in range(4):
            found = exported.module(*inputs, stress)
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance)
            assert found[key].dtype == value.dtype


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_exported_potential_is_of_no_precision_or_device_of_its_own(
    name, ethanol, crystal, tmp_path
):
    potential = make_potential(name, torch.float32)
    export_potential(potential, tmp_path / "potential.pt")
    module = load_exported(tmp_path / "potential.pt").module.double()
    for structure, stress in ((ethanol, False), (crystal, True)):
        inputs = graph_of(structure, potential.cutoff)
        found = module(*inputs, stress)
        expected = copy.deepcopy(potential).double()(*inputs, stress)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-8)
    # Operations that make numbers on the processor fail on a GPU.
    with zipfile.ZipFile(tmp_path / "potential.pt") as archive:
        sources = [
            archive.read(file).decode() for file in archive.namelist() if file.endswith(".py")
        ]
    assert "torch.zeros(" not in "".join(sources)


@pytest.mark.parametrize(("lmax", "layers"), [(1, 1), (2, 3), (4, 1), (6, 2)])
def test_every_size_of_hegnn_can_be_exported(lmax, layers, ethanol, tmp_path):
    architecture = {"name": "hegnn", "layers": layers, "features": 8, "channels": 2, "lmax": lmax}
    potential = build_potential(architecture, [1, 6, 8]).eval()
    export_potential(potential, tmp_path / "potential.pt")
    inputs = graph_of(ethanol, potential.cutoff)
    found = load_exported(tmp_path / "potential.pt").module(*inputs)
    torch.testing.assert_close(found["forces"], potential(*inputs)["forces"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("separation", [None, 1.1, 9.0])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_one_atom_and_two(name, separation, tmp_path):
    """Sizes that tracing treats specially: one atom, one pair, no pair."""
    potential = make_potential(name)
    export_potential(potential, tmp_path / "potential.pt")
    positions = [[0.0, 0.0, 0.0]] if separation is None else [[0.0] * 3, [0.0, separation, 0.0]]
    inputs = build_graph(positions, [6, 8][: len(positions)], potential.cutoff).tensors()
    module = load_exported(tmp_path / "potential.pt").module
    for _ in range(4):
        found = module(*inputs)
    for key, value in potential(*inputs).items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_weights_come_back_with_their_header(name, ethanol, tmp_path):
    potential = make_potential(name, torch.float32)
    path = tmp_path / "potential.safetensors"
    save_potential(potential, path, {"data": {"sha256": "abc"}})
    loaded, header = load_potential(path)
    assert header["species"] == [1, 6, 8]
    assert header["cutoff"] == potential.cutoff
    assert header["units"]["forces"] == "eV/Angstrom"
    assert header["version"] == forcefield.__version__
    assert header["data"] == {"sha256": "abc"}
    assert header["architecture"]["name"] == ARCHITECTURES[name]["name"]
    assert not loaded.training
    inputs = graph_of(ethanol, potential.cutoff)
    expected = potential(*inputs)
    for key, value in loaded(*inputs).items():
        assert torch.equal(value, expected[key])


def test_reference_energies_keep_their_precision(ethanol, tmp_path):
    """-2043.25 eV has more digits than float32: converting the network must not round it."""
    exact = {1: -13.603703, 6: -1035.8871234567, 8: -2043.9336123456}
    potential = build_potential(ARCHITECTURES["hegnn"], [1, 6, 8], reference_energies=exact)
    save_potential(potential.to(torch.float32), tmp_path / "potential.safetensors")
    loaded, _ = load_potential(tmp_path / "potential.safetensors")
    lone = build_graph([[0.0, 0.0, 0.0]], [8], 4.0)
    # What the network adds to a lone atom cancels but for its rounding, some 1e-8 eV; that of float32
    # would be off by 2e-5.
    assert abs(float(torch.tensor(exact[8], dtype=torch.float32)) - exact[8]) > 1e-5
    assert loaded(*lone.tensors())["energy"].item() == pytest.approx(exact[8], abs=1e-6)


def test_float64_evaluation_of_float32_weights(ethanol, tmp_path):
    save_potential(make_potential("hegnn", torch.float32), tmp_path / "p.safetensors")
    single, _ = load_potential(tmp_path / "p.safetensors")
    double, _ = load_potential(tmp_path / "p.safetensors", dtype=torch.float64)
    inputs = graph_of(ethanol, single.cutoff)
    difference = (single(*inputs)["forces"] - double(*inputs)["forces"]).abs().max().item()
    assert 0 < difference < 1e-4


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        load_potential(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="no exported potential"):
        load_exported(tmp_path / "missing.pt")

    text = tmp_path / "text.pt"
    text.write_text("not a model")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        load_exported(text)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_potential(text)

    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="not written by this project"):
        load_potential(foreign)
    with pytest.raises(CheckpointError, match="export-potential"):
        load_exported(foreign)

    other = tmp_path / "other.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(other))
    with pytest.raises(CheckpointError, match="not one written by export-potential"):
        load_exported(other)


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    path = tmp_path / "potential.safetensors"
    save_potential(make_potential("egnn"), path)
    header = read_header(path) | {"format_version": FORMAT_VERSION + 1, "version": "99.0"}
    save_file({"weight": torch.zeros(2)}, path, {"header": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"99\.0.*update the package"):
        load_potential(path)


def test_tensors_that_do_not_fit_the_header(tmp_path):
    path = tmp_path / "potential.safetensors"
    save_potential(make_potential("egnn"), path)
    header = read_header(path)
    save_file({"weight": torch.zeros(2)}, path, {"header": json.dumps(header)})
    with pytest.raises(CheckpointError, match="do not fit its header"):
        load_potential(path)


def test_a_failed_save_leaves_the_good_file(tmp_path):
    path = tmp_path / "potential.safetensors"
    save_potential(make_potential("egnn"), path)
    good = path.read_bytes()
    with pytest.raises(TypeError):
        save_potential(make_potential("hegnn"), path, {"not": object()})
    assert path.read_bytes() == good


def test_unknown_elements_are_named(tmp_path):
    export_potential(make_potential("egnn"), tmp_path / "potential.pt")
    exported = load_exported(tmp_path / "potential.pt")
    exported.check_elements([1, 6, 8])
    with pytest.raises(UnknownElementError, match=r"atom 2 is Cl .*trained on H, C, O only"):
        exported.check_elements([1, 6, 17, 35])


def test_mistakes_in_the_architecture():
    with pytest.raises(ConfigError, match="known are hegnn, hegnn-published, egnn"):
        build_potential({"name": "schnet"}, [1])
    with pytest.raises(ConfigError, match="chanels"):
        build_potential({"name": "hegnn", "chanels": 4}, [1])


def test_the_seed_fixes_the_weights():
    first, second, other = (make_potential("hegnn", seed=seed) for seed in (5, 5, 6))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(
        first.representation.embedding.weight, other.representation.embedding.weight
    )
    assert first.readout.reference_energies.tolist() == list(REFERENCE_ENERGIES.values())
