"""A small potential with random weights, exported in both precisions, and structures to run it on."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from forcefield import Potential, build_potential, export_potential
from forcefield.libraries import CACHE_VARIABLE

ARCHITECTURE = {
    "name": "hegnn",
    "cutoff": 4.0,
    "layers": 2,
    "features": 16,
    "channels": 4,
    "lmax": 2,
    "radial": 6,
}

SMALL_ARCHITECTURE = {"name": "egnn", "cutoff": 4.0, "layers": 1, "features": 16}
"""Its compilation takes some ten seconds rather than a minute."""


@dataclass(frozen=True)
class Exported:
    """A potential and the file it was exported to."""

    eager: Potential
    path: Path


def _exported(path: Path, dtype: torch.dtype, architecture: dict = ARCHITECTURE) -> Exported:
    generator_state = torch.get_rng_state()
    torch.manual_seed(20)
    # The scale makes forces of ethanol up to about 0.4 eV/Å, total energies those of a real molecule.
    potential = build_potential(
        architecture,
        [1, 6, 8],
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1029.0, 8: -2041.0},
        avg_neighbors=8.0,
    ).to(dtype)
    torch.set_rng_state(generator_state)
    potential.eval().requires_grad_(False)
    export_potential(potential, path, {"note": "random weights"})
    return Exported(potential, path)


@pytest.fixture(scope="session")
def float32_potential(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Random weights, single precision, elements H, C, O."""
    return _exported(tmp_path_factory.mktemp("exported") / "float32.pt", torch.float32)


@pytest.fixture(scope="session")
def float64_potential(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Random weights, double precision, elements H, C, O."""
    return _exported(tmp_path_factory.mktemp("exported") / "float64.pt", torch.float64)


@pytest.fixture(scope="session")
def compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of compiled libraries for all tests: that of the environment, or one for this run."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    folder = os.environ.get(CACHE_VARIABLE) or tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield Path(folder)


@pytest.fixture(scope="session")
def small_potentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """By precision, for tests that compile."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        name: _exported(folder / f"{name}.pt", getattr(torch, name), SMALL_ARCHITECTURE)
        for name in ("float32", "float64")
    }


@dataclass(frozen=True)
class Way:
    """How OpenMM comes to the forces of a potential: engine and options of a force."""

    engine: str
    options: dict[str, bool]
    potential: Exported


def way_of(request: pytest.FixtureRequest, name: str, precision: str = "float64") -> Way:
    """``"torch"``, ``"python"``, or ``"compiled"``: a TorchForce of a small potential, compiled."""
    if name != "compiled":
        return Way(name, {}, request.getfixturevalue(f"{precision}_potential"))
    request.getfixturevalue("compiler_cache")
    return Way("torch", {"compile": True}, request.getfixturevalue("small_potentials")[precision])


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    """By its name, in double precision."""
    return way_of(request, request.param)


@pytest.fixture(scope="session")
def broken_potential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights are so large that its forces overflow."""
    potential = build_potential(
        {"name": "egnn", "cutoff": 4.0, "layers": 1, "features": 8, "radial": 4},
        [1, 6, 8],
        energy_scale=1.0,
        reference_energies={1: 0.0, 6: 0.0, 8: 0.0},
        avg_neighbors=4.0,
    )
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1e30)
    path = tmp_path_factory.mktemp("exported") / "broken.pt"
    export_potential(potential, path, {})
    return path


@pytest.fixture
def ethanol() -> Atoms:
    """Ethanol a little away from its equilibrium, so that no force vanishes by symmetry."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def water_box() -> Atoms:
    """27 water molecules in a sheared periodic cell, 81 atoms: too many for a graph of all pairs."""
    generator = np.random.default_rng(5)
    atoms = Atoms()
    for place in np.ndindex(3, 3, 3):
        water = molecule("H2O")
        water.rotate(generator.uniform(0.0, 360.0), generator.normal(size=3))
        water.translate(3.1 * np.array(place))
        atoms += water
    atoms.set_cell([[9.3, 0.0, 0.0], [2.0, 9.3, 0.0], [-1.5, 3.0, 9.3]])
    atoms.pbc = True
    return atoms
