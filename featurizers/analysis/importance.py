"""Which tokens slow coordinates look at: permutation importance.

The features of one token are shuffled among frames, so that they are as likely as before but say nothing
about the frame any more; what the VAMP-2 score of the coordinates loses, in percent of its part above
that of the constant function, is the importance of the token. This is the same for every network, and
for tokens that say the same as another one it is small for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from featurizers.analysis.frames import Frames, evaluate
from featurizers.analysis.lagged import Block, lagged_pairs
from featurizers.analysis.scores import scores

MOST_PAIRS = 4000
"""Pairs of frames that scores are taken from."""


def token_importance(
    coordinates: nn.Module,
    frames: Frames,
    blocks: Sequence[Block],
    lag: int,
    seed: int,
    report: Callable[[float, str], None] | None = None,
) -> np.ndarray:
    """Loss of the VAMP-2 score when the scalars and vectors of a token are shuffled, percent, (t,).

    Args:
        coordinates: From features to slow coordinates.
        frames: The features; positions stay as they are.
        blocks: Frames to take pairs from.
        lag: Frames.
        seed: Of the pairs and of the shuffling.
        report: Told the share that is done.
    """
    random = np.random.default_rng(seed)
    first = lagged_pairs(blocks, lag)
    if len(first) > MOST_PAIRS:
        first = np.sort(random.choice(first, MOST_PAIRS, replace=False))
    scalars, vectors, positions = frames.at(torch.as_tensor(np.concatenate([first, first + lag])))
    sample = replace(
        frames, scalars=scalars, vectors=vectors, positions=positions, bounds=(0, len(scalars))
    )
    # Frames of the pairs lie one behind the other, so that the partner is half of all away.
    whole, half = [Block(0, len(sample))], len(first)
    before = scores(evaluate(coordinates, sample), whole, half).vamp2
    losses = []
    for token in range(len(frames.labels)):
        shuffled = torch.as_tensor(random.permutation(len(sample)))
        changed = replace(sample, scalars=scalars.clone(), vectors=vectors.clone())
        changed.scalars[:, token] = scalars[shuffled, token]
        changed.vectors[:, token] = vectors[shuffled, token]
        after = scores(evaluate(coordinates, changed), whole, half).vamp2
        losses.append(100.0 * (before - after) / max(before - 1.0, 1e-12))
        if report is not None:
            report((token + 1) / len(frames.labels), frames.labels[token])
    return np.array(losses)
