"""The kernels for small systems, against the network as torch runs it in double precision.

Without a GPU they run in Triton's interpreter, which has to be chosen before Triton is imported: in a
process of its own.
"""

import copy
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from forcefield import Potential, build_graph, build_potential
from forcefield.compiled import CompiledModule
from forcefield.errors import CompilationError
from forcefield.export import ExportedPotential, script
from forcefield.fused import small_enough, supports
from forcefield.graph import AtomicGraph, collate

SPECIES = [1, 6, 8]


def make(lmax: int = 3, features: int = 16, layers: int = 2, cutoff: float = 4.0) -> Potential:
    torch.manual_seed(0)
    architecture = {"name": "hegnn", "cutoff": cutoff, "layers": layers, "features": features}
    potential = build_potential(
        architecture | {"channels": 16, "lmax": lmax},
        SPECIES,
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1030.5, 8: -2043.25},
        avg_neighbors=8.0,
    )
    return potential.eval().requires_grad_(False)


def molecule(atoms: int, size: float, reach: float = 4.0, seed: int = 0) -> AtomicGraph:
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0.0, size, (atoms, 3))
    return build_graph(positions, rng.choice(SPECIES, atoms), reach)


def crystal(size: float) -> AtomicGraph:
    """With a cell smaller than the cutoff, so that atoms see their own images."""
    cell = size * np.array([[1.0, 0.0, 0.0], [0.2, 1.1, 0.0], [-0.1, 0.3, 1.2]])
    positions = np.random.default_rng(1).uniform(0.0, 1.0, (3, 3)) @ cell
    return build_graph(positions, [6, 8, 1], 4.0, cell, True)


def with_a_lone_atom() -> AtomicGraph:
    graph = molecule(4, 2.5)
    positions = torch.cat([graph.positions, torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64)])
    numbers = torch.cat([graph.atomic_numbers, torch.tensor([8])])
    return build_graph(positions.numpy(), numbers.numpy(), 100.0)


CASES = {
    "molecule": lambda: (make(), [molecule(6, 3.0)]),
    "lmax-1": lambda: (make(lmax=1), [molecule(5, 3.0)]),
    "lmax-2": lambda: (make(lmax=2, features=32), [molecule(5, 3.0)]),
    "lmax-4": lambda: (make(lmax=4), [molecule(5, 3.0)]),
    "batch": lambda: (make(lmax=2), [molecule(4, 2.5), molecule(5, 3.0, seed=1)]),
    "pairs-beyond-the-cutoff": lambda: (make(lmax=2), [molecule(7, 7.0, reach=20.0)]),
    "crystal": lambda: (make(lmax=2), [crystal(3.2)]),
    "lone-atom": lambda: (make(lmax=2), [with_a_lone_atom()]),
    "more-than-a-tile": lambda: (make(lmax=1, layers=1), [molecule(19, 3.0)]),
}


def compare(potential: Potential, graph: AtomicGraph, step, tolerance: float = 1e-5):
    """That a step gives what the potential does in double precision; what it gives."""
    expected = copy.deepcopy(potential).double()(*graph.tensors(), True)
    energy, energies, forces, virial = step(*graph.tensors())
    assert energy.dtype == energies.dtype == torch.float64
    assert forces.dtype == graph.positions.dtype
    scale = float(expected["forces"].abs().max())
    assert float((energies - expected["energies"]).abs().max()) < tolerance * (1.0 + scale)
    torch.testing.assert_close(energy, expected["energy"], rtol=1e-7, atol=1e-4)
    assert float((forces - expected["forces"]).abs().max()) < tolerance * scale
    volume = torch.linalg.det(graph.cell).abs().clamp(min=1e-30).view(-1, 1, 1)
    found = virial / volume
    scale = float((expected["stress"] * volume).abs().max())
    assert float(((found - expected["stress"]) * volume).abs().max()) < tolerance * scale
    return energy, energies, forces, virial


def run_case(name: str) -> None:
    from forcefield.fused import FusedPotential

    potential, graphs = CASES[name]()
    graph = collate(graphs)
    step = FusedPotential(potential)
    found = compare(potential, graph, step)
    if name == "molecule":
        again = step(*graph.tensors())
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        forces = step(*graph.to("cpu", torch.float32).tensors())[2]
        assert forces.dtype == torch.float32
        torch.testing.assert_close(forces.double(), found[2], rtol=0, atol=1e-4)
        broken = graph.positions.clone()
        broken[0, 0] = torch.nan
        assert step(broken, *graph.tensors()[1:])[0].isnan().all()
    if name == "lone-atom":
        assert float(found[1][-1]) == -2043.25
        assert not found[2][-1].any()


def run_cases() -> None:
    """Say what went wrong, case by case."""
    problems = {}
    for name in CASES:
        try:
            run_case(name)
        except Exception:
            problems[name] = traceback.format_exc()
    print(json.dumps(problems))


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.test_fused import run_cases; run_cases()"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    if any("only 0-dimensional arrays can be converted" in text for text in found.values()):
        pytest.skip("this Triton's interpreter does not work with this NumPy")
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_give_what_the_network_does(problems, name):
    assert name not in problems, problems[name]


def test_what_the_kernels_are_for():
    def exported(dtype: str = "float32", **changes: object) -> ExportedPotential:
        architecture = {"name": "hegnn", "features": 64, "channels": 16, "lmax": 3, "radial": 8}
        header = {"architecture": architecture | changes, "dtype": dtype}
        return ExportedPotential(None, header)

    pytest.importorskip("triton")
    assert supports(exported())
    others = {"name": "egnn"}, {"features": 48}, {"channels": 4}, {"lmax": 5}, {"dtype": "float64"}
    assert not any(supports(exported(**changes)) for changes in others)
    assert small_enough(21, 210)
    assert not small_enough(1000, 10)
    assert not small_enough(100, 5000)


def test_small_systems_run_in_the_kernels_and_are_compared():
    potential = make(lmax=1, layers=1)
    calls = []

    def step(*inputs):
        calls.append(len(inputs[0]))
        with torch.enable_grad():
            found = potential(*inputs)
        return found["energy"], found["energies"], found["forces"], torch.zeros(1, 3, 3)

    def wrong(*inputs):
        energy, energies, forces, virial = step(*inputs)
        return energy, energies, 1.1 * forces, virial

    small, large = molecule(5, 3.0), molecule(130, 30.0)
    module = CompiledModule(script(potential), wrong, torch.float32, fused=step)
    expected = potential(*small.tensors())["forces"]
    torch.testing.assert_close(module(*small.tensors())["forces"], expected)
    assert calls == [5]
    with pytest.raises(CompilationError, match="differs"):
        module(*large.tensors())
    module = CompiledModule(script(potential), step, torch.float32, fused=wrong)
    with pytest.raises(CompilationError, match="differs"):
        module(*small.tensors())


@pytest.mark.gpu
def test_a_recorded_step_follows_the_positions():
    from forcefield.fused import FusedPotential
    from forcefield.recording import record

    potential = make(features=64, layers=3, cutoff=5.0).cuda()
    step = FusedPotential(potential)
    graph = molecule(21, 8.0, reach=20.0).to("cuda")
    compare(potential, graph, step)
    inputs = graph.tensors()
    replay = record(lambda: step(*inputs))
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        moved = 0.05 * torch.randn(graph.positions.shape, generator=rng, dtype=torch.float64)
        graph.positions.add_(moved.cuda())
        recorded = [tensor.clone() for tensor in replay()]
        compare(potential, graph, lambda *_, found=recorded: found)
        now = step(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(recorded, now, strict=True))
