"""Steps that are recorded train as those that are not.

Without a GPU what would be recorded is run again instead, and not compiled.
"""

import copy
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from forcefield import build_potential
from forcefield.recording import record
from training import load_config, train
from training.averaging import RunningAverage
from training.clock import Clock
from training.compiled import CompilationError
from training.config import TrainConfig, TrainingConfig
from training.datasets import Frame, load_split
from training.fit import quiet_lightning, whether_to_compile, worth_compiling
from training.graphs import GraphDataset
from training.history import read_history
from training.loaders import EpochSampler, training_loader
from training.module import ForceFieldModule
from training.packed import PackedFrames, PackedLoader
from training.recorded import RecordedStep, clipped

FRAMES, BATCH = 12, 4


@pytest.fixture(scope="module")
def frames():
    """Molecules of two sizes: every other one has lost an atom."""
    whole = load_split("rmd17:ethanol", train=FRAMES, valid=0, test=0).train
    mixed = [without_last_atom(frame) if k % 2 else frame for k, frame in enumerate(whole)]
    return GraphDataset(mixed, cutoff=4.0)


def without_last_atom(frame: Frame) -> Frame:
    return replace(
        frame,
        atomic_numbers=frame.atomic_numbers[:-1],
        positions=frame.positions[:-1],
        forces=frame.forces[:-1],
        energy=frame.energy + 15.0,
    )


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def again(action):
    return action


def make_module(
    optimizer="muon", compiled="no", record=None, dtype=torch.float64
) -> ForceFieldModule:
    torch.manual_seed(0)
    architecture = {"name": "hegnn", "cutoff": 4.0, "layers": 1, "features": 8, "channels": 4}
    references = {1: -13.6, 6: -1030.5, 8: -2043.25}
    potential = build_potential(architecture, [1, 6, 8], reference_energies=references, dtype=dtype)
    config = TrainingConfig(optimizer=optimizer, learning_rate=5e-3, warmup_steps=2)
    return ForceFieldModule(potential, config, 40, Clock(None), 1, compiled, record)


def run(module, dataset, packed: bool, folder, epochs: int, resume=None) -> pl.Trainer:
    sampler = EpochSampler(len(dataset), seed=0)
    if packed:
        loader = PackedLoader(PackedFrames(dataset, BATCH, "cpu"), sampler)
    else:
        loader = training_loader(dataset, BATCH, sampler)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=module.config.gradient_clip,
        callbacks=[RunningAverage(0.9), ModelCheckpoint(folder, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    with quiet_lightning():
        trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return trainer


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module, rtol: float) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        if name.endswith("readout.network.2.bias"):
            continue  # It has no effect, and its gradient is rounding.
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * scale + 1e-8, msg=name)


def assert_trains_as_the_ordinary_path(dataset, optimizer, folder) -> None:
    ordinary = make_module(optimizer)
    recorded = make_module(optimizer, "must", again)
    before = copy.deepcopy(recorded.potential)
    steps = [
        run(module, dataset, packed, folder, epochs=3).global_step
        for module, packed in ((ordinary, False), (recorded, True))
    ]
    assert steps == [3 * FRAMES // BATCH] * 2
    assert_same_weights(recorded.potential, ordinary.potential, 1e-5)
    torch.testing.assert_close(recorded.train_sums, ordinary.train_sums, rtol=1e-4, atol=1e-4)
    weights = zip(recorded.potential.parameters(), before.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_gives_the_weights_of_the_ordinary_path(frames, uncompiled, optimizer, tmp_path):
    assert_trains_as_the_ordinary_path(frames, optimizer, tmp_path)


@pytest.mark.slow
def test_so_does_training_with_the_compiled_step(frames, tmp_path):
    assert_trains_as_the_ordinary_path(frames, "muon", tmp_path)


@pytest.mark.parametrize(
    ("settings", "worth"),
    [
        ({"epochs": 100}, False),
        ({"epochs": 3000}, True),
        ({"minutes": 1}, False),
        ({"minutes": 5}, True),
    ],
)
def test_a_gpu_records_long_runs_only(frames, monkeypatch, settings, worth):
    monkeypatch.setattr("shutil.which", lambda name: name == "gcc")
    assert worth_compiling(frames, TrainingConfig(**settings), on_a_cpu=False) == worth


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_without_a_compiler_training_says_that_it_takes_longer(frames, monkeypatch, accelerator):
    monkeypatch.setattr("shutil.which", lambda name: None)
    config = TrainConfig(dataset={"source": "my.extxyz"}, training={"minutes": 5})
    with pytest.warns(UserWarning, match="no C.* compiler here"):
        assert whether_to_compile(config, accelerator, frames) == "no"
    short = TrainConfig(dataset={"source": "my.extxyz"}, training={"minutes": 1})
    assert whether_to_compile(short, accelerator, frames) == "no"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_is_the_uninterrupted_one(frames, uncompiled, optimizer, tmp_path):
    whole, cut, resumed = (make_module(optimizer, "must", again) for _ in range(3))
    run(whole, frames, True, tmp_path / "whole", epochs=3)
    run(cut, frames, True, tmp_path / "cut", epochs=1)
    last = tmp_path / "cut" / "last.ckpt"
    trainer = run(resumed, frames, True, tmp_path / "resumed", epochs=3, resume=last)
    assert trainer.global_step == 3 * FRAMES // BATCH
    assert isinstance(trainer.optimizers[0].param_groups[0]["lr"], float)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_recording_runs_leaves_no_trace(frames, uncompiled, tmp_path):
    def after_warming_up(action):
        for _ in range(3):
            action()
        return action

    plain, warmed = (make_module("muon", "must", how) for how in (again, after_warming_up))
    for module in (plain, warmed):
        run(module, frames, True, tmp_path, epochs=2)
    assert torch.equal(plain.train_sums, warmed.train_sums)
    for a, b in zip(plain.parameters(), warmed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_where_nothing_can_be_recorded_training_goes_on_or_says_why(frames, uncompiled, tmp_path):
    def impossible(action):
        action()
        raise RuntimeError("operation not permitted when stream is capturing")

    ordinary, tried = make_module(), make_module("muon", "try", impossible)
    run(ordinary, frames, True, tmp_path, epochs=2)
    with pytest.warns(UserWarning, match="could not be recorded: operation not.*goes on without"):
        run(tried, frames, True, tmp_path, epochs=2)
    for a, b in zip(ordinary.parameters(), tried.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CompilationError, match=r"hardware\.compile=false does without"):
        run(make_module("muon", "must", impossible), frames, True, tmp_path, epochs=2)


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_gradients_are_clipped_as_torch_clips_them(largest):
    generator = torch.manual_seed(0)
    gradients = [torch.randn(size, generator=generator) for size in ((3, 4), (5,))]
    weights = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(weights, largest)
    for found, weight in zip(clipped(gradients, largest), weights, strict=True):
        torch.testing.assert_close(found, weight.grad)


@pytest.fixture
def compile_with_muon(request, optimizer):
    """One compilation is enough: it does not depend on the optimizer, and takes half a minute."""
    if optimizer != "muon":
        request.getfixturevalue("uncompiled")


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_recorded_step_on_a_gpu_is_the_eager_one(frames, optimizer, compile_with_muon):
    modules = [make_module(optimizer).to("cuda") for _ in range(2)]
    optimizers = [module.configure_optimizers() for module in modules]
    loader = PackedLoader(PackedFrames(frames, BATCH, "cuda"), EpochSampler(FRAMES, 0))
    batches = [batch for _ in range(7) for batch in loader][:20]
    eager, recorded = modules
    clip = 0.5
    for module in modules:
        module.train_sums = module.train_sums.to("cuda")
    step = RecordedStep(
        recorded.potential,
        recorded.losses,
        optimizers[1],
        clip,
        batches[0],
        recorded.train_sums,
        record,
    )
    assert_same_weights(recorded.potential, eager.potential, 0.0)
    for k, batch in enumerate(batches):
        for group in (*optimizers[0].param_groups, *optimizers[1].param_groups):
            group["lr"] = 1e-3 * (1 + k % 5)
        optimizers[0].zero_grad()
        loss, sums = eager.evaluate(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eager.potential.parameters(), clip)
        optimizers[0].step()
        eager.train_sums += sums
        step(batch)
    assert_same_weights(recorded.potential, eager.potential, 1e-4)
    torch.testing.assert_close(recorded.train_sums, eager.train_sums, rtol=1e-4, atol=1e-4)


SMALL = [
    *("dataset=rmd17:ethanol", "train=22", "valid=6", "test=4", "batch_size=5", "validate_every=2"),
    *("start=scratch", "layers=1", "features=16", "channels=4", "lmax=2", "accelerator=gpu"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_on_a_gpu_learns_and_is_resumed(tmp_path, optimizer, compile_with_muon):
    keys = [*SMALL, "compile=true", f"optimizer={optimizer}", "loss=mse"]
    keys += [f"output={tmp_path}", "name=run"]
    folder = train(load_config(None, [*keys, "epochs=20"]), show_progress=False).folder
    result = train(load_config(None, [*keys, "epochs=30"]), resume=True, show_progress=False)
    rows = read_history(folder.log)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert rows[-1]["step"] == 30 * 5 == result.summary["train"]["steps"]
    assert rows[19]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert rows[-1]["train_loss"] < 1.2 * rows[19]["train_loss"]


@pytest.mark.gpu
def test_a_gpu_goes_on_where_recording_fails(frames, uncompiled):
    module = make_module().to("cuda")
    module.train_sums = module.train_sums.to("cuda")
    weights = [p.detach().clone() for p in module.parameters()]
    batch = next(PackedFrames(frames, BATCH, "cuda").batches(range(FRAMES)))
    optimizer = module.configure_optimizers()

    def reading(action):
        return record(lambda: (action(), module.train_sums.tolist()))

    with pytest.raises(CompilationError, match="could not be recorded"):
        RecordedStep(
            module.potential, module.losses, optimizer, 1.0, batch, module.train_sums, reading
        )
    assert not module.train_sums.any()
    for found, expected in zip(module.parameters(), weights, strict=True):
        assert torch.equal(found, expected)
    module.evaluate(batch)[0].backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_mixed_frames_are_trained_on_a_gpu(tmp_path, compiled):
    import ase.io
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    random = np.random.default_rng(0)
    images = []
    for k in range(12):
        atoms = Atoms("OHH" if k % 2 else "HH", random.normal(size=(2 + k % 2, 3)) * 0.7)
        forces = random.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-30.0 * len(atoms), forces=forces)
        images.append(atoms)
    ase.io.write(tmp_path / "mixed.extxyz", images)
    keys = [f"dataset={tmp_path}/mixed.extxyz", "train=8", "valid=2", "test=2", "epochs=2"]
    keys += ["allow_unusual=true", f"compile={compiled}"]
    result = train(
        load_config(None, [*keys, *SMALL[5:], f"output={tmp_path}", "name=run"]),
        show_progress=False,
    )
    assert result.summary["train"]["epochs"] == 2
