"""Second derivatives of the energy, exact, and the vibrations that follow from them.

    from calculators import vibrations
    modes = vibrations(atoms)          # with a PotentialCalculator, at a minimum
    modes.get_frequencies()            # cm⁻¹, imaginary ones for saddle points

The energy depends on the positions through the vectors of pairs; differentiating it twice gives the
Hessian without displacements, and without the choice of their size. What is done with it (masses, modes,
zero-point energy, thermochemistry) is ASE's.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms

from calculators.guard import check_positions
from forcefield.compiled import scripted_module
from forcefield.errors import ConfigError, NonFiniteForceError
from forcefield.graph import edge_vectors

if TYPE_CHECKING:
    from ase.vibrations import VibrationsData

    from calculators.evaluator import Evaluator

ROW_PAIRS = 600
"""Pairs of atoms times rows of the Hessian in one backward pass; fastest on one CPU core."""


def hessian(
    evaluator: "Evaluator",
    positions: np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> np.ndarray:
    """Second derivatives of the energy with respect to positions.

    Of a periodic structure: when all images of an atom move together (the Γ point). It takes about as
    long as six evaluations for each atom.

    Args:
        evaluator: In double precision for all digits; single precision keeps four or five.
        positions: (n, 3), Å.
        cell: (3, 3), Å.
        pbc: (3,), bool.

    Returns:
        (3n, 3n), eV/Å², symmetric; rows and columns run over x, y, z of the first atom, then the second.

    Raises:
        InvalidStructureError: As for an evaluation.
        NonFiniteForceError: A second derivative is NaN or infinite.
    """
    exported = evaluator.potential
    check_positions(evaluator.numbers, positions)
    inputs = evaluator.inputs(positions, cell, pbc)
    points, numbers, edge_index, cell_shifts, box, batch = inputs
    index_of = {z: index for index, z in enumerate(exported.species)}
    species = torch.tensor([index_of[z] for z in numbers.tolist()], device=numbers.device)
    size = points.numel()
    with torch.no_grad():
        distances = edge_vectors(points, edge_index, cell_shifts, box, batch).norm(dim=1)
        near = (distances < exported.cutoff).nonzero().squeeze(1)
    edge_index, cell_shifts = edge_index[:, near], cell_shifts[near]
    if not len(near):
        return np.zeros((size, size))
    with torch.enable_grad():
        points = points.detach().clone().requires_grad_(True)
        vectors = edge_vectors(points, edge_index, cell_shifts, box, batch).to(exported.dtype)
        energies = scripted_module(exported).atomic_energies(species, edge_index, vectors)
        gradient = torch.autograd.grad(energies.sum(), points, create_graph=True)[0].flatten()
        directions = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        rows = [
            torch.autograd.grad(gradient, points, some, retain_graph=True, is_grads_batched=True)[0]
            for some in directions.split(max(1, ROW_PAIRS // len(near)))
        ]
    matrix = torch.cat(rows).reshape(size, size).detach().cpu().numpy()
    if not np.isfinite(matrix).all():
        evaluator(positions, cell, pbc)  # says what is wrong with the structure, if it can
        raise NonFiniteForceError("a second derivative of the energy is not finite")
    return 0.5 * (matrix + matrix.T)


def vibrations(atoms: Atoms, calculator: Any = None) -> "VibrationsData":
    """Harmonic vibrations from the analytic Hessian.

    Atoms that a constraint holds fixed (``FixAtoms``) are left out, as in ASE's own ``Vibrations``.
    Frequencies mean something at a minimum or a saddle point: relax first, to forces below 0.01 eV/Å.

    Args:
        atoms: The structure; a periodic one vibrates with all its cells in phase.
        calculator: With a method ``get_hessian``; by default that of the atoms.

    Returns:
        ASE's ``VibrationsData``: frequencies, modes, zero-point energy, density of states.

    Raises:
        ConfigError: There is no calculator, or one without a Hessian.
    """
    from ase.vibrations import VibrationsData

    calculator = atoms.calc if calculator is None else calculator
    if not hasattr(calculator, "get_hessian"):
        found = "no calculator" if calculator is None else type(calculator).__name__
        raise ConfigError(
            f"vibrations need a calculator with an analytic Hessian (PotentialCalculator), found {found}"
        )
    free = np.asarray(VibrationsData.indices_from_constraints(atoms), dtype=int)
    kept = (3 * free[:, None] + np.arange(3)).ravel()
    matrix = calculator.get_hessian(atoms)
    return VibrationsData.from_2d(atoms, matrix[np.ix_(kept, kept)], free.tolist())
