"""Learning a molecule from GFN2-xTB before the run's own frames."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from forcefield.errors import ConfigError, DataError
from training import load_config, run_folder, train, xtb, xtb_labels
from training.datasets import Frame
from training.prepare import prepare
from training.pretraining.labels import heat
from training.pretraining.storage import Structure
from training.run import RunResult
from training.run_folder import RunFolder
from training.start import Start

FRAMES = 40
TINY = [
    *("train=20", "valid=6", "test=8", "epochs=4", "batch_size=5", "start=scratch"),
    *("layers=1", "features=8", "channels=2", "lmax=2", "threads=1", "accelerator=cpu"),
    "compile=false",
]


def config(*overrides: str):
    return load_config("quick-test", [*TINY, *overrides])


def run(folder, *overrides: str, **options: bool) -> RunResult:
    return train(config(f"output={folder}", *overrides), show_progress=False, **options)


def frame_of(atoms: Atoms) -> Frame:
    pbc = np.asarray(atoms.pbc)
    return Frame(atoms.numbers, atoms.positions, 0.0, np.zeros((len(atoms), 3)), pbc=pbc)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> RunResult:
    """A run that was stopped when its frames were labelled, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    keys = (f"xtb_frames={FRAMES}", "name=with")

    def stopped(*_arguments: object, **_options: object) -> RunResult:
        return RunResult(RunFolder(folder), {}, True, ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.run.train", stopped)
        result = run(folder, *keys)
    assert result.interrupted
    assert result.summary == {}
    labels = result.folder.path / "xtb.extxyz"
    written = labels.stat().st_mtime_ns
    resumed = run(folder, *keys, resume=True)
    assert labels.stat().st_mtime_ns == written
    assert not resumed.interrupted
    return resumed


def test_labels_are_those_of_gfn2(learned):
    from tblite.interface import Calculator

    labelled = ase.io.read(learned.folder.path / "xtb.extxyz", ":")
    assert len(labelled) == FRAMES
    atoms = labelled[-1]
    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / units.Bohr)
    calculator.set("verbosity", 0)
    energy = float(calculator.singlepoint().get("energy")) * units.Hartree
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-3)
    assert np.abs(atoms.get_forces().sum(axis=0)).max() < 1e-3


def test_the_run_starts_from_what_was_learned(learned, tmp_path):
    summary = learned.summary
    assert summary["xtb"]["frames"] == FRAMES
    assert summary["data"]["frames"]["train"] == 20
    assert summary["data"]["start"].endswith(f"trained on {FRAMES} frames of GFN2-xTB")
    first = xtb.first_folder(learned.folder).read_summary()
    assert first["train"]["epochs"] == xtb.EPOCHS
    assert first["data"]["frames"] == {"train": 36, "valid": 4, "test": 0}
    without = run(tmp_path, "name=without", "learning_rate=2.5e-4").summary
    assert without["xtb"] == {}
    errors = [s["test"]["forces_mae_meV_per_A"] for s in (summary, without)]
    assert errors[0] < 0.9 * errors[1]
    # The second run counts energies from its own level of theory: PBE has some 4200 eV for ethanol.
    assert summary["test"]["energy_mae_meV"] < 2000.0


def test_who_has_few_frames_and_no_weights_is_told():
    few, start = [frame_of(molecule("CH3OH"))] * 20, Start(None, "random")
    assert xtb.would_help(config(), start, few)
    assert not xtb.would_help(config("xtb_frames=10"), start, few)
    assert not xtb.would_help(config(), Start(Path("weights"), "trained"), few)
    assert not xtb.would_help(config(), start, few * 10)
    assert not xtb.would_help(config(), start, [frame_of(bulk("Si", cubic=True))])


def test_minutes_are_shared():
    settings = config("minutes=10", "xtb_frames=100")
    labels = xtb_labels.Labels(Path("x"), 100, 1.0)
    first = xtb.first_run(settings, labels, RunFolder(labels.path))
    assert first.training.minutes == pytest.approx(7.0)
    second = xtb.second_run(settings, {"training_seconds": 6.5 * 60.0})
    assert second.training.minutes == pytest.approx(3.5)
    # Given more minutes after the first run: all of them are for the run's own frames.
    longer = xtb.second_run(config("minutes=20", "xtb_frames=100"), {"training_seconds": 420.0})
    assert longer.training.minutes == pytest.approx(13.0)
    late = xtb.second_run(settings, {"training_seconds": 599.0})
    assert late.training.minutes == pytest.approx(1.0)
    assert first.xtb_frames == 0


def test_a_first_run_in_a_folder_that_was_moved_can_be_resumed(tmp_path):
    settings = config("minutes=10", "xtb_frames=100")
    folders = [RunFolder(tmp_path / name) for name in ("here", "there")]
    labels = [xtb_labels.Labels(folder.path / "xtb.extxyz", 100, 1.0) for folder in folders]
    first = xtb.first_run(settings, labels[0], folders[0])
    run_folder.create(xtb.first_folder(folders[0]), first)
    folders[0].path.rename(folders[1].path)
    moved = xtb.first_run(settings, labels[1], folders[1])
    xtb.follow(xtb.first_folder(folders[1]), moved)
    assert run_folder.reopen(moved).path == folders[1].path / "xtb"


def labelled(name: str, frames: int) -> list[Structure]:
    atoms = molecule(name)
    return [Structure(atoms.numbers, atoms.positions, name, float(k)) for k in range(frames)]


def test_every_start_has_its_share_of_the_labels():
    structures = [*labelled("CH3OH", 3), *labelled("CH3Cl", 2), *labelled("H2O", 3)]
    chosen = xtb_labels._spread(structures, 5)
    assert [(s.molecule, s.energy) for s in chosen] == [
        *(("CH3OH", 0.0), ("CH3Cl", 0.0), ("H2O", 0.0), ("CH3OH", 1.0), ("CH3Cl", 1.0)),
    ]


def test_an_element_with_too_few_labels_is_named():
    frames = [frame_of(molecule(name)) for name in ("CH3OH", "CH3Cl")]
    many = labelled("CH3OH", 30)
    xtb_labels._check_elements(frames, [*many, *labelled("CH3Cl", 4)], held_out=3)
    with pytest.raises(DataError, match=r"only 3 of 33 .* hold Cl"):
        xtb_labels._check_elements(frames, [*many, *labelled("CH3Cl", 3)], held_out=3)


def test_weights_that_were_trained_on_gfn2_are_trained_weights():
    assert prepare(config("xtb_frames=100")).config.training.learning_rate == 2.5e-4
    assert prepare(config()).config.training.learning_rate == 5e-3


def test_what_gfn2_cannot_label_is_refused():
    settings = config("xtb_frames=100")
    xtb_labels.check(settings, [frame_of(molecule("CH3OH"))])
    with pytest.raises(DataError, match=r"frame 0: .*this frame is periodic"):
        xtb_labels.check(settings, [frame_of(bulk("Si", cubic=True))])
    with pytest.raises(DataError, match="odd number of electrons with a charge of 0"):
        xtb_labels.check(settings, [frame_of(molecule("CH3"))])
    xtb_labels.check(config("xtb_frames=100", "xtb_charge=1"), [frame_of(molecule("CH3"))])
    with pytest.raises(DataError, match="after radon"):
        xtb_labels.check(settings, [frame_of(Atoms("UF6", positions=np.eye(7, 3)))])
    with pytest.raises(DataError, match="no electrons are left"):
        xtb_labels.check(config("xtb_frames=100", "xtb_charge=2"), [frame_of(molecule("H2"))])
    with pytest.raises(ConfigError, match="devices=1"):
        xtb_labels.check(config("xtb_frames=100", "devices=2"), [])


def test_the_charge_reaches_the_labels():
    methyl = molecule("CH3")
    start = Structure(methyl.numbers, methyl.positions, "methyl")
    cation, anion = (heat(start, 1, 1, 0, charge)[0] for charge in (1, -1))
    assert cation.energy - anion.energy > 5.0
