"""ASE calculator for several potentials at once: their mean, and how far they disagree.

    from calculators import CommitteeCalculator
    atoms.calc = CommitteeCalculator(["runs/a/potential.pt", "runs/b/potential.pt"])

The potentials are usually trained on the same data with different seeds. Units are ASE's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from calculators.ase import ForceFieldCalculator, PotentialCalculator
from calculators.evaluator import DEFAULT_MAX_FORCE
from forcefield.errors import ConfigError
from forcefield.export import ExportedPotential
from forcefield.neighbors import DEFAULT_SKIN


class CommitteeCalculator(ForceFieldCalculator):
    """Means and standard deviations over potentials for ASE; each of them is evaluated.

    Energy, per-atom energies, forces and stress are means, so forces remain the derivative of the
    energy. ``energy_uncertainty`` (eV) is the standard deviation of a member's energy (with n - 1),
    ``forces_uncertainty`` (eV/Å, one number per atom) that of a force component, root mean square over
    the three. They come with every structure at no cost and are not calibrated: those of three
    potentials of ethanol were too small, by a factor of 1.7 for forces and 3 for energies.

    Args:
        potentials: Two or more exported files, or loaded potentials.
        device: Where the models run, ``"cpu"`` or ``"cuda"``; loaded potentials stay where they are.
        dtype: See :class:`~calculators.ase.PotentialCalculator`.
        skin: Likewise.
        max_force: Likewise; for each member by itself.

    Raises:
        CheckpointError: A file is not there, or not an exported potential.
        ConfigError: There are fewer than two, or their elements or units differ.
    """

    def __init__(
        self,
        potentials: Sequence[str | Path | ExportedPotential],
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        skin: float = DEFAULT_SKIN,
        max_force: float = DEFAULT_MAX_FORCE,
    ) -> None:
        super().__init__()
        if isinstance(potentials, str | Path) or len(potentials) < 2:
            raise ConfigError("a committee needs a list of two or more potentials")
        self.members = [
            PotentialCalculator(p, device, dtype, skin, max_force=max_force) for p in potentials
        ]
        first = self.members[0].potential.metadata
        for number, member in enumerate(self.members[1:], start=1):
            for key in ("species", "units"):
                found = member.potential.metadata[key]
                if found != first[key]:
                    raise ConfigError(
                        f"the potentials of a committee do not fit together: {key} of the first are "
                        f"{first[key]}, of number {number + 1} {found}"
                    )

    def evaluate(
        self, structure: Atoms, compute_stress: bool, properties: Sequence[str]
    ) -> dict[str, Any]:
        """Means and standard deviations; see :meth:`ForceFieldCalculator.evaluate`."""
        return combine([m.evaluate(structure, compute_stress, []) for m in self.members])

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """The mean of the members' Hessians; see :meth:`PotentialCalculator.get_hessian`."""
        structure = self._structure(atoms)
        return np.mean([member.get_hessian(structure) for member in self.members], axis=0)


def combine(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations of the members' results for one structure."""
    results: dict[str, Any] = {key: np.mean([r[key] for r in found], axis=0) for key in found[0]}
    variance = np.var([results["forces"] for results in found], axis=0, ddof=1)
    results["energy"] = results["free_energy"] = float(results["energy"])
    results["energy_uncertainty"] = float(np.std([r["energy"] for r in found], ddof=1))
    results["forces_uncertainty"] = np.sqrt(variance.mean(axis=1))
    return results
