"""The TorchScript side of OpenMM's TorchForce: the module that the plugin runs at every step.

:func:`wrap_potential` puts an exported potential into a scripted module of the signature that the
plugin wants, ``positions[, box] -> energy, forces`` in the engine's units. The module holds what
stays the same (atomic numbers, the pairs of a small molecule), searches neighbours with vesin where
it must, casts what it gets (float64 on Reference and CPU) and refuses to hand back forces that are
not finite.

:func:`import_plugin` finds out whether plugin, OpenMM and torch work together, by one evaluation.
"""

import contextlib
import io
from functools import cache
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from calculators.evaluator import STATIC_ATOMS, module_device
from forcefield.errors import EngineError
from forcefield.export import ExportedPotential, quiet_torchscript
from forcefield.neighbors import all_pairs

PLUGIN_PACKAGES = (
    "acellera-openmmtorch-cpu",
    "acellera-openmmtorch-cu12",
    "acellera-openmmtorch-cu13",
    "openmmtorch",
)
"""Packages that provide the module ``openmmtorch``."""


def _finite(forces: Tensor, positions: Tensor, symbols: list[str]) -> Tensor:
    """The forces, or an error that names the first atom that is not finite."""
    if not bool(torch.isfinite(forces.sum())):
        # A NaN position spreads to every force: blame the position if there is one.
        for what, values in (("position of", positions), ("force on", forces)):
            bad = torch.nonzero(torch.logical_not(torch.isfinite(values)))
            if bad.size(0) > 0:
                atom = int(bad[0, 0])
                raise RuntimeError(
                    f"NonFiniteForceError: the {what} atom {atom} ({symbols[atom]}) is not finite; "
                    "the structure has left the domain of the potential"
                )
    return forces


def _same_count(positions: Tensor, symbols: list[str]) -> None:
    if positions.size(0) != len(symbols):
        raise RuntimeError(
            f"this force was made for {len(symbols)} atoms, the System has {positions.size(0)} "
            "particles"
        )


class _MoleculeForce(torch.nn.Module):
    """Atoms outside a box, few enough that every pair is an edge.

    Args:
        potential: The exported potential.
        numbers: Atomic numbers, (n,).
        length: Å in the engine's unit of length.
        energy: The engine's units of energy in one eV.
    """

    cell: Tensor

    def __init__(
        self, potential: ExportedPotential, numbers: np.ndarray, length: float, energy: float
    ) -> None:
        super().__init__()
        self.potential = potential.module
        self.length = length
        self.energy = energy
        self.symbols = [chemical_symbols[z] for z in numbers]
        pairs = all_pairs(len(numbers)).clone()
        self.register_buffer("numbers", torch.as_tensor(numbers))
        self.register_buffer("batch", torch.zeros(len(numbers), dtype=torch.int64))
        self.register_buffer("edge_index", pairs)
        self.register_buffer("cell_shifts", torch.zeros(pairs.shape[1], 3, dtype=torch.float64))
        self.register_buffer("cell", torch.zeros(1, 3, 3, dtype=torch.float64))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        _same_count(positions, self.symbols)
        points = self.length * positions.detach().to(self.cell.device, torch.float64)
        output = self.potential(
            points, self.numbers, self.edge_index, self.cell_shifts, self.cell, self.batch
        )
        forces = (self.energy * self.length) * _finite(output["forces"], points, self.symbols)
        energy = self.energy * output["energy"].sum()
        return energy.to(positions.device), forces.to(positions.device)


class _CondensedForce(torch.nn.Module):
    """Any number of atoms, with or without a periodic box: a vesin neighbour list with a skin.

    Args:
        potential, numbers, length, energy: As for :class:`_MoleculeForce`.
        periodic: Whether the plugin hands over a box.
        skin: Å by which the list outlives the cutoff.
    """

    no_box: Tensor
    periodic: Tensor

    def __init__(
        self,
        potential: ExportedPotential,
        numbers: np.ndarray,
        length: float,
        energy: float,
        periodic: bool,
        skin: float,
    ) -> None:
        super().__init__()
        self.potential = potential.module
        self.length = length
        self.energy = energy
        self.symbols = [chemical_symbols[z] for z in numbers]
        self.neighbors = torch.classes.vesin._NeighborList(
            cutoff=potential.cutoff,
            full_list=False,
            sorted=True,
            algorithm="auto",
            skin=skin,
            n_threads=1,
        )
        self.register_buffer("numbers", torch.as_tensor(numbers))
        self.register_buffer("batch", torch.zeros(len(numbers), dtype=torch.int64))
        self.register_buffer("periodic", torch.tensor([periodic] * 3))
        self.register_buffer("no_box", torch.zeros(3, 3, dtype=torch.float64))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _same_count(positions, self.symbols)
        device = self.no_box.device
        points = self.length * positions.detach().to(device, torch.float64)
        cell = self.no_box
        if box is not None:
            cell = self.length * box.to(device, torch.float64)
        # On the CPU wherever the model runs: a search is a small part of a step of a large system.
        pairs = self.neighbors.compute(points.cpu(), cell.cpu(), self.periodic.cpu(), "ijS", True)
        # In a pair (i, j, S) of vesin atom j is moved by S @ cell; an edge names j first.
        edge_index = torch.stack([pairs[1], pairs[0]]).to(device, torch.int64)
        cell_shifts = pairs[2].to(device, torch.float64)
        output = self.potential(
            points, self.numbers, edge_index, cell_shifts, cell.unsqueeze(0), self.batch
        )
        forces = (self.energy * self.length) * _finite(output["forces"], points, self.symbols)
        energy = self.energy * output["energy"].sum()
        return energy.to(positions.device), forces.to(positions.device)


def wrap_potential(
    potential: ExportedPotential,
    numbers: np.ndarray,
    *,
    length: float,
    energy: float,
    periodic: bool,
    skin: float,
) -> torch.jit.ScriptModule:
    """Script the module that TorchForce runs.

    Args:
        potential: The exported potential.
        numbers: Atomic numbers in the order of the System's particles, (n,).
        length: Å in the engine's unit of length.
        energy: The engine's units of energy in one eV.
        periodic: Whether the box vectors are a second argument.
        skin: Å, for the neighbour list of large or periodic systems.

    Returns:
        positions (n, 3)[, box (3, 3)] -> energy (), float64, and forces (n, 3), float64.

    Raises:
        EngineError: The system needs neighbour lists and vesin-torch does not work with this torch.
    """
    module: torch.nn.Module
    if not periodic and len(numbers) <= STATIC_ATOMS:
        module = _MoleculeForce(potential, numbers, length, energy)
    else:
        _import_vesin()
        module = _CondensedForce(potential, numbers, length, energy, periodic, skin)
    return _script(module.to(module_device(potential)))


def _script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    with quiet_torchscript():
        return torch.jit.script(module.eval())


def _import_vesin() -> None:
    try:
        import vesin.torch  # noqa: F401  (registers the class that the scripted module uses)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "a TorchForce for a periodic box or for more than "
            f"{STATIC_ATOMS} atoms needs vesin-torch, which does not load with torch "
            f"{torch.__version__} ({error}); pip install -U vesin-torch, or use python_force "
            '(engine="python"), which does without'
        ) from error


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
            'pip install "hegnn-forcefield[openmm]", or use python_force (engine="python"), which '
            "needs OpenMM alone"
        ) from error
    try_plugin(openmmtorch, _script(_Probe()))
    return openmmtorch


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
    return (
        f"the TorchForce plugin ({_plugin_version()}) does not work with torch {torch.__version__} "
        f"and OpenMM {openmm.__version__}: {what}. Install a pair that was built for each other: "
        'pip install --force-reinstall "hegnn-forcefield[openmm]"; or use python_force '
        '(engine="python"), which needs OpenMM alone'
    )


def _plugin_version() -> str:
    for package in PLUGIN_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{package} {metadata.version(package)}"
    return "openmmtorch, of unknown version"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
