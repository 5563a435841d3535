"""Structures and potentials that the tests share."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import settings

from forcefield import Potential, build_graph, build_potential

# The same examples in every run: a failure is there again when one looks for it.
settings.register_profile("reproducible", derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same in every run, too, and whichever tests ran before."""
    torch.manual_seed(0)
    np.random.seed(0)


ARCHITECTURES = {
    "hegnn": {
        "name": "hegnn",
        "cutoff": 4.0,
        "layers": 2,
        "features": 16,
        "channels": 4,
        "lmax": 3,
    },
    "hegnn-published": {
        "name": "hegnn-published",
        "cutoff": 4.0,
        "layers": 2,
        "features": 16,
        "lmax": 3,
    },
    "egnn": {"name": "egnn", "cutoff": 4.0, "layers": 2, "features": 16},
}
"""Small models: the laws they obey do not depend on their size."""

ARCHITECTURES["hegnn-products"] = {**ARCHITECTURES["hegnn"], "lmax": 2, "tensor_product": True}

REFERENCE_ENERGIES = {1: -13.6, 6: -1030.5, 8: -2043.25}


@dataclass(frozen=True)
class Structure:
    """A structure as the tests handle it: positions and cell in Å."""

    positions: np.ndarray
    numbers: np.ndarray
    cell: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)

    def evaluate(self, potential: Potential, stress: bool = False) -> dict[str, np.ndarray]:
        graph = build_graph(self.positions, self.numbers, potential.cutoff, self.cell, self.pbc)
        results = potential(*graph.tensors(), stress)
        return {key: value.detach().numpy() for key, value in results.items()}

    def moved(self, positions: np.ndarray, cell: np.ndarray | None = None) -> "Structure":
        return Structure(positions, self.numbers, self.cell if cell is None else cell, self.pbc)


def make_potential(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Potential:
    torch.manual_seed(seed)
    return build_potential(
        ARCHITECTURES[name],
        [1, 6, 8],
        energy_scale=10.0,
        reference_energies=REFERENCE_ENERGIES,
        avg_neighbors=8.0,
        dtype=dtype,
    ).eval()


@pytest.fixture(params=list(ARCHITECTURES))
def potential(request: pytest.FixtureRequest) -> Potential:
    """Each representation in float64, with random weights."""
    return make_potential(request.param)


@pytest.fixture
def ethanol() -> Structure:
    """A bent and stretched ethanol without any symmetry."""
    positions = np.array(
        [
            [-1.17, 0.25, 0.03],
            [0.08, -0.57, -0.06],
            [1.24, 0.21, 0.24],
            [-1.24, 0.96, -0.81],
            [-2.04, -0.43, -0.02],
            [-1.26, 0.85, 0.98],
            [0.12, -1.01, -1.09],
            [0.02, -1.42, 0.66],
            [1.43, 0.93, -0.42],
        ]
    )
    return Structure(positions, np.array([6, 6, 8, 1, 1, 1, 1, 1, 1]))


@pytest.fixture
def crystal() -> Structure:
    """Eight atoms in a sheared cell that is smaller than the cutoff along one vector."""
    cell = np.array([[3.4, 0.0, 0.0], [0.9, 4.6, 0.0], [-0.7, 1.1, 5.2]])
    rng = np.random.default_rng(7)
    grid = np.array([[i, j, k] for i in (0.1, 0.6) for j in (0.1, 0.6) for k in (0.1, 0.6)])
    positions = (grid + rng.uniform(-0.06, 0.06, (8, 3))) @ cell
    return Structure(positions, np.array([6, 8, 1, 1, 6, 1, 8, 1]), cell, (True, True, True))
