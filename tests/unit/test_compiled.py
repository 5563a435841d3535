"""The step that is compiled gives the loss and the gradients of the one that is not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forcefield import build_potential
from training.clock import Clock
from training.compiled import CompilationError, CompiledStep
from training.config import TrainingConfig
from training.datasets import load_split
from training.graphs import GraphDataset, join
from training.module import ForceFieldModule


@pytest.fixture(scope="module")
def items():
    split = load_split("rmd17:ethanol", train=12, valid=0, test=0)
    return GraphDataset(split.train, cutoff=4.0).items


def make_module(name: str, loss: str = "mse", layers: int = 1) -> ForceFieldModule:
    torch.manual_seed(0)
    architecture = {"name": name, "cutoff": 4.0, "layers": layers, "features": 8}
    architecture |= {"channels": 4} if name == "hegnn" else {}
    references = {1: -13.6, 6: -1030.5, 8: -2043.25}
    potential = build_potential(architecture, [1, 6, 8], reference_energies=references)
    return ForceFieldModule(potential, TrainingConfig(loss=loss), 100, Clock(None))


def gradients(module: ForceFieldModule, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    (2.0 * loss).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_step(module: ForceFieldModule, step: CompiledStep, batch) -> None:
    loss, sums = step(batch)
    expected_loss, expected_sums = module.evaluate(batch)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-7)
    found, expected = gradients(module, loss), gradients(module, expected_loss)
    # The last bias has no effect: its gradient is what rounding leaves of float32 terms that cancel.
    assert float(found.pop("potential.readout.network.2.bias").abs().max()) < 1e-5
    del expected["potential.readout.network.2.bias"]
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * scale + 1e-6)


@pytest.mark.parametrize(("name", "loss", "layers"), [("hegnn", "mse", 2), ("egnn", "l1", 1)])
def test_unrolled_step_serves_batches_of_any_size(items, name, loss, layers):
    module = make_module(name, loss, layers)
    step = CompiledStep(module.potential, module.losses, backend="eager")
    for batch in (join(items[:3]), join(items[3:8]), join(items[8:10])):
        assert_same_step(module, step, batch)


def crystals_and_molecules():
    """Strained cells with a stress, and molecules without."""
    split = load_split("rmd17:ethanol", train=4, valid=0, test=0)
    frames = []
    for k, frame in enumerate(split.train):
        cell = np.diag([6.5, 6.8, 7.1]) + 0.1 * k
        stress = np.full((3, 3), 1e-3 * (k + 1))
        pbc = np.ones(3, dtype=bool)
        frames += [frame, replace(frame, cell=cell, pbc=pbc, stress=stress)]
    return GraphDataset(frames, cutoff=4.0)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_unrolled_step_learns_stresses(loss):
    dataset = crystals_and_molecules()
    module = make_module("hegnn", loss)
    module.with_stress = True
    step = CompiledStep(module.potential, module.losses, backend="eager", with_stress=True)
    for items in (dataset.items[:3], dataset.items[1:8]):
        assert_same_step(module, step, join(items))
    without = module.config.model_copy(update={"stress_weight": 0.0})
    loss_with = module.evaluate(join(dataset.items))[0].item()
    module.config = without
    assert module.evaluate(join(dataset.items))[0].item() < loss_with
    # Stresses of validation frames alone are counted, and choose nothing.
    module.config = module.config.model_copy(update={"stress_weight": 1.0})
    module.with_stress = False
    loss, sums = module.evaluate(join(dataset.items))
    assert loss.item() < loss_with
    module.with_stress = True
    torch.testing.assert_close(sums[:-1], module.evaluate(join(dataset.items))[1][:-1])


def test_the_step_sees_changed_weights(items):
    module = make_module("hegnn")
    step = CompiledStep(module.potential, module.losses, backend="eager")
    before = step(join(items[:3]))[0].item()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    batch = join(items[:3])
    assert float(step(batch)[0]) != pytest.approx(before, rel=1e-3)
    assert_same_step(module, step, batch)


@torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
def test_without_a_compiler_training_goes_on_or_says_why(items):
    module = make_module("egnn")
    module.compiled = "try"
    module.on_fit_start()
    batch = join(items[:3])
    with pytest.warns(UserWarning, match="could not be compiled.*goes on without"):
        loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(module.evaluate(batch)[0].item())
    module.compiled = "must"
    module.on_fit_start()
    with pytest.raises(CompilationError, match=r"hardware\.compile=false does without"):
        module.training_step(batch, 0)


@pytest.mark.slow
def test_compiled_step_and_what_an_interrupted_compilation_leaves(items, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = make_module("hegnn", layers=2)
    step = CompiledStep(module.potential, module.losses)
    for batch in (join(items[:3]), join(items[3:8])):
        assert_same_step(module, step, batch)
    library = next(path for path in tmp_path.rglob("*.main.so") if path.is_file())
    # In this process the library is loaded; one that starts anew meets half a file.
    program = (
        "from tests.unit.test_compiled import *\n"
        "split = load_split('rmd17:ethanol', train=12, valid=0, test=0)\n"
        "items = GraphDataset(split.train, cutoff=4.0).items\n"
        "module = make_module('hegnn', layers=2)\n"
        "step = CompiledStep(module.potential, module.losses)\n"
        "assert_same_step(module, step, join(items[:3]))\n"
    )
    library.write_bytes(b"")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert library.stat().st_size > 0
