"""From atomic features to atomic energies, and the reference energies they are counted from.

Shapes: atoms ``n``, features ``f``, species ``s``, frames ``b``.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class EnergyReadout(nn.Module):
    """E_i = σ_Z φ(h_i) + E0_Z, with the energy scale σ and the reference energy E0 of each element.

    φ and σ are learned. E0 stays what it was set to, in float64: total energies of molecules are of
    order 1e4 eV, where float32 resolves 1 meV at best.

    Args:
        features: Scalars per atom f.
        energy_scale: Initial σ of all elements, eV.
        reference_energies: E0 of each species, in the order of their indices, eV.
    """

    reference_energies: Tensor

    def __init__(
        self, features: int, energy_scale: float, reference_energies: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1)
        )
        self.scale = nn.Parameter(torch.full((len(reference_energies), 1), float(energy_scale)))
        self.register_buffer(
            "reference_energies", torch.tensor(list(reference_energies), dtype=torch.float64)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EnergyReadout":
        """Move and convert, but keep the reference energies in float64."""
        exact = self.reference_energies
        super()._apply(fn, recurse)
        self.reference_energies = exact.to(self.scale.device)
        return self

    def interaction(self, features: Tensor, isolated: Tensor, species: Tensor) -> Tensor:
        """Energy of each atom relative to the isolated atom, (n,), eV.

        Args:
            features: Features of the atoms, (n, f).
            isolated: Features of an atom of each species without any neighbour, (s, f). Their energy
                is subtracted, so that a lone atom has exactly its reference energy.
            species: Species index of the atoms, (n,).
        """
        interaction = self.network(features) - self.network(isolated).index_select(0, species)
        return (interaction * self.scale.index_select(0, species)).squeeze(1)

    def last_layer(self, features: Tensor, isolated: Tensor, species: Tensor) -> Tensor:
        """What the last layer's weights multiply to give :meth:`interaction`, (n, f), eV.

        With a for φ without its last layer: σ_Z (a(h_i) - a(h_Z)); the last layer's bias cancels.
        """
        inputs = self.network[1](self.network[0](features))
        origin = self.network[1](self.network[0](isolated)).index_select(0, species)
        return (inputs - origin) * self.scale.index_select(0, species)


def fit_reference_energies(
    atomic_numbers: Sequence[np.ndarray], energies: Sequence[float] | np.ndarray
) -> dict[int, float]:
    """Energies per element that reproduce total energies best, by least squares.

    Without isolated atoms in the data this is the usual choice. If the compositions do not determine
    every element (a single molecule, say), the solution that shares the mean energy in proportion to
    the counts is returned: the one of least norm.

    Args:
        atomic_numbers: Atomic numbers of each frame, b arrays of any lengths.
        energies: Total energies, (b,), eV.

    Returns:
        Atomic number -> energy, eV.
    """
    elements = sorted({int(z) for numbers in atomic_numbers for z in np.unique(numbers)})
    counts = np.array(
        [[np.count_nonzero(numbers == z) for z in elements] for numbers in atomic_numbers],
        dtype=float,
    )
    solution = np.linalg.lstsq(counts, np.asarray(energies, dtype=np.float64), rcond=None)[0]
    return {z: float(value) for z, value in zip(elements, solution, strict=True)}


def reference_energies_in_order(
    species: Sequence[int], reference_energies: Mapping[int, float]
) -> list[float]:
    """Reference energies in the order of species indices; elements that have none count from zero."""
    return [float(reference_energies.get(z, 0.0)) for z in species]
