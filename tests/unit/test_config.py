"""Configuration: presets, overrides, files, and messages that name the mistake."""

from pathlib import Path

import pytest
import yaml

from forcefield.errors import ConfigError
from training.config import TrainConfig, architecture
from training.config_io import (
    changed_keys,
    config_keys,
    dump_yaml,
    load_config,
    parse_override,
    preset_names,
    read_preset_comment,
    validate,
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_says_what_it_is_for(name):
    if name.startswith("small-data"):
        config = load_config(name, ["dataset=rmd17:ethanol"])
        assert config.name == f"{name}-rmd17-ethanol"
    else:
        assert load_config(name).name == name
    assert read_preset_comment(name)


@pytest.mark.parametrize(
    ("target", "overrides", "name"),
    [
        ("data.v2/e.300K.extxyz", [], "e.300K"),
        ("frames.xyz.gz", [], "frames"),
        ("(1).extxyz", [], "1"),
        (".hidden.extxyz", [], "hidden"),
        ("rmd17:ethanol", [], "rmd17-ethanol"),
        ("small-data", ["dataset=e.extxyz"], "small-data-e"),
        ("rmd17-ethanol", ["dataset=rmd17:ethanol"], "rmd17-ethanol"),
        ("rmd17-ethanol", ["dataset=mine.extxyz"], "rmd17-ethanol-mine"),
        ("my settings.yaml", ["dataset=mine.extxyz"], "my-settings-mine"),
        (".", [], "here"),
    ],
)
def test_runs_are_named_after_settings_and_data(target, overrides, name, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("0\n")
    monkeypatch.chdir(folder)
    Path("my settings.yaml").write_text("seed: 1\n")
    if target not in preset_names() and ":" not in target:
        Path(target).parent.mkdir(exist_ok=True)
        if not Path(target).exists():
            Path(target).touch()
    assert load_config(target, overrides).name == name


def test_texts_are_taken_as_they_are_written():
    texts = {
        "name": "2024",
        "output": "runs #2",
        "valid_file": "[a].xyz",
        "dataset": "1.xyz",
        "start": "no",
    }
    config = load_config(None, [f"{key}={value}" for key, value in texts.items()])
    assert (config.name, config.output, config.start) == ("2024", "runs #2", "no")
    assert (config.dataset.source, config.dataset.valid_file) == ("1.xyz", "[a].xyz")
    emptied = load_config(None, ["dataset=a.xyz", "valid_file=", "energy_key=null"])
    assert (emptied.dataset.valid_file, emptied.dataset.energy_key) == (None, None)


def test_overrides_take_full_names_last_parts_and_sections():
    config = load_config(
        "quick-test",
        [
            "training.epochs=7",
            "learning_rate=1e-3",
            "dataset=rmd17:aspirin",
            "model=egnn",
            "train=0.5",
        ],
    )
    assert config.training.epochs == 7
    assert config.training.learning_rate == pytest.approx(1e-3)
    assert config.dataset.source == "rmd17:aspirin"
    assert config.dataset.train == pytest.approx(0.5)
    assert config.model.name == "egnn"


def test_epochs_replace_the_minutes_of_a_preset():
    assert load_config("rmd17-aspirin").training.minutes == 15
    assert load_config("rmd17-aspirin", ["epochs=7"]).training.minutes is None
    both = load_config("rmd17-aspirin", ["epochs=7", "minutes=2"]).training
    assert both.minutes == 2


def test_last_parts_of_keys_are_unambiguous():
    leaves = [key.path.rpartition(".")[2] for key in config_keys()]
    repeated = {leaf for leaf in leaves if leaves.count(leaf) > 1}
    assert repeated == {"name"}
    assert parse_override("name=x") == ("name", "x")


def test_every_key_has_a_description():
    assert all(key.field.description for key in config_keys())


def test_a_mapping_can_be_given_on_the_command_line():
    config = load_config("quick-test", ["reference_energies={H: -13.6, O: -2041.8}"])
    assert config.dataset.reference_energies == {"H": -13.6, "O": -2041.8}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], "unknown key 'epoch'; did you mean 'training.epochs'"),
        (["training.epoch=3"], "unknown key 'training.epoch'; did you mean 'training.epochs'"),
        (["modle.lmax=3"], "did you mean 'model.lmax'"),
        (["zzz=3"], "--help lists every key"),
        (["training=3"], "'training' is a section"),
        (["epochs"], "unknown preset|not key=value"),
        (["epochs=many"], "training.epochs must be a valid integer, found 'many'"),
        (["epochs=0"], "training.epochs must be greater than or equal to 1, found 0"),
        (["loss=l3"], "training.loss must be 'mse', 'huber' or 'l1', found 'l3'"),
        (["learning_rate=.inf"], "training.learning_rate"),
        (["name=a/b"], "name may hold letters"),
        (["name=.."], "name may hold letters"),
        (["valid=0", "patience=3"], "dataset.valid is 0"),
        (["energy_weight=0", "forces_weight=0"], "nothing to learn"),
        (["reference_energies={H: x}"], "dataset.reference_energies.H must be a valid number"),
        (["epochs=[1"], "cannot read the value"),
    ],
)
def test_mistakes_name_the_key_and_the_nearest_known_one(overrides, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_config("quick-test", overrides)


def test_unknown_presets_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'rmd17-ethanol'.*small-data"):
        load_config("rmd17-etanol")


def test_missing_files_folders_and_data_sets_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"my\.extxyz: no such file"):
        load_config(str(tmp_path / "my.extxyz"))
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigError, match="no data set"):
        load_config(None)
    with pytest.raises(ConfigError, match="no data set"):
        load_config("small-data")


def test_a_data_file_is_trained_with_the_defaults(tmp_path):
    path = tmp_path / "my water.extxyz"
    path.touch()
    config = load_config(str(path))
    defaults = TrainConfig.model_validate({"dataset": {"source": "x"}})
    assert config.dataset.source == str(path)
    assert config.name == "my-water"
    assert config.training == defaults.training


def test_yaml_files_round_trip_and_their_mistakes_name_the_file(tmp_path):
    config = load_config("quick-test", ["epochs=5"])
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(str(path)) == config
    path.write_text("dataset: rmd17:ethanol\ntraining: {epochs: 3, batchsize: 4}\n")
    with pytest.raises(
        ConfigError, match=r"again\.yaml: unknown key 'training\.batchsize'.*batch_size"
    ):
        load_config(str(path))
    path.write_text("dataset: rmd17:ethanol\n")
    assert load_config(str(path)).dataset.source == "rmd17:ethanol"
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(str(path))
    path.write_text("just words\n")
    with pytest.raises(ConfigError, match="holds no keys"):
        load_config(str(path))


def test_all_mistakes_of_a_file_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        validate({"dataset": {"source": "x"}, "training": {"epochs": -1}, "seeds": 1})
    assert "training.epochs" in str(caught.value)
    assert "did you mean 'seed'" in str(caught.value)


def test_resolved_configuration_names_every_key():
    flat = yaml.safe_load(dump_yaml(load_config("quick-test")))
    for key in config_keys():
        section, _, leaf = key.path.rpartition(".")
        assert leaf in (flat[section] if section else flat)


def test_changed_keys_are_found():
    old = load_config("quick-test")
    new = load_config("quick-test", ["epochs=9", "lmax=1"])
    assert changed_keys(old, new) == {"training.epochs": (3, 9), "model.lmax": (2, 1)}


def test_architecture_leaves_out_what_a_model_does_not_have():
    assert "channels" not in architecture(load_config("quick-test", ["model=egnn"]).model)
    assert "lmax" not in architecture(load_config("quick-test", ["model=egnn"]).model)
    published = architecture(load_config("quick-test", ["model=hegnn-published"]).model)
    assert "lmax" in published
    assert "channels" not in published
