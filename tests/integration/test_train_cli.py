"""``train-potential`` and ``export-potential`` as a user calls them, on real ethanol and on own data."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from forcefield import build_graph, load_exported, load_potential
from forcefield.errors import CheckpointError, ConfigError, DataError
from training import load_config, run_folder, train
from training.cli import app
from training.config import TrainConfig, TrainingConfig
from training.config_io import config_keys
from training.datasets import load_split
from training.evaluate import Predictions
from training.export_cli import app as export_app
from training.export_cli import load_source
from training.fit import _checkpoints, _early_stopping
from training.history import read_history
from training.run import RunResult
from training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("train=20", "valid=6", "test=8", "epochs=4", "validate_every=1", "batch_size=5"),
    *("layers=1", "features=8", "channels=2", "lmax=2", "threads=1", "accelerator=cpu"),
    "compile=false",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "training.cli", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def config(folder: Path, *overrides: str, target: str | None = "quick-test"):
    return load_config(target, [*TINY, f"output={folder}", *overrides])


def run_quietly(folder: Path, *overrides: str, target: str | None = "quick-test", **options: bool):
    return train(config(folder, *overrides, target=target), show_progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A complete run made by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        command("quick-test", *TINY, "--name", "first"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "first", done.stdout


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Averaged and current weights of a run's last checkpoint."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {"average": state["state_dict"], "current": state["current_model_state"]}


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = states(one), states(two)
    for kind in first:
        assert first[kind].keys() == second[kind].keys()
        for name, value in first[kind].items():
            assert torch.equal(value, second[kind][name]), (kind, name)
    one_potential, two_potential = (
        load_potential(p / "potential.safetensors")[0] for p in (one, two)
    )
    for (name, value), other in zip(
        one_potential.state_dict().items(), two_potential.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def rows_without_time(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in read_history(folder / "log.csv")
    ]


class TestFinishedRun:
    def test_leaves_every_file(self, finished):
        folder, printed = finished
        for name in (
            *("config.yaml", "data.json", "log.csv", "potential.safetensors", "potential.pt"),
            *("summary.json", "report.html", "test_predictions.npz"),
            *("checkpoints/last.ckpt", "checkpoints/best.ckpt"),
        ):
            assert (folder / name).is_file(), name
        assert not list(folder.rglob("*.part*"))
        assert "runs/first/potential.pt" in printed
        assert "runs/first/report.html" in printed

    def test_prints_plain_lines_where_there_is_no_terminal(self, finished):
        printed = finished[1]
        assert re.search(r"epoch +4/4  force MAE train [\d.]+ · valid [\d.]+ meV/Å", printed)
        assert "\x1b" not in printed
        assert "\r" not in printed

    def test_summary_has_the_promised_keys(self, finished):
        summary = json.loads((finished[0] / "summary.json").read_text())
        for key in (
            *("test.energy_mae_meV", "test.energy_mae_meV_per_atom", "test.energy_rmse_meV"),
            *("test.forces_mae_meV_per_A", "test.forces_rmse_meV_per_A"),
            *("uncertainty.forces_spearman", "uncertainty.energy_mean_squared_normalized"),
            *("train.seconds", "train.epochs", "model.parameters", "inference.ms_per_step"),
        ):
            section, name = key.split(".")
            assert isinstance(summary[section][name], int | float), key
        assert summary["train"]["epochs"] == 4
        assert summary["train"]["steps"] == 16
        assert summary["data"]["frames"] == {"train": 20, "valid": 6, "test": 8}
        assert {"torch", "python", "hegnn-forcefield"} <= summary["versions"].keys()

    def test_summary_holds_the_errors_of_the_exported_file(self, finished):
        folder = finished[0]
        exported = load_exported(folder / "potential.pt")
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        frames = load_split("rmd17:ethanol", train=20, valid=6, test=8, seed=settings["seed"]).test
        energy, forces = [], []
        for frame in frames:
            graph = build_graph(frame.positions, frame.atomic_numbers, exported.cutoff)
            result = exported.module(*graph.tensors())
            energy.append(result["energy"].item() - frame.energy)
            forces.append(result["forces"].numpy() - frame.forces)
        errors = json.loads((folder / "summary.json").read_text())["test"]
        assert errors["energy_mae_meV"] == pytest.approx(1e3 * np.mean(np.abs(energy)), rel=1e-3)
        assert errors["forces_mae_meV_per_A"] == pytest.approx(
            1e3 * np.mean(np.abs(forces)), rel=1e-3
        )

    def test_the_validated_weights_are_the_averaged_ones_that_were_exported(self, finished):
        folder = finished[0]
        rows = read_history(folder / "log.csv")
        summary = json.loads((folder / "summary.json").read_text())
        best = min(rows, key=lambda row: row["valid_loss"])
        assert best["epoch"] == summary["train"]["best_epoch"]
        assert summary["valid"]["forces_mae_meV_per_A"] == pytest.approx(
            best["valid_forces_mae_meV_per_A"],
            rel=0.1,  # The last layer is fitted afterwards.
        )
        weights = states(folder)
        assert any(
            not torch.equal(weights["average"][k], weights["current"][k])
            for k in weights["current"]
        )

    def test_log_has_a_row_per_epoch(self, finished):
        with (finished[0] / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
        assert all(float(row["valid_forces_mae_meV_per_A"]) > 0 for row in rows)

    def test_predictions_give_the_errors_again(self, finished):
        found = Predictions.load(finished[0] / "test_predictions.npz").errors()
        summary = json.loads((finished[0] / "summary.json").read_text())["test"]
        assert found == pytest.approx(summary, rel=1e-4)

    def test_report_is_self_contained(self, finished):
        html = (finished[0] / "report.html").read_text()
        assert html.count("data:image/png;base64,") == 7
        assert not re.search(r'(?:src|href)="(?!data:)', html)
        for words in (
            "Learning curves",
            "Parity on 8 test frames",
            "Configuration",
            "rmd17:ethanol",
        ):
            assert words in html

    def test_weights_file_describes_itself(self, finished):
        potential, header = load_potential(finished[0] / "potential.safetensors")
        assert header["data"]["source"] == "rmd17:ethanol"
        assert len(header["data"]["sha256"]) == 64
        assert header["training"]["config"]["training"]["epochs"] == 4
        assert potential.species == [1, 6, 8]

    def test_the_same_run_twice_is_the_same(self, finished, tmp_path):
        run_quietly(tmp_path, "name=again")
        assert_same_weights(finished[0], tmp_path / "again")

    def test_an_existing_run_is_not_overwritten(self, finished):
        folder = finished[0]
        with pytest.raises(ConfigError, match=r"--resume .* --name .* --overwrite"):
            run_quietly(folder.parent, "name=first")
        result = CliRunner().invoke(
            app, ["quick-test", *TINY, f"output={folder.parent}", "--name", "first"]
        )
        assert result.exit_code == 2
        assert "holds a run already" in result.output

    def test_a_new_run_in_its_place_leaves_what_is_not_of_a_run(self, finished, tmp_path):
        folder = tmp_path / "again"
        shutil.copytree(finished[0], folder)
        (folder / "md.traj").write_text("mine")
        run_quietly(tmp_path, "name=again", "epochs=1", overwrite=True)
        assert (folder / "md.traj").read_text() == "mine"
        assert read_history(folder / "log.csv")[-1]["epoch"] == 1
        frames = folder / "xtb.extxyz"
        frames.write_text("")
        with pytest.raises(ConfigError, match="would be replaced by the run that is trained on it"):
            run_quietly(tmp_path, "name=again", f"dataset={frames}", overwrite=True)
        assert frames.is_file()

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        arguments = ["quick-test", *TINY, "--quiet", "--output", str(tmp_path / "file" / "runs")]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert f"{tmp_path}/file/runs" in done.output
        assert "not a directory" in done.output

    def test_the_folder_of_another_program_is_not_a_run(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "config.yaml").write_text("cutoff: 5.0\n")
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="not empty and not a run"):
                run_quietly(tmp_path, "name=mine", overwrite=overwrite)

    def test_a_continued_run_that_was_killed_goes_on_and_its_old_weights_do_not_pass_for_new(
        self, finished, tmp_path, monkeypatch
    ):
        shutil.copytree(finished[0], tmp_path / "killed")
        keys = ("name=killed", "epochs=6")
        with monkeypatch.context() as patch:
            patch.setattr("training.run._finish", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_quietly(tmp_path, *keys, resume=True)
        with pytest.raises(ConfigError, match="has not come to its end"):
            run_quietly(tmp_path, "name=next", f"start={tmp_path / 'killed'}")
        _, metadata = load_source(tmp_path / "killed")
        assert metadata["training"]["epochs"] > 4
        assert load_source(finished[0])[1]["training"]["epochs"] <= 4
        result = run_quietly(tmp_path, *keys, resume=True)
        assert result.summary["train"]["epochs"] == 6
        run_quietly(tmp_path, "name=next", "epochs=1", f"start={tmp_path / 'killed'}")

    def test_a_continuation_that_fails_at_once_leaves_the_run_as_it_was(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "same")
        kept = {
            name: (tmp_path / "same" / name).read_text() for name in ("summary.json", "config.yaml")
        }
        with pytest.raises(ConfigError, match=r"strategy=telepathy"):
            run_quietly(tmp_path, "name=same", "epochs=6", "strategy=telepathy", resume=True)
        for name, text in kept.items():
            assert (tmp_path / "same" / name).read_text() == text

    def test_checkpoints_behind_a_link_stay_and_the_run_is_replaced(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "linked")
        (tmp_path / "linked" / "checkpoints").rename(tmp_path / "scratch")
        (tmp_path / "linked" / "checkpoints").symlink_to(tmp_path / "scratch")
        run_quietly(tmp_path, "name=linked", "epochs=1", overwrite=True)
        assert (tmp_path / "scratch" / "last.ckpt").is_file()
        assert len(read_history(tmp_path / "linked" / "log.csv")) == 1

    def test_a_run_goes_on_when_its_frames_have_moved_but_not_with_others(self, tmp_path):
        frames = tmp_path / "frames.npz"
        packaged = ROOT / "training" / "datasets" / "data" / "rmd17_ethanol_train_01.npz"
        shutil.copyfile(packaged, frames)
        run_quietly(tmp_path, "name=moved", f"dataset={frames}", "epochs=1", target=None)
        elsewhere = frames.rename(tmp_path / "elsewhere.npz")
        keys = ("name=moved", f"dataset={elsewhere}")
        run_quietly(tmp_path, *keys, "epochs=2", target=None, resume=True)
        with np.load(elsewhere) as arrays:
            other = {key: arrays[key] for key in arrays.files}
        other["energies"] = other["energies"] + 1.0
        np.savez(elsewhere, **other)
        with pytest.raises(ConfigError, match="started with other data"):
            run_quietly(tmp_path, *keys, "epochs=3", target=None, resume=True)

    def test_a_complete_run_is_not_resumed(self, finished):
        with pytest.raises(ConfigError, match=r"complete after 4 epochs: raise training\.epochs"):
            run_quietly(finished[0].parent, "name=first", resume=True)

    def test_a_run_with_other_settings_or_data_is_not_resumed(self, finished):
        with pytest.raises(ConfigError) as caught:
            run_quietly(
                finished[0].parent, "name=first", "learning_rate=0.1", "threads=2", resume=True
            )
        assert "training.learning_rate: was 0.005, now 0.1" in str(caught.value)
        assert "threads" not in str(caught.value)
        # Steps on several devices are fewer, and the learning rate falls with the steps.
        with pytest.raises(ConfigError, match=r"hardware\.devices: was 1, now 2"):
            run_quietly(finished[0].parent, "name=first", "epochs=8", "devices=2", resume=True)

    def test_export_again_from_weights_and_from_checkpoints(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "cut-off")
        done = CliRunner().invoke(
            export_app, [str(finished[0] / "potential.safetensors"), str(tmp_path / "a.pt")]
        )
        assert done.exit_code == 0, done.output
        for name in ("potential.safetensors", "potential.pt", "summary.json"):
            (tmp_path / "cut-off" / name).unlink()
        done = CliRunner().invoke(export_app, [str(tmp_path / "cut-off")])
        assert done.exit_code == 0, done.output
        one = load_exported(finished[0] / "potential.pt").module.state_dict()
        for path in (tmp_path / "a.pt", tmp_path / "cut-off" / "potential.pt"):
            other = load_exported(path).module.state_dict()
            # A checkpoint holds weights; last layer and error estimate are fitted at the end of a run.
            later = ("posterior", "readout.network.2.weight", "derivatives")
            names = [n for n in one if path.name == "a.pt" or not n.startswith(later)]
            assert all(torch.equal(one[name], other[name]) for name in names)

    def test_exporting_something_else_is_refused(self, tmp_path):
        done = CliRunner().invoke(export_app, [str(tmp_path)])
        assert done.exit_code == 2
        assert "neither potential.safetensors nor a run" in done.output


class TestInterruption:
    def test_ctrl_c_leaves_a_usable_model_and_resume_gives_the_uninterrupted_result(self, tmp_path):
        many = ["epochs=30", "validate_every=3", "patience=1000"]
        run_quietly(tmp_path, *many, "name=whole")
        process = subprocess.Popen(
            command("quick-test", *TINY, *many, f"output={tmp_path}", "name=cut"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        log = tmp_path / "cut" / "log.csv"
        deadline = time.monotonic() + 120
        while len(read_history(log)) < 4:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)

        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert f"train-potential {tmp_path}/cut --resume" in printed
        summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
        assert summary["train"]["stopped"] == "interrupted"
        assert 4 <= summary["train"]["epochs"] < 30
        assert load_exported(tmp_path / "cut" / "potential.pt").species == [1, 6, 8]
        assert (tmp_path / "cut" / "report.html").is_file()

        done = CliRunner().invoke(app, [str(tmp_path / "cut"), "--resume", "--quiet"])
        assert done.exit_code == 0, done.output
        assert_same_weights(tmp_path / "whole", tmp_path / "cut")
        assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "cut")

    def test_a_signal_in_the_first_epoch_leaves_a_model_too(self, tmp_path):
        process = subprocess.Popen(
            command("quick-test", *TINY, "train=900", "epochs=50", f"output={tmp_path}"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        folder = tmp_path / "quick-test"
        while not (folder / "log.csv").is_file():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert "at the moment of stopping" in printed
        assert "no checkpoint yet, so --resume begins anew" in " ".join(printed.split())
        assert load_exported(folder / "potential.pt").species == [1, 6, 8]
        assert "before the first epoch" in (folder / "report.html").read_text()

    def test_more_epochs_can_be_added(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "longer")
        result = run_quietly(tmp_path, "name=longer", "epochs=6", resume=True)
        assert result.summary["train"]["epochs"] == 6
        assert len(read_history(tmp_path / "longer" / "log.csv")) == 6
        assert (
            yaml.safe_load((tmp_path / "longer" / "config.yaml").read_text())["training"]["epochs"]
            == 6
        )

    def test_goes_on_when_the_weights_it_started_from_are_gone(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "before")
        keys = ("name=next", f"start={tmp_path / 'before'}")
        run_quietly(tmp_path, *keys)
        shutil.rmtree(tmp_path / "before")
        result = run_quietly(tmp_path, *keys, "epochs=6", resume=True)
        assert result.summary["train"]["epochs"] == 6

    def test_checkpoints_know_on_resume_what_they_have_kept(self, tmp_path):
        """Although the interval changes where minutes are over, and although the folder was moved."""
        folders = [RunFolder(tmp_path / name) for name in ("here", "there")]
        before, after = (_checkpoints(folder, True, 7)[0] for folder in folders)
        before.best_model_path = before.kth_best_model_path = str(folders[0].best)
        before.best_k_models = {str(folders[0].best): torch.tensor(0.1)}
        before.best_model_score = before.kth_value = torch.tensor(0.1)
        before._every_n_epochs = 1
        after.load_state_dict(before.state_dict())
        assert before.state_key == after.state_key
        assert after.best_model_path == str(folders[1].best)
        assert after.best_k_models == {str(folders[1].best): torch.tensor(0.1)}
        assert after.best_model_score == after.kth_value == 0.1

    def test_patience_is_that_of_the_settings(self):
        before, after = (_early_stopping(TrainingConfig(patience=30), every) for every in (3, 1))
        after.load_state_dict(before.state_dict())
        assert before.state_key.startswith("EarlyStopping{")
        assert (before.patience, after.patience) == (10, 30)

    def test_no_fewer_epochs_than_there_were(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "fewer")
        (tmp_path / "fewer" / "summary.json").unlink()  # As after a kill.
        before = (tmp_path / "fewer" / "config.yaml").read_text()
        with pytest.raises(ConfigError, match="has had 4 epochs already: epochs=2 is less"):
            run_quietly(tmp_path, "name=fewer", "epochs=2", resume=True)
        assert (tmp_path / "fewer" / "config.yaml").read_text() == before

    def test_a_repeated_command_keeps_the_length_of_the_run(self, tmp_path):
        keys = ["dataset=own.xyz", f"output={tmp_path}", "name=own"]
        begun = load_config(None, [*keys, "minutes=10", "epochs=7"])
        run_folder.create(run_folder.check_new(begun, overwrite=False), begun)
        again = run_folder.with_what_was_decided(load_config(None, keys))
        assert (again.training.minutes, again.training.epochs) == (10, 7)
        longer = run_folder.with_what_was_decided(load_config(None, [*keys, "minutes=20"]))
        assert (longer.training.minutes, longer.training.epochs) == (20, 7)
        epochs = run_folder.with_what_was_decided(load_config(None, [*keys, "epochs=300"]))
        assert (epochs.training.minutes, epochs.training.epochs) == (None, 300)
        edited = TrainConfig(
            **{**begun.model_dump(exclude={"training"}), "training": {"epochs": 300}}
        )
        edited = run_folder.with_what_was_decided(edited)
        assert (edited.training.minutes, edited.training.epochs) == (None, 300)

    def test_a_run_of_given_time_ends_by_then_and_can_be_given_more(self, tmp_path):
        keys = ("name=timed", "minutes=0.06", "epochs=1")
        folder = run_quietly(tmp_path, *keys).folder
        summary = json.loads(folder.summary.read_text())
        rows = read_history(folder.log)
        assert summary["train"]["stopped"] == "complete"
        assert 1 < summary["train"]["epochs"] == len(rows)
        assert rows[-1]["seconds"] < 3.6 + 2 * max(np.diff([0.0] + [r["seconds"] for r in rows]))
        rates = [row["learning_rate"] for row in rows[2:]]
        assert all(a > b for a, b in itertools.pairwise(rates))
        assert rates[-1] < 0.2 * max(rates)
        with pytest.raises(ConfigError, match=r"complete after 0\.06 minutes.*minutes=0\.12"):
            run_quietly(tmp_path, *keys, resume=True)
        run_quietly(tmp_path, "name=timed", "minutes=0.09", "epochs=1", resume=True)
        longer = read_history(folder.log)
        assert len(longer) > len(rows)
        assert [r["epoch"] for r in longer] == list(range(1, len(longer) + 1))
        assert longer[-1]["seconds"] > rows[-1]["seconds"]

    def test_a_run_shorter_than_an_epoch_ends_in_time_and_can_be_given_more(self, tmp_path):
        keys = ("name=short", "train=940", "batch_size=1", "validate_every=7", "minutes=0.03")
        keys = (
            "layers=3",
            "features=64",
            "channels=16",
            "lmax=3",
            "compile=false",
            "warmup_steps=1",
            *keys,
        )
        folder = run_quietly(tmp_path, *keys).folder
        (row,) = read_history(folder.log)
        assert 1 < row["step"] < 940
        assert row["valid_forces_mae_meV_per_A"] > 0
        assert row["learning_rate"] < 1e-4
        summary = json.loads(folder.summary.read_text())
        assert summary["train"]["stopped"] == "complete"
        run_quietly(tmp_path, *keys[:-1], "minutes=0.06", resume=True)
        rows = read_history(folder.log)
        assert [r["epoch"] for r in rows] == list(range(1, len(rows) + 1))
        assert rows[0] == row
        assert rows[-1]["step"] > row["step"]
        assert rows[-1]["seconds"] > 3.0

    def test_early_stopping(self, tmp_path):
        # A learning rate this high makes the validation loss rise.
        overrides = [
            "epochs=60",
            "patience=3",
            "learning_rate=0.5",
            "schedule=constant",
            "ema_decay=0",
        ]
        result = run_quietly(tmp_path, *overrides, "name=early")
        train_summary = result.summary["train"]
        assert train_summary["stopped"] == "early"
        assert train_summary["epochs"] == train_summary["best_epoch"] + 3
        with pytest.raises(ConfigError, match="stopped early"):
            run_quietly(tmp_path, *overrides, "name=early", resume=True)
        # Given more epochs it is as patient again.
        more = run_quietly(tmp_path, *overrides[1:], "epochs=61", "name=early", resume=True)
        assert more.summary["train"]["epochs"] >= train_summary["epochs"] + 3

    def test_helper_processes_end_well_when_a_parallel_run_is_interrupted(
        self, tmp_path, monkeypatch
    ):
        """Lightning kills the first process, which writes the results, when another one fails."""

        def helper(config, **options):
            return RunResult(RunFolder(tmp_path), {}, True, ())

        monkeypatch.setattr("training.run.train", helper)
        assert CliRunner().invoke(app, ["quick-test"]).exit_code == 0
        stopped = CliRunner().invoke(app, ["quick-test", "xtb_frames=10"])
        assert stopped.exit_code == 130
        assert "Stopped while learning from GFN2-xTB" in stopped.output


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["quick-test", "epoch=3"], "unknown key 'epoch'; did you mean 'training.epochs'?"),
            (["rmd17-etanol"], "did you mean 'rmd17-ethanol'?"),
            (["quick-test", "rmd17-ethanol"], "one target at a time"),
            (["epochs=3"], "no data set"),
            (["quick-test", "--resume", "--overwrite"], "exclude each other"),
            (["quick-test", "--resume", "--name", "none"], "no run to resume"),
            (["nothing.extxyz"], "nothing.extxyz: no such file"),
        ],
    )
    def test_are_one_short_message(self, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_no_run_is_not_touched(self, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").write_text("five years")
        with pytest.raises(ConfigError, match="not empty and not a run"):
            run_quietly(tmp_path, "name=precious", overwrite=True)
        assert (tmp_path / "precious" / "thesis.txt").read_text() == "five years"

    def test_a_run_does_not_replace_the_weights_that_it_starts_from(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "old")
        with pytest.raises(ConfigError, match="would be replaced by the run that starts from them"):
            run_quietly(tmp_path, "name=old", f"start={tmp_path / 'old'}", overwrite=True)
        assert (tmp_path / "old" / "potential.safetensors").is_file()

    def test_bad_data_does_not_cost_the_old_run(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "old")
        with pytest.raises(DataError):
            run_quietly(tmp_path, "name=old", "train=5000", overwrite=True)
        assert (tmp_path / "old" / "potential.pt").is_file()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_a_gpu_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match="no CUDA GPU"):
            run_quietly(tmp_path, "accelerator=gpu")

    def test_a_strategy_that_does_not_exist(self, tmp_path):
        with pytest.raises(ConfigError, match=r"hardware\.strategy=telepathy"):
            run_quietly(tmp_path, "strategy=telepathy")

    def test_a_training_that_diverges(self, tmp_path):
        overrides = ["learning_rate=1e12", "warmup_steps=0", "gradient_clip=0", "schedule=constant"]
        with pytest.raises(ConfigError, match=r"diverged in epoch \d.*learning_rate"):
            run_quietly(tmp_path, *overrides)

    def test_other_data_on_resume(self, finished, tmp_path):
        shutil.copytree(finished[0], tmp_path / "moved")
        data = json.loads((tmp_path / "moved" / "data.json").read_text())
        data["sha256"] = "0" * 64
        (tmp_path / "moved" / "data.json").write_text(json.dumps(data))
        with pytest.raises(ConfigError, match="started with other data"):
            run_quietly(tmp_path, "name=moved", "epochs=6", resume=True)


def test_help_lists_every_key_and_preset():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for key in config_keys():
        assert re.search(rf"^ *{re.escape(key.path)}  \(", result.output, re.MULTILINE), key.path
    for option in (
        "--resume",
        "--overwrite",
        "--name",
        "--output",
        "--list-presets",
        "rmd17-ethanol",
    ):
        assert option in result.output


def molecule_file(path: Path, count: int = 30) -> Path:
    """Argon trimers with Lennard-Jones labels."""
    random = np.random.default_rng(1)
    frames = []
    for _ in range(count):
        start = np.array([[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]], dtype=float)
        atoms = Atoms("Ar3", start + random.normal(scale=0.15, size=(3, 3)))
        frames.append(labelled(atoms))
    ase.io.write(path, frames)
    return path


def labelled(atoms: Atoms) -> Atoms:
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def test_own_molecules(tmp_path):
    path = molecule_file(tmp_path / "argon.extxyz")
    overrides = ["train=0.7", "valid=4", "test=5", "precision=float64", "model=egnn", "loss=l1"]
    with pytest.raises(DataError, match="allow_unusual"):  # Argon's forces are that weak.
        run_quietly(tmp_path, *overrides, target=str(path))
    overrides += ["schedule=plateau", "allow_unusual=true"]
    result = run_quietly(tmp_path, *overrides, target=str(path))
    assert "forces" in result.warnings[0]
    assert result.folder.path == tmp_path / "argon"
    assert result.summary["data"]["frames"] == {"train": 21, "valid": 4, "test": 5}
    exported = load_exported(result.folder.exported)
    assert exported.species == [18]
    assert exported.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def strained_copper(path: Path, count: int) -> Path:
    """Cells of four atoms with energies, forces and, but for the first, stresses of EMT; one cluster."""
    random = np.random.default_rng(0)
    frames = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True)
        strain = 0.03 * random.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.rattle(0.08, rng=random)
        atoms.pbc = k != 1
        atoms.calc = EMT()
        names = ("energy", "forces", "stress") if k > 1 else ("energy", "forces")
        results = {name: atoms.calc.get_property(name, atoms) for name in names}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def test_stresses_are_learned_where_there_are_any(tmp_path):
    path = strained_copper(tmp_path / "copper.extxyz", 60)
    settings = ["train=40", "valid=10", "test=10", "epochs=30", "batch_size=4", "start=scratch"]
    settings += ["features=16", "channels=4", "validate_every=10"]
    errors = {}
    for weight in (0, 1):
        extra = [f"stress_weight={weight}", f"name=weight-{weight}"]
        result = run_quietly(tmp_path, *settings, *extra, target=str(path))
        errors[weight] = result.summary["test"]["stress_mae_meV_per_A3"]
        predictions = Predictions.load(result.folder.predictions)
        assert predictions.errors()["stress_mae_meV_per_A3"] == pytest.approx(errors[weight])
        assert "stress MAE, test" in result.folder.report.read_text(encoding="utf-8")
    assert errors[1] < 0.6 * errors[0]
    assert read_history(result.folder.log)[-1]["valid_stress_mae_meV_per_A3"] < 30.0


def test_own_crystals_with_another_model(tmp_path):
    random = np.random.default_rng(2)
    frames = []
    for _ in range(16):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
        atoms.rattle(stdev=0.1, rng=random)
        frames.append(labelled(atoms))
    path = tmp_path / "crystal.extxyz"
    ase.io.write(path, frames)
    overrides = ["train=10", "valid=2", "test=3", "model=hegnn-published", "loss=huber"]
    result = run_quietly(tmp_path, *overrides, target=str(path))
    frame = load_split(path, train=10, valid=2, test=3).test[0]
    exported = load_exported(result.folder.exported)
    graph = build_graph(
        frame.positions, frame.atomic_numbers, exported.cutoff, frame.cell, frame.pbc
    )
    assert graph.edge_index.shape[1] > 4 * 3  # More neighbours than atoms: images count.
    found = exported.module(*graph.tensors())["energy"].item()
    predictions = Predictions.load(result.folder.predictions)
    assert predictions.predicted_energy[0] == pytest.approx(found, abs=1e-4)


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path):
    overrides = ["train=20", "epochs=2", f"output={tmp_path}"]
    run_quietly(tmp_path, *overrides, "batch_size=10", "name=one")
    done = subprocess.run(
        command("quick-test", *TINY, *overrides, "devices=2", "name=two"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (rows_without_time(tmp_path / name) for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_a_job_of_slurm_with_tasks_for_another_program(tmp_path, monkeypatch):
    for name, value in (("NTASKS", "8"), ("JOB_NAME", "train"), ("JOB_ID", "1"), ("PROCID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run_quietly(tmp_path, "epochs=1").summary["train"]["epochs"] == 1


def test_copies_that_start_at_once_do_not_share_a_folder(tmp_path):
    config = load_config("quick-test", [f"output={tmp_path}", "name=copies"])
    folders = [run_folder.check_new(config, overwrite=False) for _ in range(2)]
    run_folder.create(folders[0], config)
    with pytest.raises(ConfigError, match="another process has just begun a run"):
        run_folder.create(folders[1], config)


def test_without_validation_and_without_test_frames(tmp_path):
    overrides = ["valid=0", "test=0", "ema_decay=0", "epochs=2"]
    result = run_quietly(tmp_path, *overrides)
    assert result.summary["test"] == {}
    assert result.summary["train"]["best_epoch"] == 2
    assert not result.folder.predictions.exists()
    assert result.folder.report.is_file()


def test_training_lowers_the_force_error(tmp_path):
    overrides = ["train=100", "epochs=15", "lmax=2", "channels=4", "features=16", "layers=2"]
    result = run_quietly(tmp_path, *overrides)
    rows = read_history(result.folder.log)
    assert rows[-1]["valid_forces_mae_meV_per_A"] < 0.35 * rows[0]["train_forces_mae_meV_per_A"]


def test_training_starts_from_the_pretrained_weights_and_from_those_of_a_run(tmp_path):
    keys = ["dataset=rmd17:ethanol", "train=20", "valid=6", "test=8", "threads=1", "compile=false"]

    def force_error(*more: str) -> float:
        settings = load_config(None, [*keys, "epochs=3", f"output={tmp_path}", *more])
        result = train(settings, show_progress=False)
        assert load_exported(result.folder.exported).species == [1, 6, 8]
        return result.summary["test"]["forces_mae_meV_per_A"]

    scratch = force_error("name=scratch", "start=scratch")
    pretrained = force_error("name=pretrained")
    assert pretrained < 0.5 * scratch
    again = force_error("name=again", f"start={tmp_path / 'pretrained'}", "learning_rate=1e-5")
    # What was learned is kept; the last layer is fitted once more.
    assert 0.5 * pretrained < again < 1.02 * pretrained


def test_a_run_from_weights_of_another_model_takes_it_and_is_resumed(tmp_path):
    run_quietly(tmp_path, "train=20", "epochs=1", "lmax=2", "channels=4", "features=16", "layers=2")
    before = next(tmp_path.glob("*/config.yaml")).parent
    keys = ["dataset=rmd17:ethanol", "train=20", "valid=6", "test=0", "threads=1", "compile=false"]
    keys += [f"output={tmp_path}", "name=next"]
    # The command once more continues the run, with what it started from said or not.
    for epochs, start in ((1, f"start={before}"), (2, f"start={before}"), (3, "start=auto")):
        settings = load_config(None, [*keys, start, f"epochs={epochs}"])
        result = train(settings, resume=epochs > 1, show_progress=False)
    assert result.summary["train"]["epochs"] == 3
    config = result.folder.read_config()
    assert (config.model.features, config.start) == (16, str(before))


def test_a_run_without_any_epoch_cannot_be_exported(tmp_path):
    from training.export_cli import load_source

    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="finished epoch"):
        load_source(tmp_path)
