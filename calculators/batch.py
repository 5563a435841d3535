"""Many structures at once: energies, forces and stresses of a list of ASE structures of any sizes.

    from calculators import calculate_many
    results = calculate_many("potential.pt", read("frames.extxyz", ":"))
    results[0]["forces"]

A small molecule leaves a processor waiting for the start of the next small operation most of the time.
Structures that share a call share that time. Units are ASE's.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from calculators.ase import PotentialCalculator, as_results
from calculators.committee import CommitteeCalculator, combine
from calculators.evaluator import (
    DEFAULT_MAX_FORCE,
    Evaluation,
    check_max_force,
    open_potential,
)
from calculators.guard import check_positions, check_results
from forcefield.compiled import runner
from forcefield.errors import ConfigError, ForceFieldError
from forcefield.export import ExportedPotential
from forcefield.graph import AtomicGraph, build_graph, collate
from forcefield.uncertainty import check_uncertainty, predict_uncertainty

PAIRS_PER_CALL = {"cpu": 1000, "cuda": 50_000}
"""Pairs of atoms that share a call. More would leave the caches of a CPU; on a GPU, where a pair takes
some 30 kB, they fill it."""

Source = str | Path | ExportedPotential | PotentialCalculator | CommitteeCalculator


def calculate_many(
    potential: Source,
    structures: Iterable[Atoms],
    *,
    stress: bool = True,
    uncertainty: bool = False,
    max_pairs: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    max_force: float = DEFAULT_MAX_FORCE,
) -> list[dict[str, Any]]:
    """Evaluate structures of any sizes, elements and periodicities, several of them in each call.

    Args:
        potential: Path of the exported file, a loaded potential, or a calculator, whose own settings
            then take the place of ``device``, ``dtype`` and ``max_force``. A committee gives means and
            its own uncertainties.
        structures: Read one after the other, so that a generator need not fit into memory. Their own
            calculators are neither used nor changed.
        stress: Include the stress of structures that are periodic in three directions.
        uncertainty: Estimate errors as well, see :class:`~calculators.ase.PotentialCalculator`.
        max_pairs: Pairs of atoms within the cutoff in one call, for which memory has to be there; a
            structure with more has a call of its own. None for what is fast on the device.
        device: Where to load a file to.
        dtype: Precision, see :class:`~calculators.ase.PotentialCalculator`.
        max_force: eV/Å; a larger force on an atom is an error.

    Returns:
        For each structure ``energy`` and ``free_energy`` (eV), ``energies`` (n,), ``forces`` (n, 3)
        (eV/Å); and where asked for ``stress`` (6,) in ASE's order (eV/Å³), ``energy_uncertainty`` and
        ``forces_uncertainty`` (n,). They agree with those of the calculator to rounding.

    Raises:
        CheckpointError: There is no such file, it is not an exported potential, or it holds no error
            estimate.
        ConfigError: ``max_pairs`` is not a positive number.
        ForceFieldError: A structure cannot be evaluated; of the kind that the calculator raises, with
            the number of the structure.
    """
    if isinstance(structures, (Atoms, str, Path)):
        raise ConfigError(
            f"calculate_many takes a list of structures, found {type(structures).__name__}: [atoms], or "
            'all frames of a file, ase.io.read(file, ":")'
        )
    if isinstance(potential, CommitteeCalculator):
        listed = [atoms.copy() for atoms in structures]
        found = [
            calculate_many(member, listed, stress=stress, max_pairs=max_pairs)
            for member in potential.members
        ]
        return [combine(results) for results in zip(*found, strict=True)]
    if isinstance(potential, PotentialCalculator):
        exported, max_force = potential.potential, potential.max_force
        uncertainty = uncertainty or potential.uncertainty
    else:
        exported, max_force = open_potential(potential, device, dtype), check_max_force(max_force)
    if uncertainty:
        check_uncertainty(exported.module)
    if max_pairs is None:
        max_pairs = PAIRS_PER_CALL.get(exported.device.type, PAIRS_PER_CALL["cuda"])
    if max_pairs < 1:
        raise ConfigError(f"max_pairs is a number of pairs above zero, found {max_pairs!r}")
    model = runner(exported)
    return [
        result
        for chunk in _chunks(exported, structures, max_pairs)
        for result in _evaluate(exported, model, chunk, stress, uncertainty, max_force)
    ]


Chunk = list[tuple[int, Atoms, AtomicGraph]]
"""Structures that share a call, with their numbers."""


def _chunks(
    potential: ExportedPotential, structures: Iterable[Atoms], max_pairs: int
) -> Iterator[Chunk]:
    """Group structures in their order, as many as the number of pairs allows."""
    chunk: Chunk = []
    pairs = 0
    for number, structure in enumerate(structures):
        atoms = structure.copy()  # A generator may move the same atoms on.
        try:
            potential.check_elements(atoms.numbers)
            check_positions(atoms.numbers, atoms.positions)
            graph = build_graph(
                atoms.positions, atoms.numbers, potential.cutoff, atoms.cell.array, atoms.pbc
            )
        except ForceFieldError as error:
            raise _of_structure(number, error) from error
        size = graph.edge_index.shape[1]
        if chunk and pairs + size > max_pairs:
            yield chunk
            chunk, pairs = [], 0
        chunk.append((number, atoms, graph))
        pairs += size
    if chunk:
        yield chunk


def _evaluate(
    potential: ExportedPotential,
    model: Callable[..., dict[str, Tensor]],
    chunk: Chunk,
    stress: bool,
    uncertainty: bool,
    max_force: float,
) -> Iterator[dict[str, Any]]:
    """The results of structures that share a call, one after the other."""
    periodic = [bool(atoms.pbc.all()) for _, atoms, _ in chunk]
    inputs = collate([graph for *_, graph in chunk]).to(potential.device).tensors()
    with torch.enable_grad():
        output = model(*inputs, stress and any(periodic))
    found = {name: value.detach().cpu().numpy() for name, value in output.items()}
    if uncertainty:
        errors = [value.cpu().numpy() for value in predict_uncertainty(potential.module, *inputs)]
    start = 0
    for k, (number, atoms, _) in enumerate(chunk):
        own = slice(start, start + len(atoms))
        start = own.stop
        value = Evaluation(
            energy=float(found["energy"][k]),
            energies=found["energies"][own].copy(),
            forces=found["forces"][own].copy(),
            stress=found["stress"][k] if stress and periodic[k] else None,
        )
        try:
            check_results(
                atoms.numbers,
                atoms.positions,
                atoms.cell.array,
                atoms.pbc,
                value.energy,
                value.forces,
                max_force,
            )
        except ForceFieldError as error:
            raise _of_structure(number, error) from error
        results = as_results(value)
        if uncertainty:
            results["energy_uncertainty"] = float(errors[0][k])
            results["forces_uncertainty"] = errors[1][own].copy()
        yield results


def _of_structure(number: int, error: ForceFieldError) -> ForceFieldError:
    return type(error)(f"structure {number}: {error}")
