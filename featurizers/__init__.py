"""Features of trajectories from the representations that potentials are built on."""

from featurizers.features import TrajectoryFeatures
from featurizers.trajectory import TrajectoryFeaturizer

__all__ = ["TrajectoryFeatures", "TrajectoryFeaturizer"]
