"""VAMPNet: a network whose outputs have the highest VAMP score at a lag.

A. Mardt, L. Pasquali, H. Wu, F. Noé, Nat. Commun. 9, 5 (2018). One network for both frames of a pair; the
loss of a mini-batch is the negative score of its outputs, from deeptime. As the singular functions are
estimated from the same mini-batch, VAMP-E has the same value as VAMP-2 there: both lead to the same
coordinates, and differ on held-out frames only.

Training ends when the score of whole blocks of held-out frames no longer rises, and the weights with the
highest one are kept. Scores of mini-batches say less: those of few pairs are too high.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from featurizers.analysis.frames import Frames, evaluate
from featurizers.analysis.lagged import Block, frames_of, hold_out, lagged_pairs
from featurizers.analysis.learning import (
    Course,
    Epoch,
    Report,
    TrainingOptions,
    batches,
    standardize,
)
from featurizers.analysis.scores import held_out_scores
from featurizers.analysis.slow import slow_coordinates
from forcefield.errors import DataError

EPSILON = 1e-6
"""Added to the diagonal of covariances of mini-batches."""


def train_vampnet(
    network: nn.Module,
    frames: Frames,
    blocks: Sequence[Block],
    lag: int,
    dimension: int,
    options: TrainingOptions,
    score: Literal["VAMP2", "VAMPE"] = "VAMP2",
    report: Report | None = None,
) -> list[Epoch]:
    """Train a network in place; it ends with its best weights, ready for evaluation.

    Args:
        network: From :func:`featurizers.mixers.build_network`.
        frames: The features.
        blocks: Frames to train on; a fifth of them is held out for validation.
        lag: Frames.
        dimension: Number of slow coordinates that are wanted of the outputs.
        options: How long, how fast.
        score: What is raised.
        report: Told about the course.

    Returns:
        The scores of every epoch; the constant function counts 1.

    Raises:
        DataError: There are too few pairs of frames, or the training diverged.
    """
    from deeptime.decomposition.deep import vampnet_loss

    split = hold_out(blocks, lag)
    standardize(network, frames, split.train)
    network.to(options.device)
    # A batch of all pairs would leave nothing to chance, and few steps.
    pairs = torch.as_tensor(lagged_pairs(split.train, lag))
    size = min(options.batch, max(10, len(pairs) // 4))
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    seen = frames_of((*split.train, *split.test))
    course = Course(network, options, report)
    while not course.over and course.improves:
        network.train()
        losses = []
        for first in batches(pairs, size, generator):
            both = [
                values.to(options.device) for values in frames.at(torch.cat([first, first + lag]))
            ]
            now, later = network(*both).double().tensor_split(2)
            try:
                loss = vampnet_loss(now, later, method=score, mode="regularize", epsilon=EPSILON)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                raise DataError(
                    f"the training diverged in epoch {len(course.history) + 1}: the outputs of the network "
                    "are no numbers any more. Try another seed"
                ) from None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(-loss.item())
            if course.out_of_time:
                break
        # Frames of other blocks are not looked at.
        outputs = np.full((len(frames), now.shape[1]), np.nan)
        outputs[seen] = evaluate(network, frames, seen)
        model = slow_coordinates(network, outputs, split.train, lag, dimension)
        scores = held_out_scores(model.project(outputs), split, lag)
        valid = scores.vamp2 if score == "VAMP2" else scores.vampe
        course.add(Epoch(float(np.mean(losses)), valid))
    course.restore()
    network.eval()
    return course.history
