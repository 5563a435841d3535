"""Universes of MDAnalysis give the features that mdtraj's trajectories give."""

import warnings

import numpy as np
import pytest

from featurizers import TrajectoryFeaturizer
from featurizers.features import concatenate
from featurizers.mdanalysis import pieces
from forcefield.errors import ConfigError, UnknownElementError
from tests.conftest import make_potential
from tests.unit.test_featurizers import close, two_chains

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MDAnalysis = pytest.importorskip("MDAnalysis")


@pytest.fixture
def hegnn() -> TrajectoryFeaturizer:
    return TrajectoryFeaturizer.from_potential(make_potential("hegnn"))


@pytest.fixture
def universe(tmp_path):
    trajectory = two_chains()
    trajectory.unitcell_vectors = np.repeat(np.diag([1.5, 1.6, 1.7])[None], 4, axis=0)
    trajectory[0].save(str(tmp_path / "chains.pdb"))
    trajectory.save(str(tmp_path / "md.xtc"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MDAnalysis.Universe(str(tmp_path / "chains.pdb"), str(tmp_path / "md.xtc"))


def test_features_of_a_universe(hegnn, universe, tmp_path):
    parts = list(hegnn.stream(pieces(universe, chunk=3), tokens="residue"))
    assert [len(part) for part in parts] == [3, 1]
    features = concatenate(parts)
    expected = hegnn.transform_file(
        tmp_path / "md.xtc", top=tmp_path / "chains.pdb", tokens="residue"
    )
    assert features.labels == expected.labels == ("A:GLY1", "A:GLY2", "B:GLY2", "B:GLY3")
    np.testing.assert_allclose(features.scalars, expected.scalars, rtol=0, atol=2e-5)
    np.testing.assert_allclose(features.vectors, expected.vectors, rtol=0, atol=2e-5)


def test_part_of_the_atoms(hegnn, universe):
    group = universe.select_atoms("segid A")
    features = concatenate(list(hegnn.stream(pieces(group, stride=2), periodic=False)))
    assert features.scalars.shape[:2] == (2, 6)
    universe.trajectory[0]
    close(features.positions[0], group.positions)


def test_what_is_refused(universe):
    with pytest.raises(ConfigError, match="start at 1"):
        next(pieces(universe, stride=0))
    universe.atoms[3].element = "Xx"
    with pytest.raises(UnknownElementError, match=r"atom 3 .* 'Xx'"):
        next(pieces(universe))
    universe.del_TopologyAttr("elements")
    with pytest.raises(UnknownElementError, match="no elements"):
        next(pieces(universe))
