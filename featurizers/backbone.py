"""The network that describes atoms: a potential's representation, or one trained to remove noise.

Both come as safetensors files with a header; what is not representation in a potential's file is left
aside.

Shapes: frames ``f``, atoms ``n``, edges ``e``, channels ``c``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcefield import Potential, build_potential
from forcefield.checkpoint import BACKBONE, FORMAT, FORMAT_VERSION, read_header, write_weights
from forcefield.devices import check_device
from forcefield.errors import CheckpointError, CompilationError
from forcefield.potential import Representation
from forcefield.version import __version__

_PREFIX = "representation."


class Backbone:
    """Maps atoms and the vectors between them to features, without gradients.

    Args:
        representation: Maps (species, edge_index, vectors) to scalars and steerable features.
        architecture: Its name and arguments.
        species: Atomic numbers in the order of the species indices.
        name: What results shall say they were made with.
    """

    def __init__(
        self,
        representation: Representation,
        architecture: Mapping[str, Any],
        species: Sequence[int],
        name: str = "",
    ) -> None:
        self.representation = representation.eval()
        self.architecture = dict(architecture)
        self.species = list(species)
        self.name = name
        self.species_index = {z: k for k, z in enumerate(self.species)}
        self._run: Callable[..., tuple[Tensor, Tensor]] = self.representation

    @classmethod
    def of(cls, potential: Potential, name: str = "potential") -> "Backbone":
        """The representation of a potential."""
        return cls(potential.representation, potential.architecture, potential.species, name)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> "Backbone":
        """Read the weights of a potential or of :meth:`save`.

        Args:
            path: ``potential.safetensors`` or ``backbone.safetensors`` of a training run.
            device: Where to evaluate it.
            dtype: Precision of the network, if not that of the file.
            compile: See :meth:`compile`.

        Raises:
            CheckpointError: There is no such file, or it is not one of this project.
            ConfigError: The device is not there, or has no double precision.
        """
        from safetensors.torch import load_file

        device = check_device(device)
        header = read_header(path)
        dtype = dtype or getattr(torch, header["dtype"])
        built = build_potential(header["architecture"], header["species"], dtype=dtype)
        state = load_file(path)
        own = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        try:
            built.representation.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"the tensors in {path} do not fit its header: {error}") from None
        backbone = cls.of(built, name=Path(path).stem)
        backbone.representation.to(device)
        if compile:
            backbone.compile()
        return backbone

    def compile(self) -> None:
        """Have torch compile the network: a half to a quarter of the time per frame from then on.

        It takes some 30 seconds, ten when torch finds its work of an earlier run on the disk: for
        trajectories of more than some 50,000 frames. The first result is compared with that of the
        network as it was.
        """
        from torch._dynamo.exc import TorchDynamoException

        compiled = torch.compile(self.representation, dynamic=True, fullgraph=True)

        def first(species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
            expected = self.representation(species, edge_index, vectors)
            if edge_index.shape[1] < 2 or len(species) < 2:
                return expected  # Lengths of 0 and 1 would be compiled as if they were constant.
            for tensor, axis in ((species, 0), (edge_index, 1), (vectors, 0)):
                torch._dynamo.mark_dynamic(tensor, axis)
            try:
                found = compiled(species, edge_index, vectors)
            except TorchDynamoException as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise CompilationError(
                    f"the network could not be compiled: {reason}. It takes a C++ compiler and "
                    "Python's header files; compile=False does without"
                ) from error
            for one, other in zip(found, expected, strict=True):
                if not torch.allclose(one, other, rtol=1e-4, atol=1e-4 * _size(other)):
                    raise CompilationError(
                        f"the compiled network gives other features: torch {torch.__version__} compiles "
                        "it wrongly; run without compile=True"
                    )
            self._run = later
            return found

        def later(species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
            if edge_index.shape[1] < 2 or len(species) < 2:
                return self.representation(species, edge_index, vectors)
            return compiled(species, edge_index, vectors)

        self._run = first

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write weights and a header that says what they are."""
        state = {_PREFIX + k: v for k, v in self.representation.state_dict().items()}
        header = {
            **(metadata or {}),
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": BACKBONE,
            "version": __version__,
            "architecture": self.architecture,
            "species": self.species,
            "cutoff": self.cutoff,
            "units": {"length": "Angstrom"},
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.representation.parameters()),
        }
        write_weights(path, state, header)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.representation.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.representation.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""
        return next(self.representation.parameters()).device

    @property
    def sha256(self) -> str:
        """Of the weights with their names, shapes and precision: what tells two networks apart."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.representation.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def __call__(
        self, numbers: np.ndarray, frames: int, edge_index: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features of the atoms of several frames.

        Args:
            numbers: Atomic numbers of a frame, (n,), all among ``species``.
            frames: Number of frames f.
            edge_index: Atoms j and i of each pair, (2, e); atoms of frame k are numbered from k n on.
            vectors: r_j - r_i, (e, 3), Å.

        Returns:
            Scalars (f, n, c) and vectors (f, n, 3, c), components x, y, z.
        """
        index = [self.species_index[int(z)] for z in numbers]
        species = torch.tensor(index, device=self.device).repeat(frames)
        with torch.no_grad():
            scalars, steerable = self._run(species, edge_index, vectors.to(self.dtype))
        # Degree 1 comes first, in the order x, y, z; a model without directions has no components
        # and no channels, so that nothing is missing from a reshaped (f n, 3, 0).
        shape = (frames, len(numbers))
        directions = steerable[:, :3].reshape(len(species), 3, steerable.shape[2])
        return scalars.unflatten(0, shape), directions.unflatten(0, shape)


def _size(values: Tensor) -> float:
    return 1.0 + float(values.abs().max()) if values.numel() else 1.0
