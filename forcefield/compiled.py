"""Potentials compiled to machine code for one processor or GPU, for programs that call them from Python.

TorchScript interprets a graph of small operations; torch's inductor fuses them into loops. The
unrolled potential (:mod:`forcefield.unrolled`), with edge vectors before and the sums of forces after
it, is compiled ahead of time to a library. It takes one to two minutes, once: the library stays in a
cache folder and serves every potential of the same architecture, weights are put in when it is
loaded. For a few molecules on a GPU there are kernels written for them, see :mod:`forcefield.fused`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from forcefield.compiled_pieces import compile_pieces
from forcefield.errors import CompilationError
from forcefield.export import ExportedPotential, rebuild
from forcefield.fused import FusedPotential, small_enough, supports
from forcefield.libraries import Shelf, Source, example_pairs
from forcefield.pieces import MANY_PAIRS, Interpreted, PieceWisePotential, has_pieces
from forcefield.potential import Potential
from forcefield.readout import EnergyReadout
from forcefield.uncertainty import LastLayerPosterior

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference from the interpreted potential at the first call, eV/Å and eV per atom. In a
single-precision file that runs in double precision the constants were rounded when it was exported."""

LOOSER_WITH_TF32 = 30.0
"""Factor of these where the user lets a GPU round the factors of products to ten bits (TF32)."""

log = logging.getLogger(__name__)


class CompiledModule(nn.Module):
    """What stands in for the scripted module of an :class:`~forcefield.export.ExportedPotential`.

    Lone atoms and lone pairs go through the scripted module, many pairs in pieces through libraries of
    their own, everything else through the library. First results are compared with interpreted ones.

    Args:
        scripted: The exported potential's module.
        library: (positions, numbers, edge_index, cell_shifts, cell, batch) -> energy, energies, forces,
            virial; contiguous tensors.
        dtype: Of the network.
        make_pieces: Gives the potential in pieces, compiled and interpreted; None if it has none.
        fused: What runs small systems instead of the library, if there is something.
    """

    def __init__(
        self,
        scripted: torch.jit.ScriptModule,
        library: Callable[..., Sequence[Tensor]],
        dtype: torch.dtype,
        make_pieces: Callable[[], tuple[PieceWisePotential, PieceWisePotential]] | None = None,
        fused: FusedPotential | None = None,
    ) -> None:
        super().__init__()
        self.scripted = scripted
        self.library = library
        self.tolerance = TOLERANCES[dtype]
        self.fused = fused
        self.checked: set[object] = set()
        self.make_pieces = make_pieces
        self.pieces: PieceWisePotential | None = None

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
        inputs = (positions, atomic_numbers, edge_index, cell_shifts, cell, batch)
        pairs = edge_index.shape[1]
        if len(positions) < 2 or pairs < 2:
            return self.scripted(*inputs, compute_stress)
        if self.make_pieces is not None and pairs > MANY_PAIRS[positions.device.type]:
            return self._in_pieces(self.make_pieces, inputs, compute_stress)
        step: Callable[..., Sequence[Tensor]] = self.library
        if self.fused is not None and small_enough(len(positions), pairs):
            step = self.fused
        with torch.no_grad():
            energy, energies, forces, virial = step(*inputs)
        result = {"energy": energy, "energies": energies, "forces": forces}
        if compute_stress:
            result["stress"] = virial / torch.linalg.det(cell).abs().view(-1, 1, 1)
        if step not in self.checked:
            # Files exported before derivatives were unrolled differentiate.
            self._compare(result, self.scripted(*inputs, compute_stress))
            self.checked.add(step)
        return result

    def _in_pieces(
        self,
        make_pieces: Callable[[], tuple[PieceWisePotential, PieceWisePotential]],
        inputs: tuple[Tensor, ...],
        compute_stress: bool,
    ) -> dict[str, Tensor]:
        if self.pieces is not None:
            return self.pieces(*inputs, compute_stress)
        self.pieces, interpreted = make_pieces()
        result: dict[str, Tensor] = self.pieces(*inputs, compute_stress)
        self._compare(result, interpreted(*inputs, compute_stress))
        return result

    def _compare(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        tolerance = self.tolerance
        if torch.get_float32_matmul_precision() != "highest":
            tolerance *= LOOSER_WITH_TF32
        for name in ("energies", "forces"):
            difference = float((found[name] - expected[name]).abs().max())
            # Where both are not finite it is for others to complain.
            scale = 1.0 + float(expected[name].abs().max() if name == "forces" else 0.0)
            if difference > tolerance * scale:
                raise CompilationError(
                    f"the compiled potential differs from the interpreted one by {difference:.1e} in "
                    f"{name} (eV, Å): this torch ({torch.__version__}) compiles it wrongly; run "
                    "without compile=True"
                )


def compile_exported(exported: ExportedPotential) -> ExportedPotential:
    """Compile an exported potential for where it is, or take the library from the cache.

    Args:
        exported: On the CPU or a CUDA device.

    Returns:
        The potential with a :class:`CompiledModule`; results agree to rounding. On a CPU its loops run
        on one thread, and products of matrices on as many as torch has.

    Raises:
        CompilationError: There is no C++ compiler, or torch cannot compile it.
    """
    if is_compiled(exported):
        return exported
    device = exported.device
    if device.type not in MANY_PAIRS:
        raise CompilationError(f"compile=True is for CPUs and CUDA devices, not for {device}")
    shelf = Shelf(exported)
    if device.type == "cpu" and not shelf.has("step"):
        log.warning(
            "compiling the potential for this processor: one to two minutes, once for its "
            "architecture (kept in %s)",
            shelf.folder,
        )
    library = shelf.take("step", "step", partial(_whole_step, exported))
    pieces = None
    if has_pieces(exported):
        pieces = partial(compile_pieces, exported, shelf)
    module = CompiledModule(
        exported.module, library, exported.dtype, pieces, _fused_or_none(exported)
    )
    return ExportedPotential(module, exported.metadata)


def _fused_or_none(exported: ExportedPotential) -> FusedPotential | None:
    """What runs small systems on a GPU in few kernels, where there is such a thing."""
    if exported.device.type != "cuda" or not supports(exported):
        return None
    try:
        return FusedPotential(exported)
    except Exception as error:  # Triton and the driver raise many kinds.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        log.warning(
            "small systems run slower than they could: Triton cannot compile for %s (%s)",
            torch.cuda.get_device_name(exported.device),
            reason,
        )
        return None


def is_compiled(exported: ExportedPotential) -> bool:
    """Whether a potential came from :func:`compile_exported`."""
    return isinstance(exported.module, CompiledModule)


def runner(exported: ExportedPotential) -> Callable[..., dict[str, Tensor]]:
    """What evaluates a potential fastest, compiled or not; called as :meth:`Potential.forward`."""
    model: Callable[..., dict[str, Tensor]] = (
        exported.module if is_compiled(exported) else Interpreted(exported)
    )
    return model


def scripted_module(exported: ExportedPotential) -> torch.jit.ScriptModule:
    """The TorchScript module of a potential, compiled or not."""
    module: torch.jit.ScriptModule = (
        exported.module.scripted if is_compiled(exported) else exported.module
    )
    return module


class _Step(nn.Module):
    """A batch of structures: positions in, energies, forces and virials out, nothing to differentiate."""

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
        batch: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        j, i = edge_index[0], edge_index[1]
        # Not edge_vectors, which has another way for a single structure: one library serves both.
        edge_cell = cell.index_select(0, batch.index_select(0, i))
        vectors = positions.index_select(0, j) - positions.index_select(0, i)
        vectors = vectors + (cell_shifts.unsqueeze(2) * edge_cell).sum(1)
        species = self.species_index.index_select(0, atomic_numbers)
        interaction, gradient = self.derivatives(species, edge_index, vectors.to(self.dtype))
        energies = interaction.to(torch.float64) + self.reference_energies.index_select(0, species)
        energy = energies.new_zeros(cell.shape[0]).index_add(0, batch, energies)
        gradient = gradient.to(positions.dtype)
        forces = torch.zeros_like(positions).index_add(0, i, gradient).index_add(0, j, -gradient)
        # By atoms first: all pairs of a structure adding to nine numbers would wait for each other.
        virial = (vectors.unsqueeze(2) * gradient.unsqueeze(1)).flatten(1)
        virial = virial.new_zeros((positions.shape[0], 9)).index_add(0, i, virial)
        virial = virial.new_zeros((cell.shape[0], 9)).index_add(0, batch, virial).view(-1, 3, 3)
        return energy, energies, forces, 0.5 * (virial + virial.transpose(1, 2))


def _whole_step(exported: ExportedPotential) -> Source:
    step = _Step(rebuild(exported))
    n, e, b = 7, 11, 3
    examples = (
        torch.rand(n, 3, dtype=torch.float64),
        torch.ones(n, dtype=torch.int64),
        example_pairs(n, e),
        torch.zeros(e, 3, dtype=torch.float64),
        torch.zeros(b, 3, 3, dtype=torch.float64),
        torch.zeros(n, dtype=torch.int64),
    )
    axes = ((0, "atoms"), (0, "atoms"), (1, "pairs"), (0, "pairs"), (0, "structures"), (0, "atoms"))
    device = exported.device
    return Source(step, [tensor.to(device) for tensor in examples], axes, {"structures": 1})
