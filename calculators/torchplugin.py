"""OpenMM's TorchForce plugin: found, and tried out before a simulation depends on it.

:func:`import_plugin` finds out whether plugin, OpenMM and torch work together, by one evaluation.
"""

import contextlib
import io
from functools import cache
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from forcefield.errors import EngineError
from forcefield.export import quiet_torchscript

PLUGIN_PACKAGES = (
    "acellera-openmmtorch-cpu",
    "acellera-openmmtorch-cu12",
    "acellera-openmmtorch-cu13",
    "openmmtorch",
)
"""Packages that provide the module ``openmmtorch``."""

TORCH_BOUNDS, PLUGIN_BOUNDS = ">=2.10,<2.13", ">=1.10,<2"
"""Of pyproject.toml: versions of torch and of Acellera's plugins that were built for each other."""


class _Probe(torch.nn.Module):
    """Two springs to the origin, differentiated as potentials are."""

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        points = positions.detach().requires_grad_(True)
        energy = (points * points).sum()
        gradient = torch.autograd.grad([energy], [points])[0]
        if gradient is None:
            gradient = torch.zeros_like(points)
        return energy.detach(), -gradient


@cache
def import_plugin() -> ModuleType:
    """The plugin's module, imported and tried out once per process.

    Raises:
        EngineError: OpenMM or the plugin is missing, or it does not work with the installed torch.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a remark on its own use of simtk
            import openmmtorch
    except ImportError as error:
        raise EngineError(
            f"OpenMM's TorchForce plugin cannot be imported ({error}); "
            'pip install "hegnn-forcefield[openmm]", or use python_force (engine="python"; '
            "simulate-potential --force python), which needs OpenMM alone"
        ) from error
    with quiet_torchscript():
        probe = torch.jit.script(_Probe().eval())
    try_plugin(openmmtorch, probe)
    return openmmtorch


def import_vesin() -> None:
    """Register the class of vesin-torch that scripted modules search neighbours with.

    Raises:
        EngineError: vesin-torch is missing or does not load with the installed torch.
    """
    try:
        import vesin.torch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "a TorchForce with a neighbour list (a periodic box, or many atoms) needs vesin-torch, "
            f"which does not load with torch {torch.__version__} ({error}); "
            "pip install -U vesin-torch, or use python_force "
            '(engine="python"; simulate-potential --force python), which does without'
        ) from error


def try_plugin(plugin: ModuleType, probe: torch.jit.ScriptModule) -> None:
    """Evaluate a scripted module through a plugin in a Context of two particles.

    A plugin built against another torch often imports well and fails at the first evaluation.

    Args:
        plugin: The module ``openmmtorch``.
        probe: positions -> sum of their squares, and its negative gradient.

    Raises:
        EngineError: The evaluation fails or gives something else; names the versions and the fix.
    """
    import openmm

    points = np.array([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]])
    system = openmm.System()
    system.addParticle(1.0)
    system.addParticle(1.0)
    force = plugin.TorchForce(probe)
    force.setOutputsForces(True)
    system.addForce(force)
    try:
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        context.setPositions(points)
        forces = context.getState(forces=True).getForces(asNumpy=True)._value
    except Exception as error:
        raise EngineError(_incompatible(openmm, _first_line(error))) from error
    if not np.allclose(forces, -2.0 * points, rtol=0.0, atol=1e-6):
        raise EngineError(_incompatible(openmm, f"a spring gave the forces {forces.tolist()}"))


def _incompatible(openmm: ModuleType, what: str) -> str:
    package, version = _installed_plugin()
    # Two plugins must not lie beside each other; conda's has other versions, and pip none at all.
    wanted = package if package.startswith("acellera") else PLUGIN_PACKAGES[0]
    return (
        f"the TorchForce plugin ({package}{version}) does not work with torch {torch.__version__} "
        f"and OpenMM {openmm.__version__}: {what}. Install a pair that was built for each other: "
        f'pip install -U "torch{TORCH_BOUNDS}" "{wanted}{PLUGIN_BOUNDS}"; or use python_force '
        '(engine="python"; simulate-potential --force python), which needs OpenMM alone'
    )


def _installed_plugin() -> tuple[str, str]:
    """Package and, after a space, version of the plugin."""
    for package in PLUGIN_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return package, f" {metadata.version(package)}"
    return "openmmtorch", ", of unknown version"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
