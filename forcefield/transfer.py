"""Trained weights as a beginning: fewer elements, and the zero of energy of another level of theory."""

from collections.abc import Sequence

import torch

from forcefield.errors import UnknownElementError
from forcefield.potential import Potential, build_potential


def restrict_species(potential: Potential, species: Sequence[int]) -> Potential:
    """A copy that knows only some of the elements; for those it gives the same energies.

    A potential that is trained on with some elements no longer fits the others, and should not answer
    for them.

    Args:
        potential: With any weights.
        species: Atomic numbers to keep.

    Raises:
        UnknownElementError: The potential does not know one of them.
    """
    from ase.data import chemical_symbols

    kept = sorted({int(z) for z in species})
    unknown = [chemical_symbols[z] for z in kept if z not in potential.species]
    if unknown:
        raise UnknownElementError(
            f"these weights do not know {', '.join(unknown)}; they know "
            f"{', '.join(chemical_symbols[z] for z in potential.species)}"
        )
    smaller = build_potential(potential.architecture, kept, dtype=potential.readout.scale.dtype)
    rows = torch.tensor([potential.species.index(z) for z in kept])
    wanted = smaller.state_dict()
    state = {
        # The tables of elements are the only tensors whose size depends on their number.
        name: tensor if tensor.shape == wanted[name].shape else tensor.index_select(0, rows)
        for name, tensor in potential.state_dict().items()
    }
    smaller.load_state_dict(state)
    return smaller.train(potential.training)


def shift_reference_energies(potential: Potential, shifts: dict[int, float]) -> None:
    """Add an energy to the reference energy of each element, in place.

    Args:
        potential: Changed in place.
        shifts: Atomic number -> eV.
    """
    for z, shift in shifts.items():
        potential.readout.reference_energies[potential.species.index(z)] += shift
