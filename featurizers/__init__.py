"""Features of trajectories from the representations that potentials are built on."""

from featurizers.features import TrajectoryFeatures, concatenate
from featurizers.store import FeatureSet, read_features, write_features
from featurizers.trajectory import TrajectoryFeaturizer

__all__ = [
    "FeatureSet",
    "TrajectoryFeatures",
    "TrajectoryFeaturizer",
    "concatenate",
    "read_features",
    "write_features",
]
