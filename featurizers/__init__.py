"""Features of trajectories from the representations that potentials are built on."""

from featurizers.trajectory import TrajectoryFeatures, TrajectoryFeaturizer

__all__ = ["TrajectoryFeatures", "TrajectoryFeaturizer"]
