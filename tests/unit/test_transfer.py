"""Trained weights as a beginning: elements, reference energies, and what a run starts from."""

import numpy as np
import pytest
import torch
from ase.build import molecule

from forcefield import build_graph, build_potential, load_potential, save_potential
from forcefield.errors import CheckpointError, ConfigError, UnknownElementError
from forcefield.pretrained import BACKBONE, LARGE
from forcefield.transfer import restrict_species
from training import load_config
from training.datasets.frames import Frame
from training.graphs import GraphDataset
from training.prepare import prepare
from training.schedule import FROM_RANDOM_WEIGHTS
from training.start import Start, choose_start, initial_potential, resolve, with_model_of_start
from training.statistics import collect_statistics

SMALL = {"name": "hegnn", "cutoff": 4.0, "layers": 2, "features": 16, "channels": 4, "lmax": 2}
SMALL_KEYS = ["cutoff=4", "layers=2", "features=16", "channels=4", "lmax=2"]


def graph(name: str):
    atoms = molecule(name)
    return build_graph(atoms.positions, atoms.numbers, 4.0)


def general_potential(seed: int = 0):
    torch.manual_seed(seed)
    references = {1: -13.6, 6: -1030.5, 7: -1485.3, 8: -2043.25}
    potential = build_potential(SMALL, [1, 6, 7, 8], reference_energies=references)
    with torch.no_grad():
        potential.readout.scale.add_(torch.arange(4.0).view(-1, 1))
    return potential.eval()


def ethanol_frames(count: int = 6, offset: float = 0.0) -> list[Frame]:
    atoms = molecule("CH3CH2OH")
    random = np.random.default_rng(0)
    potential = general_potential(seed=1)
    frames = []
    for _ in range(count):
        positions = atoms.positions + random.normal(0.0, 0.05, atoms.positions.shape)
        result = potential(*build_graph(positions, atoms.numbers, 4.0).tensors())
        energy = float(result["energy"]) + offset
        frames.append(Frame(atoms.numbers, positions, energy, result["forces"].detach().numpy()))
    return frames


def test_fewer_elements_leave_energies_and_forces_as_they_are():
    potential = general_potential()
    smaller = restrict_species(potential, [8, 1, 6, 6])
    assert smaller.species == [1, 6, 8]
    whole, part = (p(*graph("CH3CH2OH").tensors()) for p in (potential, smaller))
    torch.testing.assert_close(part["energies"], whole["energies"])
    torch.testing.assert_close(part["forces"], whole["forces"])
    assert potential.species == [1, 6, 7, 8]


def test_an_element_that_the_weights_do_not_know_is_named():
    with pytest.raises(UnknownElementError, match=r"Cl.*they know H, C, N, O"):
        restrict_species(general_potential(), [1, 17])


def start_config(tmp_path, *overrides: str):
    path = tmp_path / "general.safetensors"
    save_potential(general_potential(), path)
    return load_config(None, ["dataset=x.xyz", f"start={path}", *SMALL_KEYS, *overrides])


def test_the_folder_of_a_run_stands_for_its_weights(tmp_path):
    save_potential(general_potential(), tmp_path / "potential.safetensors")
    config = load_config(None, ["dataset=x.xyz", f"start={tmp_path}", *SMALL_KEYS])
    assert choose_start(config, [1, 6]).weights == tmp_path / "potential.safetensors"


def begin(config, frames, **options):
    graphs = GraphDataset(frames, 4.0)
    statistics = collect_statistics(frames, graphs.average_neighbors(), **options)
    return initial_potential(config, choose_start(config, statistics.species), statistics, graphs)


def test_reference_energies_are_fitted_to_what_the_weights_leave(tmp_path):
    frames = ethanol_frames(offset=1234.5)
    potential = begin(start_config(tmp_path), frames).eval()
    energies = [
        float(potential(*item.graph.tensors())["energy"])
        for item in GraphDataset(frames, 4.0).items
    ]
    errors = np.array(energies) - [frame.energy for frame in frames]
    assert abs(errors.mean()) < 1e-6
    forces = potential(*graph("CH3CH2OH").tensors())["forces"]
    torch.testing.assert_close(forces, general_potential()(*graph("CH3CH2OH").tensors())["forces"])


def test_an_element_in_one_frame_of_many_has_its_reference_energy_fitted(tmp_path):
    methane = molecule("CH4")
    water = molecule("H2O")
    frames = [
        Frame(
            atoms.numbers, atoms.positions, -1e3 * np.sum(atoms.numbers), np.ones((len(atoms), 3))
        )
        for atoms in [methane] * 397 + [water] + [methane] * 2
    ]
    potential = begin(start_config(tmp_path), frames).eval()
    graphs = GraphDataset([frames[397]], 4.0)
    assert float(potential(*graphs[0].graph.tensors())["energy"]) == pytest.approx(-1e4, abs=1e-3)


def test_energies_of_isolated_atoms_are_kept(tmp_path):
    isolated = {1: -10.0, 6: -1000.0, 8: -2000.0}
    potential = begin(start_config(tmp_path), ethanol_frames(), isolated_atoms=isolated)
    assert potential.readout.reference_energies.tolist() == [-10.0, -1000.0, -2000.0]


def test_what_does_not_fit_is_said(tmp_path):
    config = start_config(tmp_path, "layers=3", "features=8")
    with pytest.raises(ConfigError, match=r"model.layers=2 \(now 3\), model.features=16 \(now 8\)"):
        choose_start(config, [1, 6])
    with pytest.raises(ConfigError, match="knows H, C, N, O, not Si"):
        choose_start(start_config(tmp_path), [1, 14])
    with pytest.raises(CheckpointError, match="no weights file at"):
        choose_start(start_config(tmp_path, "start=missing.safetensors"), [1])


def test_default_start_is_the_backbone_where_it_fits():
    config = load_config(None, ["dataset=x.xyz"])
    assert choose_start(config, [1, 6, 8]).weights == BACKBONE
    without = choose_start(config, [14])
    assert without.weights is None
    assert "not Si" in without.reason
    dense = choose_start(config, [6], neighbors=90.0)
    assert dense.weights is None
    assert "atoms have 90 neighbours" in dense.reason
    asked = load_config(None, ["dataset=x.xyz", "start=pretrained"])
    assert choose_start(asked, [6], neighbors=90.0).weights == BACKBONE
    other = choose_start(load_config(None, ["dataset=x.xyz", "lmax=1"]), [1, 6])
    assert other.weights is None
    assert "model.lmax=3 (now 1)" in other.reason
    assert choose_start(load_config(None, ["dataset=x.xyz", "start=scratch"]), [1]).weights is None


def test_a_run_knows_its_start_and_its_learning_rate():
    keys = ["dataset=rmd17:ethanol", "train=5", "valid=0", "test=0"]
    fine, scratch = (prepare(load_config(None, [*keys, *more])) for more in ([], ["start=scratch"]))
    assert (fine.config.start, scratch.config.start) == ("pretrained", "scratch")
    rates = [p.config.training.learning_rate for p in (fine, scratch)]
    assert rates == [2.5e-4, 5e-3]
    many = prepare(load_config(None, ["dataset=rmd17:ethanol", "train=250", "valid=0", "test=0"]))
    assert many.config.training.learning_rate == 1e-3
    assert BACKBONE.name in fine.describe()["start"]
    backbone = load_potential(BACKBONE)[0]
    name = "representation.layers.0.message_hidden.weight"
    assert torch.equal(fine.potential.state_dict()[name], backbone.state_dict()[name])
    assert not torch.equal(scratch.potential.state_dict()[name], backbone.state_dict()[name])
    set_rate = prepare(load_config(None, [*keys, "learning_rate=1e-4"]))
    assert set_rate.config.training.learning_rate == 1e-4


def test_the_backbone_is_what_its_card_says():
    potential, header = load_potential(BACKBONE)
    assert potential.species == [1, 6, 7, 8, 9, 16, 17]
    assert BACKBONE.stat().st_size < 4e6
    assert BACKBONE.with_name("README.md").is_file()
    assert header["name"]


def test_the_model_is_that_of_the_weights_unless_something_else_is_said(tmp_path):
    start_config(tmp_path)
    keys = ["dataset=x.xyz", f"start={tmp_path / 'general.safetensors'}"]
    model = with_model_of_start(load_config(None, keys)).model
    assert [model.cutoff, model.layers, model.features, model.channels, model.lmax] == [
        4,
        2,
        16,
        4,
        2,
    ]
    assert not model.tensor_product
    said = with_model_of_start(load_config(None, [*keys, "layers=3"]))
    assert (said.model.layers, said.model.features) == (3, 16)
    with pytest.raises(ConfigError, match=r"needs model.layers=2 \(now 3\); or set"):
        choose_start(said, [1, 6])
    for start in ("auto", "scratch"):
        config = load_config(None, ["dataset=x.xyz", f"start={start}"])
        assert with_model_of_start(config) == config


def test_large_is_a_larger_network_of_the_same_elements():
    config = with_model_of_start(load_config(None, ["dataset=x.xyz", "start=large"]))
    assert choose_start(config, [1, 6, 8]).weights == LARGE
    assert config.model.tensor_product
    usual, large = (load_potential(path)[0] for path in (BACKBONE, LARGE))
    assert large.species == usual.species
    assert large.representation.features == 2 * usual.representation.features
    # Who asks for the network has its weights.
    model = ["features=128", "channels=32", "tensor_product=true"]
    asked = load_config(None, ["dataset=x.xyz", *model])
    start = choose_start(asked, [1, 6, 8])
    assert start.weights == LARGE
    assert resolve(asked, start, 950).start == "large"


@pytest.mark.parametrize(
    ("features", "frames", "rate"),
    [(32, 200, 1e-3), (64, 199, 2.5e-4), (128, 200, 5e-4), (128, 199, 1.25e-4)],
)
def test_wide_networks_that_know_something_take_smaller_steps(features, frames, rate):
    config = load_config(None, ["dataset=x.xyz", f"features={features}", "start=x"])
    resolved = resolve(config, Start(BACKBONE, ""), frames)
    assert resolved.training.learning_rate == rate
    scratch = resolve(config, Start(None, ""), frames)
    assert scratch.training.learning_rate == FROM_RANDOM_WEIGHTS


def test_members_of_a_committee_have_the_same_frames_and_other_weights():
    def prepared(*more):
        keys = ("dataset=rmd17:ethanol", "train=5", "valid=2", "test=0", "start=scratch", "lmax=1")
        return prepare(load_config(None, [*keys, *more]))

    def first_weights(member):
        return next(member.potential.parameters())

    first, second = prepared("split_seed=3", "seed=0"), prepared("split_seed=3", "seed=1")
    assert first.describe()["sha256"] == second.describe()["sha256"]
    assert not torch.equal(first_weights(first), first_weights(second))
    assert first.describe()["sha256"] == prepared("seed=3").describe()["sha256"]
    assert first.describe()["sha256"] != prepared("seed=1").describe()["sha256"]
