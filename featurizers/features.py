"""Features of the tokens of every frame of a trajectory.

Shapes: frames ``f``, tokens ``t``, channels ``c``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forcefield.errors import DataError


@dataclass(frozen=True)
class TrajectoryFeatures:
    """Features of the tokens of every frame.

    Attributes:
        scalars: Unchanged by rotations and reflections, (f, t, c), float32.
        vectors: Turn with the frame, (f, t, 3, c), float32, components x, y, z; for a model without
            directions c = 0.
        positions: Mean position of the atoms of each token, (f, t, 3), Å, float32, neither aligned nor
            moved to the origin. Molecules that a unit cell cuts are made whole first.
        labels: Name of each token, t of them.
    """

    scalars: np.ndarray
    vectors: np.ndarray
    positions: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.scalars)

    def __getitem__(self, frames: slice) -> "TrajectoryFeatures":
        """Features of some of the frames."""
        return TrajectoryFeatures(
            self.scalars[frames], self.vectors[frames], self.positions[frames], self.labels
        )


def concatenate(parts: Sequence[TrajectoryFeatures]) -> TrajectoryFeatures:
    """Join pieces of a trajectory, one behind the other.

    Raises:
        DataError: There are none, or their tokens differ.
    """
    if not parts:
        raise DataError("there are no frames")
    for part in parts[1:]:
        if part.labels != parts[0].labels:
            raise DataError("features of different tokens cannot be joined")
    return TrajectoryFeatures(
        np.concatenate([part.scalars for part in parts]),
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.positions for part in parts]),
        parts[0].labels,
    )
