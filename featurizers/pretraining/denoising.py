"""Denoising of coordinates: positions are disturbed, and a network says how.

S. Zaidi et al., "Pre-training via denoising for molecular property prediction", ICLR 2023, arXiv
2206.00133; geom2vec (arXiv 2409.19838) pretrains its featurizers like this. For a structure at r the
input is r + σ ε with normal ε, the target is ε: of unit variance, whatever the noise level σ. Each
structure has a level of its own; small ones teach stiff bonds and angles, large ones what is further
away. What no network can know is taken out of ε: the motion of the molecule as a rigid body.

Shapes: atoms ``n``, edges ``e``, features ``f``, channels ``c``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forcefield.graph import edge_vectors
from forcefield.potential import Representation, build_potential, index_of_species
from training.datasets.frames import Frame
from training.graphs import LabelledGraph
from training.losses import forces_loss
from training.module import ForceFieldModule
from training.pretraining.storage import Structure


class Denoiser(nn.Module):
    """A representation with a head that predicts the noise of every atom.

    With steerable features X^(1) (3, c) of degree 1 the noise is Σ_c φ_c(h_i) X_i^(1). A model without
    directions gives it as the derivative of a scalar: -d/dr_i Σ_j φ(h_j).

    Args:
        representation: Maps (species, edge_index, vectors) to scalars and steerable features.
        species: Atomic numbers in the order of the species indices.
        channels: Channels of degree 1, 0 for a model without.
    """

    species_index: Tensor

    def __init__(
        self, representation: Representation, species: Sequence[int], channels: int
    ) -> None:
        super().__init__()
        features = representation.features
        self.representation = representation
        self.species = list(species)
        self.channels = channels
        self.head = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, max(1, channels))
        )
        self.register_buffer("species_index", index_of_species(self.species), persistent=False)

    def forward(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        edge_index: Tensor,
        cell_shifts: Tensor,
        cell: Tensor,
        batch: Tensor,
    ) -> dict[str, Tensor]:
        """Predict the noise of a batch; arguments as those of :class:`forcefield.Potential`.

        Returns:
            ``noise`` (n, 3), in units of the noise level.
        """
        vectors = edge_vectors(positions, edge_index, cell_shifts, cell, batch)
        vectors = vectors.to(next(self.parameters()).dtype)
        species = self.species_index.index_select(0, atomic_numbers)
        if self.channels:
            scalars, steerable = self.representation(species, edge_index, vectors)
            noise = (steerable[:, :3] * self.head(scalars).unsqueeze(1)).sum(dim=2)
            return {"noise": noise}
        vectors.requires_grad_(True)
        scalars, _ = self.representation(species, edge_index, vectors)
        (gradient,) = torch.autograd.grad(
            self.head(scalars).sum(), vectors, create_graph=self.training
        )
        noise = torch.zeros_like(positions, dtype=gradient.dtype)
        noise = noise.index_add(0, edge_index[1], gradient)
        return {"noise": noise.index_add(0, edge_index[0], -gradient)}


def build_denoiser(
    architecture: Mapping[str, Any], species: Sequence[int], avg_neighbors: float
) -> tuple[Denoiser, dict[str, Any]]:
    """A denoiser with random weights (from torch's current seed), and its full architecture.

    Args:
        architecture: ``name`` of the representation and its arguments.
        species: Atomic numbers of the elements it shall know.
        avg_neighbors: Average number of neighbours within the cutoff.
    """
    built = build_potential(architecture, species, avg_neighbors=avg_neighbors)
    representation = built.representation
    with torch.no_grad():
        nobody = torch.zeros(1, dtype=torch.int64)
        _, steerable = representation(
            nobody, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3)
        )
    return Denoiser(representation, built.species, steerable.shape[2]), built.architecture


class DenoisingModule(ForceFieldModule):
    """Trains a denoiser; the labels called forces are the noise."""

    columns = ("train_loss", "train_unexplained", "valid_loss", "valid_unexplained")
    num_sums = 3

    def losses(self, prediction: dict[str, Tensor], batch: LabelledGraph) -> tuple[Tensor, Tensor]:
        """Loss of a batch; structures, squares of what is left and of what there was; weighted loss."""
        errors = prediction["noise"] - batch.forces
        atoms = batch.num_atoms.sum()
        loss = forces_loss(errors, atoms, self.config.loss, self.config.huber_delta)
        structures = torch.ones_like(batch.energy).sum()
        sums = [
            structures,
            errors.detach().double().square().sum(),
            batch.forces.double().square().sum(),
            loss.detach() * structures,
        ]
        return loss, torch.stack(sums)

    def summarize(self, sums: Sequence[float]) -> dict[str, float]:
        """Share of the noise's variance that is not predicted: 1 for a network that says nothing."""
        return {"unexplained": sums[1] / max(sums[2], 1e-300)}

    def describe(self, train: dict[str, float], valid: dict[str, float]) -> str:
        """The shares in words."""
        last = f" · valid {valid['unexplained']:.1%}" if valid else ""
        return f"noise not explained train {train['unexplained']:.1%}{last}"


def disturb(structure: Structure, level: float, generator: np.random.Generator) -> Frame:
    """A noisy structure with the noise as its label.

    Args:
        structure: Positions in Å.
        level: σ, Å.
        generator: Source of the noise.
    """
    noise = generator.standard_normal(structure.positions.shape)
    noise = without_rigid_motion(noise, structure.positions)
    return Frame(
        atomic_numbers=structure.numbers,
        positions=structure.positions + level * noise,
        energy=0.0,
        forces=noise,
        source=structure.molecule,
    )


def without_rigid_motion(displacements: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Displacements (n, 3) without translation and infinitesimal rotation of the whole, atoms alike."""
    count = len(positions)
    centred = positions - positions.mean(axis=0)
    axes = np.eye(3)
    motions = [np.broadcast_to(axis, (count, 3)).ravel() for axis in axes]
    motions += [np.cross(axis, centred).ravel() for axis in axes]
    # A linear molecule has one rotation less, an atom none: directions without length drop out.
    left, sizes, _ = np.linalg.svd(np.array(motions).T, full_matrices=False)
    basis = left[:, sizes > 1e-8 * sizes[0]]
    flat = displacements.ravel()
    return (flat - basis @ (basis.T @ flat)).reshape(count, 3)


def disturbed(
    structures: Sequence[Structure], levels: tuple[float, float], copies: int, seed: int
) -> list[Frame]:
    """Noisy copies of structures, each with a level of its own, log-uniform between two.

    Args:
        structures: Positions in Å.
        levels: Lowest and highest σ, Å.
        copies: Copies of each.
        seed: Of levels and noise.
    """
    generator = np.random.default_rng(seed)
    lowest, highest = np.log(levels)
    return [
        disturb(structure, float(np.exp(generator.uniform(lowest, highest))), generator)
        for _ in range(copies)
        for structure in structures
    ]
