"""One self-describing TorchScript file: what ASE, OpenMM and C++ programs load.

TorchScript is deprecated in torch, and it is what OpenMM's TorchForce loads; everything that depends
on it is in this file and in the engine's own.
"""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcefield.checkpoint import FORMAT, check_format_version, describe
from forcefield.errors import CheckpointError, UnknownElementError
from forcefield.graph import edge_vectors
from forcefield.memory import keep_freed_memory
from forcefield.potential import Potential, build_potential

_HEADER = "hegnn-forcefield.json"


@dataclass(frozen=True)
class ExportedPotential:
    """A potential as it runs in simulations.

    Attributes:
        module: Scripted module with the signature of :meth:`forcefield.potential.Potential.forward`, or
            the compiled one that stands in for it (:mod:`forcefield.compiled`).
        metadata: Header of the file: architecture, species, cutoff (Å), units, dtype, versions, and
            what was known of the training.
    """

    module: Any
    metadata: dict[str, Any]

    @property
    def cutoff(self) -> float:
        """Cutoff radius, Å."""
        return float(self.metadata["cutoff"])

    @property
    def species(self) -> list[int]:
        """Atomic numbers of the elements it knows."""
        return [int(z) for z in self.metadata["species"]]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return getattr(torch, self.metadata["dtype"])

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        device: torch.device = next(self.module.parameters()).device
        return device

    def check_elements(self, atomic_numbers: Iterable[int]) -> None:
        """Raise :class:`UnknownElementError` for the first atom of an element it was not trained on."""
        from ase.data import chemical_symbols

        known = set(self.species)
        for index, z in enumerate(atomic_numbers):
            if int(z) not in known:
                name = chemical_symbols[int(z)] if 0 <= int(z) < len(chemical_symbols) else "?"
                raise UnknownElementError(
                    f"atom {index} is {name} (Z = {int(z)}); this potential was trained on "
                    f"{', '.join(chemical_symbols[s] for s in self.species)} only"
                )


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated: users of our files cannot act on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


class Deployed(Potential):
    """A potential for evaluation, whose derivative is unrolled: no autograd at any step.

    ``forward`` takes and gives what :meth:`Potential.forward` does in evaluation mode; nothing that it
    gives can be differentiated. ``atomic_energies`` and ``last_layer`` can.
    """

    def __init__(self, potential: Potential) -> None:
        # Tracing takes longer to import than a potential takes to load.
        from forcefield.unrolled import for_torchscript, unroll

        super().__init__(potential.representation, potential.readout, potential.species)
        self.posterior = potential.posterior
        self.derivatives = for_torchscript(unroll(potential))

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
        """Evaluate a batch of structures; see :meth:`Potential.forward`."""
        positions = positions.detach()
        vectors = edge_vectors(positions, edge_index, cell_shifts, cell.detach(), batch)
        vectors = vectors.to(self.readout.scale.dtype)
        species = self.species_index.index_select(0, atomic_numbers)
        interaction, gradient = self.derivatives(species, edge_index, vectors)
        references = self.readout.reference_energies.index_select(0, species)
        energies = interaction.to(torch.float64) + references
        return self.collect(
            energies, gradient, vectors, positions, edge_index, cell, batch, compute_stress
        )


def script(potential: Potential) -> torch.jit.ScriptModule:
    """Unroll a copy for evaluation and compile it with TorchScript.

    Parameters that require a gradient would make TorchScript's fuser run the model at half speed, so
    they do not.
    """
    with quiet_torchscript():
        module = Deployed(copy.deepcopy(potential).eval().requires_grad_(False)).eval()
        # The architecture, a dictionary of anything, is for Python only.
        warnings.filterwarnings("ignore", message=".*instance-level annotations.*")
        return torch.jit.script(module)


def export_potential(
    potential: Potential, path: str | Path, metadata: dict[str, Any] | None = None
) -> None:
    """Write one TorchScript file with its description inside.

    Args:
        potential: On any device; the file is written for the CPU and loads on every device.
        path: Usually ``potential.pt``. Replaced only once the new file is complete.
        metadata: JSON-serialisable facts to keep with it (training summary, data hash).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = describe(potential, metadata) | {"torch": torch.__version__}
    module = script(potential).cpu()
    temporary = path.with_name(path.name + ".part")
    with quiet_torchscript():
        torch.jit.save(module, str(temporary), _extra_files={_HEADER: json.dumps(header)})
    temporary.replace(path)


def load_exported(path: str | Path, device: str | torch.device = "cpu") -> ExportedPotential:
    """Load an exported potential and check that it is one.

    Args:
        path: File written by :func:`export_potential`.
        device: Where to run it.

    Raises:
        CheckpointError: No such file, not an exported potential, or one of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no exported potential at {path}")
    prepare_process()
    extra = {_HEADER: ""}
    try:
        with quiet_torchscript():
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        hint = (
            " (a weights file: run export-potential on it)" if path.suffix == ".safetensors" else ""
        )
        raise CheckpointError(
            f"{path} is not a TorchScript file{hint}: {str(error).splitlines()[0]}"
        ) from None
    header = json.loads(extra[_HEADER] or "{}")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a TorchScript file, but not one written by export-potential: it lacks the "
            f"description of elements, cutoff and units"
        )
    check_format_version(header, path)
    return ExportedPotential(module=module.eval(), metadata=header)


def prepare_process() -> None:
    """What a process needs before it runs exported potentials, wherever they come from.

    Freed memory stays with it, and TorchScript's fuser of operations for GPUs is off. That looks at the
    first calls and then writes kernels of its own; those it makes of the unrolled graph turn numbers into
    integers (torch 2.11), and where steps are recorded, or compiled, it has nothing to gain. A
    potential that was loaded to the CPU may be moved to a GPU later: OpenMM's plugin does so.
    """
    keep_freed_memory()
    switch = getattr(torch._C, "_jit_set_texpr_fuser_enabled", None)
    if switch is not None:
        switch(False)


def rebuild(exported: ExportedPotential) -> Potential:
    """The potential that a file was exported from, where the file was loaded to; for evaluation.

    Args:
        exported: Not compiled.
    """
    header = exported.metadata
    potential = build_potential(header["architecture"], header["species"], dtype=exported.dtype)
    state = exported.module.state_dict()
    potential.load_state_dict({name: state[name] for name in potential.state_dict()})
    # Constants that follow from the architecture, too: in double precision those of a file that was
    # exported in single precision are rounded, and all engines shall agree.
    for name, buffer in potential.named_buffers():
        if name in state:
            buffer.copy_(state[name])
    return potential.to(exported.device).eval().requires_grad_(False)
