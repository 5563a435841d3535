"""Machine code made of torch graphs: libraries for a CPU, and the folder that keeps them.

A library serves every potential of the same architecture: its weights are constants that are put in
when it is loaded, from a file of their own, which takes milliseconds where tracing takes seconds. For a
GPU torch compiles in the process that runs, and keeps the pieces in a folder of its own: loading a library
that was made for a GPU ends the process with torch 2.11.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forcefield.errors import CompilationError
from forcefield.export import ExportedPotential

CACHE_VARIABLE = "HEGNN_FORCEFIELD_CACHE"
"""Environment variable with the folder of compiled libraries."""

SMALL = 10_000
"""Numbers in the largest input: a molecule, or a few."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What a library is made of.

    Attributes:
        module: Its buffers become the library's constants. May change its inputs in place.
        examples: Contiguous inputs on the device. No free axis may have length 0 or 1.
        free_axes: For each input the axis of free length and the name of the length, or None.
        shortest: The smallest value of lengths that may be less than 2, by name.
    """

    module: nn.Module
    examples: Sequence[Tensor]
    free_axes: Sequence[tuple[int, str] | None]
    shortest: Mapping[str, int]


class Library:
    """Machine code that is called with contiguous tensors.

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
        """Names of the constants."""
        return self.loader.get_constant_fqns()

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put the constants in."""
        self.loader.load_constants(weights, False, True, False)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it."""
        return self.loader.boxed_run(list(inputs))


class JustInTime:
    """A graph for a GPU, compiled when it is first called.

    Of a molecule's step most is the time to start kernels: small ones that do not depend on each other
    are started as one.
    """

    def __init__(self, source: Source) -> None:
        self.free_axes = source.free_axes
        self.compiled = torch.compile(source.module, fullgraph=True)
        self.compiled_small = torch.compile(
            source.module, fullgraph=True, options={"combo_kernels": True}
        )

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run it."""
        from torch._dynamo.exc import TorchDynamoException  # Seconds, for those who compile.

        for tensor, axis in zip(inputs, self.free_axes, strict=True):
            if axis is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, axis[0])
        try:
            small = max(tensor.numel() for tensor in inputs) < SMALL
            result = self.compiled_small(*inputs) if small else self.compiled(*inputs)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise CompilationError(f"the potential could not be compiled: {reason}") from error
        return [result] if isinstance(result, Tensor) else result


class Shelf:
    """The libraries of a potential.

    Args:
        exported: On the device that the libraries are for.
    """

    def __init__(self, exported: ExportedPotential) -> None:
        self.device = exported.device
        self.folder = _cache_folder()
        self.key, self.weights_key = _keys(exported)

    def has(self, name: str) -> bool:
        """Whether a library is there already."""
        return self._path(name).is_file()

    def take(
        self, name: str, weights: str, make: Callable[[], Source]
    ) -> Callable[..., Sequence[Tensor]]:
        """A library with the potential's weights in it; compiled if it is not there yet.

        Args:
            name: Of the library.
            weights: Of the weights: several may go into the same library.
            make: What to make it of; not called if everything is there.

        Raises:
            CompilationError: There is no C++ compiler, torch cannot compile it, or there is no room for
                what it makes.
        """
        if self.device.type == "cuda":
            return JustInTime(make())
        path = self._path(name)
        constants = self.folder / f"{self.key}-{self.weights_key}-{weights}.safetensors"
        if not (path.is_file() and constants.is_file()):
            source = make()
            try:
                if not path.is_file():
                    _compile(source, path)
                _save_weights(source.module, Library(path).names(), constants)
            except (OSError, SafetensorError) as error:
                raise CompilationError(
                    f"compiled potentials are kept in {self.folder}, which cannot be written to ({error}); "
                    f"set {CACHE_VARIABLE} to a folder that can, or compile=False"
                ) from error
        library = Library(path)
        try:
            tensors = load_file(constants)
        except SafetensorError as error:
            raise CompilationError(
                f"{constants} is damaged ({error}): delete it, and it is made anew"
            ) from error
        library.load(tensors)
        return library

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.key}-{name}.pt2"


def example_pairs(atoms: int, pairs: int) -> Tensor:
    """Some edge index (2, pairs) for a :class:`Source`."""
    first = torch.arange(pairs)
    return torch.stack([first % atoms, (first + 1) % atoms])


def _compile(source: Source, path: Path) -> None:
    """Write a library; the file appears once it is complete."""
    lengths = {
        name: torch.export.Dim(name, min=source.shortest.get(name, 2))
        for name in dict.fromkeys(axis[1] for axis in source.free_axes if axis)
    }
    free = tuple(None if axis is None else {axis[0]: lengths[axis[1]]} for axis in source.free_axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch to itself
                program = torch.export.export(
                    source.module, tuple(source.examples), dynamic_shapes=free
                )
                written = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(Path(folder) / "library.pt2"),
                    inductor_configs={
                        # Short vectors of weights would be written into the code.
                        "always_keep_tensor_constants": True,
                        # Loops are too short to be shared: threads would wait for each other.
                        "cpp.threads": 1,
                    },
                )
        except Exception as error:  # torch raises many kinds, down to the compiler's own.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CompilationError(
                f"the potential could not be compiled: {reason}. It takes a C++ compiler and "
                "Python's header files; compile=False does without"
            ) from error
        Path(written).replace(path)


def _save_weights(module: nn.Module, names: list[str], path: Path) -> None:
    tensors = dict(module.named_buffers(remove_duplicate=False))
    tensors |= module.named_parameters(remove_duplicate=False)
    chosen = {name: tensors[name].detach().clone().contiguous() for name in names}
    # A folder for itself: threads, and containers that share the cache, may be at it at once.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        save_file(chosen, temporary)
        temporary.replace(path)


def _keys(exported: ExportedPotential) -> tuple[str, str]:
    """Names for libraries and for weights.

    A library's is made of everything that it depends on: code, torch, processor, compiler,
    architecture.
    """
    header = exported.metadata
    facts = {
        "torch": torch.__version__,
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
        weights.update(name.encode() + tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:20], weights.hexdigest()[:20]


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
