"""TorchForces of compiled potentials: threads, errors, XML. Their forces are tested with all others'."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from forcefield import load_exported
from forcefield.compiled import CompiledModule, compile_exported
from forcefield.errors import EngineError
from forcefield.export import ExportedPotential

openmm = pytest.importorskip("openmm")
app, unit = pytest.importorskip("openmm.app"), pytest.importorskip("openmm.unit")

from calculators.openmm import create_mixed_system, create_system, torch_force  # noqa: E402
from calculators.torchcompiled import register_compiled  # noqa: E402
from tests.integration.conftest import way_of  # noqa: E402
from tests.integration.openmm_systems import (  # noqa: E402
    ROOT,
    context_of,
    eager,
    evaluate,
    four_site_water,
    topology_of,
)


@pytest.fixture
def small(request):
    """A small potential in double precision, and the compiled one."""
    potential = way_of(request, "compiled").potential
    return potential, compile_exported(load_exported(potential.path))


def replaced(exported: ExportedPotential, library) -> ExportedPotential:
    """With something else in the place of its library."""
    module = CompiledModule(exported.module, library, exported.dtype)
    return ExportedPotential(module, exported.metadata)


def test_a_compiled_potential_is_known_once(small, ethanol):
    exported = small[1]
    key = register_compiled(exported)
    torch_force(exported, ethanol.numbers)
    assert register_compiled(exported) == key
    other = replaced(load_exported(small[0].path), exported.module.library)
    assert register_compiled(other) != key


def test_it_is_the_compiled_one_that_runs(small, ethanol):
    """Also a loaded potential, without the option."""
    calls = []
    library = small[1].module.library
    counted = replaced(
        load_exported(small[0].path), lambda *data: calls.append(data) or library(*data)
    )
    context = context_of(create_system(topology_of(ethanol), counted), ethanol)
    evaluate(context)
    context.getIntegrator().step(3)
    assert len(calls) >= 4
    assert all(tensor.is_contiguous() for call in calls for tensor in call)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_threads_do_not_wait_for_each_other(platform, small, ethanol):
    """Python runs inside OpenMM: in several threads at once, each with Contexts that come and go."""
    potential, exported = small
    expected = eager(potential.eager, ethanol)[1]

    def simulate(seed: int) -> np.ndarray:
        system = create_system(topology_of(ethanol), exported, remove_cm_motion=False)
        system.addForce(torch_force(exported, ethanol.numbers, particles=[0, 2], force_group=1))
        for _ in range(2):
            integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0002)
            integrator.setRandomNumberSeed(seed)
            chosen = openmm.Platform.getPlatformByName(platform)
            properties = {"Threads": "2"} if platform == "CPU" else {}
            context = openmm.Context(system, integrator, chosen, properties)
            context.setPositions(ethanol.positions * unit.angstrom)
            forces = evaluate(context, groups={0})[1]
            integrator.step(20)
            openmm.LocalEnergyMinimizer.minimize(context, maxIterations=3)
            del context
        return forces

    with ThreadPoolExecutor(4) as pool:
        for forces in pool.map(simulate, range(1, 5), timeout=120):
            np.testing.assert_allclose(forces, expected, atol=1e-8)


def test_a_wrong_library_is_found_out(float32_potential, ethanol):
    exported = load_exported(float32_potential.path)

    def wrong(*inputs: torch.Tensor) -> list[torch.Tensor]:
        output = exported.module(*inputs)
        return [output["energy"], output["energies"], output["forces"] + 0.01, torch.zeros(1, 3, 3)]

    context = context_of(create_system(topology_of(ethanol), replaced(exported, wrong)), ethanol)
    for use in (
        lambda: context.getState(energy=True),
        lambda: context.getIntegrator().step(1),
        lambda: openmm.LocalEnergyMinimizer.minimize(context),
    ):
        with pytest.raises(openmm.OpenMMException, match=r"CompilationError: .*differs from the"):
            use()


def test_pairs_that_need_no_library(float32_potential, ethanol):
    """Lone atoms and pairs go through TorchScript."""
    exported = replaced(load_exported(float32_potential.path), None)
    for number in (1, 2):
        few = ethanol[:number]
        energy, forces = evaluate(context_of(create_system(topology_of(few), exported), few))
        expected_energy, expected = eager(float32_potential.eager, few)
        assert energy == pytest.approx(expected_energy, abs=1e-4)
        np.testing.assert_allclose(forces, expected, atol=2e-5)


def test_another_device_is_named(float32_potential, ethanol, monkeypatch):
    from calculators import torchcompiled

    exported = replaced(load_exported(float32_potential.path), None)
    context = context_of(create_system(topology_of(ethanol), exported), ethanol)
    entry = (exported.module, torch.device("cuda:0"))
    monkeypatch.setitem(torchcompiled._known, register_compiled(exported), entry)
    with pytest.raises(openmm.OpenMMException, match=r"EngineError: .*device='cpu'"):
        evaluate(context)


def test_in_another_process_it_says_so(float32_potential, ethanol, tmp_path):
    exported = replaced(load_exported(float32_potential.path), None)
    system = create_system(topology_of(ethanol), exported)
    path = tmp_path / "system.xml"
    path.write_text(openmm.XmlSerializer.serialize(system), encoding="utf-8")
    code = f"""
import openmm
from calculators.openmm import system_from_xml
system = system_from_xml(open({str(path)!r}).read())
platform = openmm.Platform.getPlatformByName("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions([[0.1 * i, 0.0, 0.0] for i in range(9)])
try:
    context.getState(energy=True)
except openmm.OpenMMException as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert f"{EngineError.__name__}: this TorchForce runs a compiled" in done.stdout, done.stderr
    assert "make it anew from the exported potential" in done.stdout


def test_in_a_mixed_system(small):
    """A second region is read back from XML with the first, compiled one in it."""
    potential, exported = small
    solution = four_site_water()
    classical = solution.classical(constraints=None)
    regions = solution.solute[:3], solution.solute[3:6]
    results = []
    for source in (potential.path, exported):
        system = classical
        for region in regions:
            system = create_mixed_system(solution.topology, system, region, source)
        results.append(evaluate(context_of(system, solution.positions)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-7)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)
