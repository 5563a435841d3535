"""Potentials compiled to machine code for one processor, for programs that call them from Python.

TorchScript interprets a graph of small operations; torch's inductor fuses them into loops. The
unrolled potential (:mod:`forcefield.unrolled`), with edge vectors before and the sums of forces after
it, is compiled ahead of time to a library. It takes one to two minutes, once: the library stays in a
cache folder and serves every potential of the same architecture, weights are put in when it is
loaded.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forcefield.errors import CompilationError
from forcefield.export import ExportedPotential
from forcefield.graph import edge_vectors
from forcefield.potential import Potential, build_potential
from forcefield.readout import EnergyReadout
from forcefield.uncertainty import LastLayerPosterior

CACHE_VARIABLE = "HEGNN_FORCEFIELD_CACHE"
"""Environment variable with the folder of compiled libraries."""

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference from the interpreted potential at the first call, eV/Å and eV per atom. In a
single-precision file that runs in double precision the constants were rounded when it was exported."""

log = logging.getLogger(__name__)


class CompiledModule(nn.Module):
    """What stands in for the scripted module of an :class:`~forcefield.export.ExportedPotential`.

    Structures one by one go through the library, batches and lone atoms through the scripted module.
    The first result is compared with that of the scripted module.

    Args:
        scripted: The exported potential's module.
        library: (positions, numbers, edge_index, cell_shifts, cell) -> energies, forces, virial;
            contiguous tensors.
        dtype: Of the network.
    """

    def __init__(self, scripted: torch.jit.ScriptModule, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.scripted = scripted
        self.library = library
        self.tolerance = TOLERANCES[dtype]
        self.checked = False

    @property
    def posterior(self) -> LastLayerPosterior:
        """For error estimates."""
        return self.scripted.posterior

    @property
    def readout(self) -> EnergyReadout:
        """For error estimates."""
        return self.scripted.readout

    def last_layer(self, vectors: Tensor, atomic_numbers: Tensor, edge_index: Tensor) -> Tensor:
        """See :meth:`forcefield.potential.Potential.last_layer`."""
        return self.scripted.last_layer(vectors, atomic_numbers, edge_index)

    def forward(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        edge_index: Tensor,
        cell_shifts: Tensor,
        cell: Tensor,
        batch: Tensor,
        compute_stress: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate; see :meth:`forcefield.potential.Potential.forward`.

        Raises:
            CompilationError: At the first call, if the compiled potential gives something else than the
                interpreted one.
        """
        if cell.shape[0] != 1 or len(positions) < 2 or edge_index.shape[1] < 2:
            return self.scripted(
                positions, atomic_numbers, edge_index, cell_shifts, cell, batch, compute_stress
            )
        with torch.no_grad():
            energies, forces, virial = self.library(
                positions, atomic_numbers, edge_index, cell_shifts, cell
            )
        result = {"energy": energies.sum().view(1), "energies": energies, "forces": forces}
        if compute_stress:
            result["stress"] = virial / torch.linalg.det(cell).abs().view(-1, 1, 1)
        if not self.checked:
            # Files exported before derivatives were unrolled differentiate.
            expected = self.scripted(
                positions, atomic_numbers, edge_index, cell_shifts, cell, batch, compute_stress
            )
            self._compare(result, expected)
        return result

    def _compare(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        for name in ("energies", "forces"):
            difference = float((found[name] - expected[name]).abs().max())
            # Where both are not finite it is for others to complain.
            scale = 1.0 + float(expected[name].abs().max() if name == "forces" else 0.0)
            if difference > self.tolerance * scale:
                raise CompilationError(
                    f"the compiled potential differs from the interpreted one by {difference:.1e} in "
                    f"{name} (eV, Å): this torch ({torch.__version__}) compiles it wrongly; run "
                    "without compile=True"
                )
        self.checked = True


def compile_exported(exported: ExportedPotential) -> ExportedPotential:
    """Compile an exported potential for this processor, or take the library from the cache.

    Args:
        exported: On the CPU.

    Returns:
        The potential with a :class:`CompiledModule`; results agree to rounding. The number of threads
        is that of torch now.

    Raises:
        CompilationError: There is no C++ compiler, or torch cannot compile it.
    """
    if is_compiled(exported):
        return exported
    if next(exported.module.parameters()).device.type != "cpu":
        raise CompilationError("compile=True is for potentials on the CPU")
    library, weights = _files(exported)
    if not (library.is_file() and weights.is_file()):
        step = _Step(_eager(exported))
        if not library.is_file():
            log.warning(
                "compiling the potential for this processor: one to two minutes, once for its "
                "architecture (kept in %s)",
                library.parent,
            )
            _compile(step, library)
        _save_weights(step, _Library(library).names(), weights)
    compiled = _Library(library)
    compiled.load(load_file(weights))
    return ExportedPotential(
        CompiledModule(exported.module, compiled, exported.dtype), exported.metadata
    )


def is_compiled(exported: ExportedPotential) -> bool:
    """Whether a potential came from :func:`compile_exported`."""
    return isinstance(exported.module, CompiledModule)


def scripted_module(exported: ExportedPotential) -> torch.jit.ScriptModule:
    """The TorchScript module of a potential, compiled or not."""
    module: torch.jit.ScriptModule = (
        exported.module.scripted if is_compiled(exported) else exported.module
    )
    return module


class _Library:
    """A compiled :class:`_Step`.

    torch's own function for loading one imports its whole compiler first, for ten seconds.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise CompilationError(
                f"torch {torch.__version__} cannot load {path}: {error}; delete it, or run without "
                "compile=True"
            ) from error

    def names(self) -> list[str]:
        return self.loader.get_constant_fqns()

    def load(self, weights: dict[str, Tensor]) -> None:
        self.loader.load_constants(weights, False, True, False)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.loader.boxed_run(list(inputs))


class _Step(nn.Module):
    """One structure: positions in, energies, forces and virial out; without differentiation."""

    species_index: Tensor
    reference_energies: Tensor

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        from forcefield.unrolled import unroll

        self.derivatives = unroll(potential)
        self.register_buffer("species_index", potential.species_index)
        self.register_buffer("reference_energies", potential.readout.reference_energies)
        self.dtype = potential.readout.scale.dtype

    def forward(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        edge_index: Tensor,
        cell_shifts: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.zeros_like(atomic_numbers)
        vectors = edge_vectors(positions, edge_index, cell_shifts, cell, batch)
        species = self.species_index.index_select(0, atomic_numbers)
        interaction, gradient = self.derivatives(species, edge_index, vectors.to(self.dtype))
        energies = interaction.to(torch.float64) + self.reference_energies.index_select(0, species)
        gradient = gradient.to(positions.dtype)
        forces = torch.zeros_like(positions).index_add(0, edge_index[1], gradient)
        forces = forces.index_add(0, edge_index[0], -gradient)
        virial = vectors.transpose(0, 1) @ gradient
        return energies, forces, 0.5 * (virial + virial.transpose(0, 1)).unsqueeze(0)


def _eager(exported: ExportedPotential) -> Potential:
    """The potential that a file was exported from."""
    header = exported.metadata
    potential = build_potential(header["architecture"], header["species"], dtype=exported.dtype)
    state = exported.module.state_dict()
    potential.load_state_dict({name: state[name] for name in potential.state_dict()})
    return potential.eval().requires_grad_(False)


def _compile(step: _Step, path: Path) -> None:
    """Write the library of a step; the file appears once it is complete."""
    atoms, pairs = (torch.export.Dim(name, min=2) for name in ("atoms", "pairs"))
    n, e = 7, 11
    examples = (
        torch.rand(n, 3, dtype=torch.float64),
        torch.ones(n, dtype=torch.int64),
        torch.stack([torch.arange(e) % n, (torch.arange(e) + 1) % n]),
        torch.zeros(e, 3, dtype=torch.float64),
        torch.zeros(1, 3, 3, dtype=torch.float64),
    )
    free = ({0: atoms}, {0: atoms}, {1: pairs}, {0: pairs}, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            with torch.no_grad():
                program = torch.export.export(step, examples, dynamic_shapes=free)
                written = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(Path(folder) / "library.pt2"),
                    # Short vectors of weights would be written into the code.
                    inductor_configs={"always_keep_tensor_constants": True},
                )
        except Exception as error:  # torch raises many kinds, down to the compiler's own.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CompilationError(
                f"the potential could not be compiled: {reason}. It takes a C++ compiler and "
                "Python's header files; compile=False does without"
            ) from error
        Path(written).replace(path)


def _save_weights(step: _Step, names: list[str], path: Path) -> None:
    """Keep what a library needs of a potential: loading it is much faster than tracing again."""
    tensors = dict(step.named_buffers(remove_duplicate=False))
    tensors |= step.named_parameters(remove_duplicate=False)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({name: tensors[name].detach().clone().contiguous() for name in names}, temporary)
    temporary.replace(path)


def _files(exported: ExportedPotential) -> tuple[Path, Path]:
    """Where the library and the weights in its order are kept.

    The library's name is made of everything that it depends on: code, torch, processor, compiler,
    threads, architecture.
    """
    header = exported.metadata
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor_features(),
        "compiler": os.environ.get("CXX") or shutil.which("g++") or "",
        "architecture": header["architecture"],
        "species": len(header["species"]),
        "dtype": header["dtype"],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    weights = hashlib.sha256(json.dumps(header["species"]).encode())
    for name, tensor in sorted(exported.module.state_dict().items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    folder, key = _cache_folder(), digest.hexdigest()[:20]
    names = (f"{key}.pt2", f"{key}-{weights.hexdigest()[:20]}.safetensors")
    return folder / names[0], folder / names[1]


def _cache_folder() -> Path:
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hegnn-forcefield" / "compiled"


def _processor_features() -> str:
    """The instructions it knows: a home folder may be shared by different machines."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"
