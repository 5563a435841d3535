"""What degrees can and cannot see: HEGNN's degeneracy table, and angles that distances miss.

Table: Cen et al., arXiv 2410.11443, theorems 3.4 to 3.6 and section 5.1. A feature of degree l that
is a symmetric function of a structure with symmetry group H vanishes unless ρ^(l)(H) fixes a vector.
"""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from forcefield.basis import SphericalHarmonics, num_components
from forcefield.hegnn import HEGNN, PublishedHEGNN
from forcefield.neighbors import all_pairs
from tests.conftest import Structure, make_potential

LMAX = 10
GOLDEN = (1 + 5**0.5) / 2


def polygon(folds: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(folds) / folds
    return np.column_stack([np.cos(angles), np.sin(angles), np.zeros(folds)])


def signs(*rows: tuple[float, float, float]) -> np.ndarray:
    """The rows with every combination of signs, each point once, on the unit sphere."""
    points = [np.array(r) * (1 - 2 * np.array(s)) for r in rows for s in np.ndindex(2, 2, 2)]
    unique = np.unique(np.round(points, 12) + 0.0, axis=0)
    return unique / np.linalg.norm(unique, axis=1, keepdims=True)


def cyclic(a: float, b: float, c: float) -> list[tuple[float, float, float]]:
    return [(a, b, c), (b, c, a), (c, a, b)]


ODD = set(range(1, LMAX + 1, 2))
STRUCTURES: dict[str, tuple[np.ndarray, set[int]]] = {
    "2-fold": (polygon(2), ODD),
    "3-fold": (polygon(3), {1}),
    "4-fold": (polygon(4), ODD),
    "5-fold": (polygon(5), {1, 3}),
    "6-fold": (polygon(6), ODD),
    "7-fold": (polygon(7), {1, 3, 5}),
    "10-fold": (polygon(10), ODD),
    "tetrahedron": (
        np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5,
        {1, 2, 5},
    ),
    "cube": (signs((1, 1, 1)), {2} | ODD),
    "octahedron": (signs(*cyclic(1, 0, 0)), {2} | ODD),
    "icosahedron": (signs(*cyclic(0, 1, GOLDEN)), {2, 4, 8, 14} | ODD),
    "dodecahedron": (signs((1, 1, 1), *cyclic(0, 1 / GOLDEN, GOLDEN)), {2, 4, 8, 14} | ODD),
}
FIRST_DEGREE = {"tetrahedron": 3, "cube": 4, "octahedron": 4, "icosahedron": 6, "dodecahedron": 6}
"""Lowest degree that a structure does not degenerate; 2 for all polygons."""

VERTICES = {"cube": 8, "octahedron": 6, "icosahedron": 12, "dodecahedron": 20}


def degree_norms(features: torch.Tensor, lmax: int) -> dict[int, float]:
    """Norm of each degree of features (m, ...)."""
    parts = features.split([2 * degree + 1 for degree in range(1, lmax + 1)])
    return {degree: part.norm().item() for degree, part in enumerate(parts, start=1)}


def model_features(points: np.ndarray, model: HEGNN | PublishedHEGNN) -> torch.Tensor:
    """Steerable features (m, c) of an atom at the centre, whose neighbours are the vertices.

    Summed over the vertices alone, odd degrees would cancel pair by pair whatever the structure,
    since Y(-r) = -Y(r).
    """
    positions = torch.tensor(np.vstack([np.zeros(3), points * 1.4]))
    edges = all_pairs(len(positions))
    vectors = positions[edges[0]] - positions[edges[1]]
    species = torch.tensor([0] + [1] * len(points))
    with torch.no_grad():
        _, x = model(species, edges, vectors)
    return x[0]


def build(cls: type, lmax: int) -> HEGNN | PublishedHEGNN:
    torch.manual_seed(1)
    return cls(num_species=2, cutoff=5.0, layers=2, features=16, lmax=lmax).to(torch.float64)


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_harmonics_vanish_exactly_where_the_table_says(name):
    points, degenerate = STRUCTURES[name]
    if name in VERTICES:
        assert len(points) == VERTICES[name]
    tilted = torch.tensor(points @ Rotation.from_rotvec([0.3, 0.8, -0.5]).as_matrix().T)
    norms = degree_norms(SphericalHarmonics(LMAX)(tilted).sum(0), LMAX)
    for degree, norm in norms.items():
        assert (norm < 1e-10) == (degree in degenerate), (degree, norm)


@pytest.mark.parametrize("cls", [HEGNN, PublishedHEGNN])
@pytest.mark.parametrize("name", list(STRUCTURES))
def test_features_of_the_models_vanish_with_them(name, cls):
    points, degenerate = STRUCTURES[name]
    tilted = points @ Rotation.from_rotvec([0.3, 0.8, -0.5]).as_matrix().T
    norms = degree_norms(model_features(tilted, build(cls, 6)), 6)
    largest = max(norms.values())
    for degree, norm in norms.items():
        if degree in degenerate:
            assert norm < 1e-9 * max(largest, 1e-3), (degree, norm)
        else:
            assert norm > 1e-6, (degree, norm)


@pytest.mark.parametrize("cls", [HEGNN, PublishedHEGNN])
@pytest.mark.parametrize("name", list(STRUCTURES))
def test_orientation_is_seen_from_the_first_degree_that_is_not_degenerate(name, cls):
    """Features of degrees up to L tell a structure from its rotated copy from L = first degree on."""
    points, _ = STRUCTURES[name]
    rotation = Rotation.from_rotvec([0.5, -0.2, 0.9]).as_matrix()
    for lmax in range(1, 7):
        model = build(cls, lmax)
        before = model_features(points, model)
        after = model_features(points @ rotation.T, model)
        differs = (before - after).abs().max().item() > 1e-7
        assert differs == (lmax >= FIRST_DEGREE.get(name, 2)), lmax


def test_degrees_see_an_angle_that_distances_within_the_cutoff_do_not():
    """A - B - C with A and C out of each other's reach: only the angle at B changes."""

    def chain(angle: float) -> Structure:
        angle = np.deg2rad(angle)
        positions = 2.6 * np.array([[1, 0, 0], [0, 0, 0], [np.cos(angle), np.sin(angle), 0]])
        return Structure(positions, np.array([8, 6, 1]))

    narrow, wide = chain(110), chain(140)
    for structure in (narrow, wide):
        assert np.linalg.norm(structure.positions[0] - structure.positions[2]) > 4.0
    egnn, hegnn = make_potential("egnn"), make_potential("hegnn")
    assert narrow.evaluate(egnn)["energy"] == pytest.approx(
        wide.evaluate(egnn)["energy"], abs=1e-10
    )
    assert abs(narrow.evaluate(hegnn)["energy"] - wide.evaluate(hegnn)["energy"]) > 1e-5


def test_the_energy_cannot_tell_mirror_images_apart(ethanol: Structure):
    """Inner products of harmonics are true scalars: right for a potential energy surface."""
    hegnn = make_potential("hegnn")
    mirrored = ethanol.moved(ethanol.positions * np.array([1, 1, -1]))
    assert ethanol.evaluate(hegnn)["energy"] == pytest.approx(mirrored.evaluate(hegnn)["energy"])


def test_number_of_components():
    assert [num_components(lmax) for lmax in (1, 2, 3, 6)] == [3, 8, 15, 48]
