"""The features of all trajectories, one behind the other, in tensors.

Shapes: frames ``f``, frames of a batch ``b``, tokens ``t``, channels ``c`` and ``cv``, coordinates ``k``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from featurizers.features import TrajectoryFeatures
from forcefield.errors import DataError

BATCH = 2048
"""Frames evaluated at a time."""


@dataclass(frozen=True)
class Frames:
    """Features of all frames of all trajectories.

    Attributes:
        scalars: (f, t, c).
        vectors: (f, t, 3, cv).
        positions: Å, (f, t, 3).
        bounds: First frame of each trajectory, and behind the last one f.
        labels: Names of the tokens.
    """

    scalars: Tensor
    vectors: Tensor
    positions: Tensor
    bounds: tuple[int, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scalars)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars, vectors and positions of some frames: the arguments of a network."""
        return self.scalars[index], self.vectors[index], self.positions[index]

    def cut(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all frames (f, ...), for each trajectory."""
        return np.split(values, self.bounds[1:-1])

    def origin(self, frame: int) -> tuple[int, int]:
        """Trajectory and frame in it, both counted from 0."""
        trajectory = int(np.searchsorted(self.bounds, frame, side="right")) - 1
        return trajectory, frame - self.bounds[trajectory]


def join(trajectories: Sequence[TrajectoryFeatures]) -> Frames:
    """Put the features of trajectories one behind the other.

    Raises:
        DataError: There are no frames, the tokens differ, or a feature is not finite.
    """
    if not any(len(trajectory) for trajectory in trajectories):
        raise DataError("there are no frames to analyse")
    for k, trajectory in enumerate(trajectories):
        if trajectory.labels != trajectories[0].labels:
            raise DataError(
                f"trajectories 0 and {k} have different tokens: featurise them with the same options"
            )
        for values in (trajectory.scalars, trajectory.vectors, trajectory.positions):
            finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if not finite.all():
                frame = int(np.argmin(finite))
                raise DataError(
                    f"trajectory {k}, frame {frame} (both counted from 0): its features are not "
                    "finite. Leave the frame out, or featurise again"
                )
    scalars, vectors, positions = (
        torch.from_numpy(np.concatenate([getattr(t, name) for t in trajectories]))
        for name in ("scalars", "vectors", "positions")
    )
    bounds = np.cumsum([0, *map(len, trajectories)]).tolist()
    return Frames(scalars, vectors, positions, tuple(bounds), tuple(trajectories[0].labels))


@torch.no_grad()
def evaluate(network: nn.Module, frames: Frames, index: np.ndarray | None = None) -> np.ndarray:
    """What a network makes of frames, in float64.

    Args:
        network: Takes scalars, vectors and positions of a batch; evaluated where its weights lie.
        frames: The features.
        index: Frames to evaluate; None for all.

    Returns:
        (f, k)
    """
    device = device_of(network)
    training = network.training
    network.eval()
    chosen = torch.arange(len(frames)) if index is None else torch.as_tensor(index)
    parts = [
        network(*(values.to(device) for values in frames.at(batch))).double().cpu()
        for batch in chosen.split(BATCH)
    ]
    network.train(training)
    return torch.cat(parts).numpy()


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights, or the numbers it keeps, lie."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")
