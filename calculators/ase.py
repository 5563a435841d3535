"""ASE calculator for an exported potential.

    from calculators import PotentialCalculator
    atoms.calc = PotentialCalculator("runs/ethanol/potential.pt")

Units are ASE's: Å, eV, eV/Å, eV/Å³.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    all_properties,
)
from ase.outputs import Properties
from ase.stress import full_3x3_to_voigt_6_stress

from calculators.evaluator import (
    DEFAULT_MAX_FORCE,
    Evaluation,
    Evaluator,
    check_max_force,
    open_potential,
)
from calculators.hessian import hessian
from calculators.loading import pack_potential, unpack_potential
from forcefield.export import ExportedPotential
from forcefield.neighbors import DEFAULT_SKIN, check_skin
from forcefield.uncertainty import check_uncertainty

UNCERTAINTIES = frozenset({"energy_uncertainty", "forces_uncertainty"})


class ForceFieldCalculator(Calculator):
    """What the calculators share: results are kept until the structure changes, exactly."""

    implemented_properties = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "energy_uncertainty",
        "forces_uncertainty",
    ]

    def __init__(self) -> None:
        super().__init__()
        self._stress_was_asked = False

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """See ASE's ``Calculator``; notes when the stress is asked for."""
        if name == "stress" and allow_calculation:
            self._stress_was_asked = True
        return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the structure of the last calculation; exactly, not within ``tol``.

        ASE's own comparison looks at every array of the atoms and costs as much as the rest of the
        calculator together.
        """
        last = self.atoms
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        # Bytes compare in a tenth of the time of numpy's ==, which counts for nine atoms.
        return [
            name
            for name, now, before in (
                ("positions", atoms.positions, last.positions),
                ("numbers", atoms.numbers, last.numbers),
                ("cell", atoms.cell.array, last.cell.array),
                ("pbc", atoms.pbc, last.pbc),
            )
            if now.tobytes() != before.tobytes()
        ]

    def _remember(self, atoms: Atoms) -> None:
        """Keep the structure of the calculation, as cheaply as can be: this runs at every step."""
        changes = self.check_state(atoms)
        if self.atoms is None or "numbers" in changes:
            self.atoms = atoms.copy()
        elif changes:
            self.atoms.positions[:] = atoms.positions
            self.atoms.cell.array[:] = atoms.cell.array
            self.atoms.pbc = atoms.pbc

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Evaluate the potential and fill ``results``; see ASE's ``Calculator``.

        Raises:
            UnknownElementError: The structure holds an element that the potential does not know.
            InvalidStructureError: A position is not finite, or the cell is singular.
            NonFiniteForceError: The energy or a force is NaN or infinite.
            AbsurdForceError: The force on an atom is larger than the calculator's ``max_force``.
            PropertyNotImplementedError: The stress was asked for without three periodic directions.
        """
        if atoms is not None:
            if self.check_state(atoms):
                self.results = {}  # Should this fail, those of another structure must not stay.
            self._remember(atoms)
        structure = self._structure(None)
        periodic = bool(structure.pbc.all())
        if properties is not None and "stress" in properties:
            compute_stress = True
            if not periodic:
                raise PropertyNotImplementedError(
                    "the stress is defined for structures that are periodic in three directions, "
                    f"found pbc={structure.pbc.tolist()}"
                )
        else:
            compute_stress = self._stress_was_asked and periodic
            self._stress_was_asked = False
        self.results = {}
        self.results = self.evaluate(structure, compute_stress, properties or [])

    def export_properties(self) -> Properties:
        """Results under the names that ASE knows, as ``Atoms.get_properties`` gives them."""
        known = {name: value for name, value in self.results.items() if name in all_properties}
        return Properties(known)

    def _structure(self, atoms: Atoms | None) -> Atoms:
        """These atoms, or those of the last calculation."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("the calculator needs a structure the first time it is called")
        return structure

    def evaluate(
        self, structure: Atoms, compute_stress: bool, properties: Sequence[str]
    ) -> dict[str, Any]:
        """Results for a structure.

        Args:
            structure: The atoms.
            compute_stress: Include the stress; all directions are periodic then.
            properties: What was asked for.
        """
        raise NotImplementedError


class PotentialCalculator(ForceFieldCalculator):
    """Energies, forces and stress of an exported potential for ASE.

    Energy, per-atom energies and forces come from one call of the model and are kept until the
    structure changes. The stress is computed when it is asked for, and with the forces of the next
    structure: a barostat asks at every step, and pays for one evaluation.
    ``free_energy`` equals ``energy``. A molecule of up to 64 atoms outside a cell is evaluated on
    the fixed graph of all its pairs; anything else gets a neighbour list that is reused.

    ``energy_uncertainty`` (eV) and ``forces_uncertainty`` (eV/Å, one number per atom: the standard
    deviation of a force component) are estimated errors, in ``results`` with every structure if
    ``uncertainty`` is set, else once they are asked for:

        atoms.calc.get_property("forces_uncertainty", atoms)

    They take about as long as 28 evaluations for ethanol and 54 for aspirin (one CPU core).

    Args:
        potential: Path of the exported file (``potential.pt``), or one loaded by
            :func:`forcefield.export.load_exported`, which may serve several calculators.
        device: Where the model runs, ``"cpu"`` or ``"cuda"``; a loaded potential stays where it is.
        dtype: Precision of the model; None for that of the training, ``torch.float64`` to run a
            float32 potential in double precision (vibrations and elastic constants by small steps).
        skin: Å beyond the cutoff up to which pairs are kept in the neighbour list, so that it
            survives small moves.
        uncertainty: Estimate the errors of every structure.
        max_force: eV/Å; a larger force on an atom stops the run with an error that names the atom.
            ``math.inf`` lets every finite force pass.
        compile: Compile the potential for the processor (takes a C++ compiler) or GPU: one to two
            minutes, once for an architecture, and steps in half to a third of the time ever after.

    Raises:
        CheckpointError: There is no such file, it is not an exported potential, or ``uncertainty`` is
            set and it holds no error estimate.
        ConfigError: A double-precision potential is asked to run in single precision, the device is not
            there, ``max_force`` is not a positive number, or ``skin`` is negative or not finite.
        CompilationError: ``compile`` is set and the potential cannot be compiled here.
    """

    def __init__(
        self,
        potential: str | Path | ExportedPotential,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        skin: float = DEFAULT_SKIN,
        uncertainty: bool = False,
        max_force: float = DEFAULT_MAX_FORCE,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.potential = open_potential(potential, device, dtype, compile)
        self.skin = check_skin(skin)
        self.max_force = check_max_force(max_force)
        self.uncertainty = uncertainty
        if uncertainty:
            check_uncertainty(self.potential.module)
        self.evaluator: Evaluator | None = None
        self._precise: tuple[ExportedPotential, ExportedPotential] | None = None

    def evaluate(
        self, structure: Atoms, compute_stress: bool, properties: Sequence[str]
    ) -> dict[str, Any]:
        """Energies, forces, and what else was asked for; see :meth:`ForceFieldCalculator.evaluate`."""
        evaluator = self._evaluator(structure)
        geometry = (structure.positions, structure.cell.array, structure.pbc)
        results = as_results(evaluator(*geometry, compute_stress))
        if self.uncertainty or not UNCERTAINTIES.isdisjoint(properties):
            energy, forces = evaluator.uncertainty(*geometry)
            results |= {"energy_uncertainty": energy, "forces_uncertainty": forces}
        return results

    def get_descriptors(self, atoms: Atoms | None = None) -> np.ndarray:
        """Invariant features of every atom's surroundings: what its energy is a linear function of.

        Inputs of the readout's last layer, minus those of an isolated atom of the element, times its
        energy scale. They do not depend on how the structure is turned, moved or wrapped, change
        smoothly, and atoms in equal surroundings have equal ones: for comparing environments, for
        choosing diverse frames, for clustering.

        Args:
            atoms: The structure; None for that of the last calculation.

        Returns:
            (n, k), eV, float64; k is the number of features of the model.

        Raises:
            UnknownElementError, InvalidStructureError: As for an evaluation.
        """
        structure = self._structure(atoms)
        evaluator = self._evaluator(structure)
        return evaluator.descriptors(structure.positions, structure.cell.array, structure.pbc)

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Second derivatives of the energy, analytic and in double precision.

        For vibrations use :func:`calculators.hessian.vibrations`. Constraints do not count here.

        Args:
            atoms: The structure; None for that of the last calculation.

        Returns:
            (3n, 3n), eV/Å², symmetric; for a periodic structure at the Γ point.

        Raises:
            UnknownElementError, InvalidStructureError, NonFiniteForceError: As for an evaluation.
        """
        structure = self._structure(atoms)
        if self._precise is None or self._precise[0] is not self.potential:
            self._precise = self.potential, open_potential(self.potential, dtype=torch.float64)
        evaluator = Evaluator(self._precise[1], structure.numbers, 0.0, self.max_force)
        return hessian(evaluator, structure.positions, structure.cell.array, structure.pbc)

    def _evaluator(self, structure: Atoms) -> Evaluator:
        """The evaluator of the last calculation if atoms and settings are the same, else a new one."""
        last = self.evaluator
        if (
            last is None
            or last.potential is not self.potential
            or (last.skin, last.max_force) != (self.skin, self.max_force)
            or not np.array_equal(last.numbers, structure.numbers)
        ):
            last = Evaluator(self.potential, structure.numbers, self.skin, self.max_force)
            self.evaluator = last
        return last

    def __getstate__(self) -> dict[str, Any]:
        # For pickle and multiprocessing; what is made on demand is made again.
        packed = pack_potential(self.potential)
        return self.__dict__ | {"potential": packed, "evaluator": None, "_precise": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"potential": unpack_potential(state["potential"])}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PotentialCalculator":
        # A potential does not change: copies share it.
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        for name, value in (self.__dict__ | {"evaluator": None}).items():
            shared = name in {"potential", "_precise"}
            copied.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        return copied


def as_results(value: Evaluation) -> dict[str, Any]:
    """An evaluation in ASE's names and order of the stress."""
    results: dict[str, Any] = {
        "energy": value.energy,
        "free_energy": value.energy,
        "energies": value.energies,
        "forces": value.forces,
    }
    if value.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(value.stress)
    return results
