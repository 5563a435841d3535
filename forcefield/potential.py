"""The potential: a representation and a readout, differentiated to forces and stress.

Shapes: atoms ``n``, edges ``e``, structures ``b``, species ``s``.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from forcefield.egnn import EGNN
from forcefield.errors import ConfigError
from forcefield.graph import edge_vectors
from forcefield.hegnn import HEGNN, PublishedHEGNN
from forcefield.readout import EnergyReadout, reference_energies_in_order
from forcefield.uncertainty import LastLayerPosterior

Representation = HEGNN | PublishedHEGNN | EGNN

REPRESENTATIONS: dict[str, type[Representation]] = {
    "hegnn": HEGNN,
    "hegnn-published": PublishedHEGNN,
    "egnn": EGNN,
}
"""Representations by the name that configurations and checkpoints use."""

MAX_ATOMIC_NUMBER = 118


def index_of_species(species: Sequence[int]) -> Tensor:
    """Place in ``species`` of every atomic number, (119,), int64; -1 for those that are not there."""
    index = torch.full((MAX_ATOMIC_NUMBER + 1,), -1, dtype=torch.int64)
    index[torch.tensor(species)] = torch.arange(len(species))
    return index


class Potential(nn.Module):
    """Energy, forces and stress of molecules and crystals.

    The energy depends on the positions through the edge vectors r_ij alone, so one derivative,
    g_ij = dE/dr_ij, gives everything: each pair adds g_ij to F_i and -g_ij to F_j, and
    dE/dε = Σ_ij r_ij ⊗ g_ij. Edge vectors are formed in the precision of the positions, the network
    runs in its own, and atomic energies are summed in float64.

    Args:
        representation: Maps (species, edge_index, vectors) to scalars and steerable features.
        readout: Maps scalars to energies.
        species: Atomic numbers in the order of the species indices.
    """

    cutoff: Final[float]
    species: Final[list[int]]
    species_index: Tensor
    each_species: Tensor

    def __init__(
        self,
        representation: Representation,
        readout: EnergyReadout,
        species: Sequence[int],
    ) -> None:
        super().__init__()
        self.representation = representation
        self.readout = readout
        self.posterior = LastLayerPosterior(representation.features)
        self.species = [int(z) for z in species]
        self.cutoff = representation.cutoff
        self.architecture: dict[str, Any] = {}
        self.register_buffer("species_index", index_of_species(self.species), persistent=False)
        self.register_buffer("each_species", torch.arange(len(self.species)), persistent=False)

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
        """Evaluate a batch of structures.

        In training mode forces and stress carry a graph, so that a loss on them can be
        differentiated; in evaluation mode they do not. Gradients must be enabled.

        Args:
            positions: (n, 3), Å, float32 or float64.
            atomic_numbers: (n,), int64, all of them among ``species``.
            edge_index: Atoms j and i of each pair, each pair once, (2, e), int64.
            cell_shifts: Cell vectors to add to r_j, (e, 3).
            cell: Cell vectors in rows, (b, 3, 3), Å; zeros without a cell.
            batch: Structure of each atom, (n,), int64.
            compute_stress: Also return the stress; the cells must have a volume.

        Returns:
            ``energy`` (b,), float64, eV; ``energies`` per atom (n,), float64, eV; ``forces`` (n, 3),
            eV/Å; and, if asked for, ``stress`` dE/dε / V (b, 3, 3), eV/Å³.
        """
        vectors = edge_vectors(positions, edge_index, cell_shifts, cell, batch)
        vectors = vectors.to(self.readout.scale.dtype)
        if not vectors.requires_grad:
            vectors.requires_grad_(True)

        species = self.species_index.index_select(0, atomic_numbers)
        energies = self.atomic_energies(species, edge_index, vectors)
        gradients = torch.autograd.grad(
            [energies.sum()], [vectors], create_graph=self.training, retain_graph=self.training
        )
        gradient = gradients[0]
        if gradient is None:  # Never: for TorchScript, which types gradients as optional.
            gradient = torch.zeros_like(vectors)
        if not self.training:
            energies, vectors = energies.detach(), vectors.detach()
        return self.collect(
            energies, gradient, vectors, positions, edge_index, cell, batch, compute_stress
        )

    def collect(
        self,
        energies: Tensor,
        gradient: Tensor,
        vectors: Tensor,
        positions: Tensor,
        edge_index: Tensor,
        cell: Tensor,
        batch: Tensor,
        compute_stress: bool,
    ) -> dict[str, Tensor]:
        """From atomic energies (n,) and dE/dr_ij (e, 3) to the results of :meth:`forward`."""
        gradient = gradient.to(positions.dtype)
        result = {
            "energy": energies.new_zeros(cell.shape[0]).index_add(0, batch, energies),
            "energies": energies,
            "forces": torch.zeros_like(positions)
            .index_add(0, edge_index[1], gradient)
            .index_add(0, edge_index[0], -gradient),
        }
        if compute_stress:
            vectors = vectors.to(positions.dtype)
            virial = torch.zeros_like(cell).index_add(
                0,
                batch.index_select(0, edge_index[1]),
                (vectors.unsqueeze(2) * gradient.unsqueeze(1)).to(cell.dtype),
            )
            # Structures without a cell may be among those with one: their stress has no meaning.
            volume = torch.linalg.det(cell).abs().clamp(min=1e-30)
            stress = virial / volume.view(-1, 1, 1)
            result["stress"] = 0.5 * (stress + stress.transpose(1, 2))
        return result

    @torch.jit.export
    def atomic_energies(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> Tensor:
        """Energies of the atoms, (n,), float64, eV, from species indices (n,) and vectors (e, 3)."""
        # One atom of each species without neighbours rides along: its energy is the zero of the scale.
        n = species.shape[0]
        features, _ = self.representation(
            torch.cat([species, self.each_species]), edge_index, vectors
        )
        interaction = self.readout.interaction(features[:n], features[n:], species)
        return interaction.to(torch.float64) + self.readout.reference_energies.index_select(
            0, species
        )

    @torch.jit.export
    def last_layer(self, vectors: Tensor, atomic_numbers: Tensor, edge_index: Tensor) -> Tensor:
        """Inputs of the readout's last layer for :mod:`forcefield.uncertainty`.

        Args:
            vectors: r_j - r_i, (e, 3), Å, in the precision of the network.
            atomic_numbers: (n,).
            edge_index: Atoms j and i of each pair, (2, e).

        Returns:
            (n, k), eV, differentiable with respect to the vectors.
        """
        n = atomic_numbers.shape[0]
        species = self.species_index.index_select(0, atomic_numbers)
        features, _ = self.representation(
            torch.cat([species, self.each_species]), edge_index, vectors
        )
        return self.readout.last_layer(features[:n], features[n:], species)


def build_potential(
    architecture: Mapping[str, Any],
    species: Sequence[int],
    *,
    energy_scale: float = 1.0,
    reference_energies: Mapping[int, float] | None = None,
    avg_neighbors: float = 10.0,
    dtype: torch.dtype = torch.float32,
) -> Potential:
    """Build a potential with random weights (from torch's current seed).

    Args:
        architecture: ``name`` of the representation (hegnn, hegnn-published, egnn) and its arguments.
        species: Atomic numbers of the elements it shall know.
        energy_scale: Scale of atomic energies, eV; usually the RMS of the training forces in eV/Å.
        reference_energies: Atomic number -> energy of the isolated atom or least-squares fit, eV.
        avg_neighbors: Average number of neighbours within the cutoff; an ``avg_neighbors`` among the
            arguments, as checkpoints have it, comes first.
        dtype: Floating-point type of the network.

    Raises:
        ConfigError: Unknown name or argument.
    """
    arguments = {"avg_neighbors": float(avg_neighbors), **architecture}
    name = arguments.pop("name", None)
    if name not in REPRESENTATIONS:
        raise ConfigError(f"unknown model {name!r}; known are {', '.join(REPRESENTATIONS)}")
    ordered = sorted({int(z) for z in species})
    try:
        representation = REPRESENTATIONS[name](num_species=len(ordered), **arguments)
    except TypeError as error:
        raise ConfigError(f"model {name!r} does not take these arguments: {error}") from None
    readout = EnergyReadout(
        representation.features,
        energy_scale,
        reference_energies_in_order(ordered, reference_energies or {}),
    )
    potential = Potential(representation, readout, ordered)
    # Defaults are written out: a file stays readable when they change.
    parameters = inspect.signature(REPRESENTATIONS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    potential.architecture = {"name": name, **defaults, **arguments}
    return potential.to(dtype)
