"""SPIB: a few latent coordinates that know enough about now to tell the state one lag later.

State Predictive Information Bottleneck, D. Wang, P. Tiwary, J. Chem. Phys. 154, 134111 (2021). An
encoder, here a mixer network, gives the mean and the variance of a Gaussian q(z | X_t) of the latent
coordinates z; a decoder p(y | z), a perceptron, predicts the state y at t + lag. With the prior r(z)
the loss is

    L = - ln p(y_{t+lag} | z) + β ( ln q(z | X_t) - ln r(z) ),   z drawn from q(z | X_t)

The states are not given: they begin as clusters, and after each round of training a frame gets the state
that the decoder finds most likely a lag later. States that are left within the lag vanish in this way,
until labels no longer change.

As in the paper the prior is that of VampPrior, a mixture r(z) = Σ_k w_k q(z | X_k) over the states with
learned weights. Its inputs X_k are frames of the data, one for each state: that whose mean is nearest to
the average mean of the state, chosen anew whenever labels change. Other than in the paper, the variance
is an output of the encoder, at most 1 and at least e^-10, and a round ends when the loss of held-out
blocks no longer falls.

Shapes: frames ``b`` or ``f``, latent coordinates ``k``, states ``s``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featurizers.analysis.frames import Frames, evaluate
from featurizers.analysis.lagged import Block, Split, frames_of, hold_out, lagged_pairs
from featurizers.analysis.learning import (
    Course,
    Epoch,
    Report,
    TrainingOptions,
    batches,
    standardize,
)

BETA = 1e-3
"""Weight β of the information about the present, against that about the future."""

SMALLEST_LOG_VARIANCE = -10.0
ROUNDS, ROUND_PATIENCE = 12, 2
"""Changes of the labels at most, and epochs without a lower loss after which labels change."""

CONVERGED = 0.005
"""Share of frames whose labels may still change at the end."""


class Spib(nn.Module):
    """Encoder, decoder and prior; called like a network it gives the mean latent coordinates.

    Args:
        encoder: Network with 2 k outputs.
        latent: k.
        states: s, at the beginning.
        width: Hidden features of the decoder.
    """

    representatives: Tensor
    alive: Tensor

    def __init__(self, encoder: nn.Module, latent: int, states: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = latent
        self.decoder = nn.Sequential(
            nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.decoder.append(nn.Linear(width, states))
        self.weights = nn.Parameter(torch.zeros(states))
        # Frames X_k, counted in the data, and which states there still are.
        self.register_buffer("representatives", torch.zeros(states, dtype=torch.long))
        self.register_buffer("alive", torch.ones(states, dtype=torch.bool))

    def encode(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | X), (b, k) each."""
        mean, variance = self.encoder(scalars, vectors, positions).split(self.latent, dim=1)
        return mean, SMALLEST_LOG_VARIANCE * functional.sigmoid(variance)

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> Tensor:
        """Mean latent coordinates, (b, k)."""
        return self.encode(scalars, vectors, positions)[0]

    def predict(self, latent: Tensor) -> Tensor:
        """Logarithm of p(y | z) of latent coordinates (b, k), (b, s)."""
        return functional.log_softmax(self.decoder(latent), dim=1)

    def loss(self, frames: Frames, index: Tensor, future: Tensor, noise: Tensor | None) -> Tensor:
        """Loss of each frame, (b,).

        Args:
            frames: The features.
            index: Frames X_t, (b,).
            future: Their states a lag later, (b,).
            noise: Standard normal numbers (b, k) to draw z with; None to take its mean.
        """
        device = self.weights.device
        # The representatives go through the encoder with the batch, and learn with it.
        inputs = [v.to(device) for v in frames.at(torch.cat([index, self.representatives.cpu()]))]
        mean, log_variance = self.encode(*inputs)
        b = len(index)
        latent = mean[:b]
        if noise is not None:
            latent = latent + noise.to(device) * torch.exp(0.5 * log_variance[:b])
        reconstruction = functional.nll_loss(
            self.predict(latent), future.to(device), reduction="none"
        )
        posterior = _log_normal(latent, mean[:b], log_variance[:b])
        components = _log_normal(latent[:, None], mean[b:], log_variance[b:])
        weights = self.weights.masked_fill(~self.alive, -torch.inf).log_softmax(0)
        return reconstruction + BETA * (posterior - torch.logsumexp(components + weights, dim=1))


@dataclass(frozen=True)
class SpibResult:
    """What a training of SPIB leaves.

    Attributes:
        history: An element for each epoch; scores are negative losses.
        states: State of every frame, 0 to s - 1, the most populated first, (f,).
        changed: Share of the frames to train on whose label changed, for each change of labels.
    """

    history: list[Epoch]
    states: np.ndarray
    changed: list[float]


def train_spib(
    model: Spib,
    frames: Frames,
    labels: np.ndarray,
    blocks: Sequence[Block],
    lag: int,
    options: TrainingOptions,
    report: Report | None = None,
) -> SpibResult:
    """Train encoder and decoder in place, and find the states.

    Args:
        model: Encoder, decoder and prior.
        frames: The features.
        labels: First states of all frames, such as clusters, (f,).
        blocks: Frames to train on; a fifth of them is held out for validation.
        lag: Frames.
        options: How long, how fast.
        report: Told about the course.

    Raises:
        DataError: There are too few pairs of frames.
    """
    split = hold_out(blocks, lag)
    standardize(model.encoder, frames, split.train)
    model.to(options.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    generator = torch.Generator().manual_seed(options.seed)
    course = Course(model, options, report)
    labels = labels.astype(np.int64)
    changed: list[float] = []
    seen = frames_of(blocks)
    while len(changed) < ROUNDS and not course.over:
        _represent(model, frames, labels, frames_of(split.train))
        _round(model, frames, labels, split, lag, optimizer, generator, course)
        refined = _most_likely(model, frames)
        changed.append(float((refined != labels)[seen].mean()))
        labels = refined
        if changed[-1] < CONVERGED:
            break
    model.eval()
    population = np.bincount(labels)
    order = np.argsort(-population, kind="stable")
    return SpibResult(course.history, np.argsort(order)[labels], changed)


def _round(
    model: Spib,
    frames: Frames,
    labels: np.ndarray,
    split: Split,
    lag: int,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    course: Course,
) -> None:
    """Train with given labels until the loss of the held-out blocks no longer falls."""
    future = torch.as_tensor(labels).roll(-lag)
    pairs, held_out = (
        torch.as_tensor(lagged_pairs(part, lag)) for part in (split.train, split.test)
    )
    size = min(course.options.batch, max(10, len(pairs) // 4))
    best, since = float("inf"), 0
    while since < ROUND_PATIENCE and not course.over:
        model.train()
        losses = []
        for index in batches(pairs, size, generator):
            noise = torch.randn(len(index), model.latent, generator=generator)
            loss = model.loss(frames, index, future[index], noise).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if course.out_of_time:
                break
        model.eval()
        with torch.no_grad():
            valid = torch.cat(
                [model.loss(frames, i, future[i], None) for i in held_out.split(2048)]
            ).mean()
        course.add(Epoch(-float(np.mean(losses)), -valid.item()))
        best, since = (valid.item(), 0) if valid.item() < best else (best, since + 1)
    course.restore()


@torch.no_grad()
def _most_likely(model: Spib, frames: Frames) -> np.ndarray:
    """The state that is most likely a lag after each frame, (f,)."""
    latent = torch.as_tensor(evaluate(model, frames), dtype=torch.float32)
    scores = model.predict(latent.to(model.weights.device))
    return scores.argmax(dim=1).cpu().numpy()


def _represent(model: Spib, frames: Frames, labels: np.ndarray, train: np.ndarray) -> None:
    """Choose a frame of the training data for each state that there is."""
    latent = evaluate(model, frames, train)
    for state in range(len(model.alive)):
        members = np.flatnonzero(labels[train] == state)
        model.alive[state] = len(members) > 0
        if len(members):
            distance = np.linalg.norm(latent[members] - latent[members].mean(axis=0), axis=1)
            model.representatives[state] = int(train[members[distance.argmin()]])


def _log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of a normal density with independent components, but for a constant; (..., k) to (...)."""
    return -0.5 * (log_variance + (z - mean) ** 2 * torch.exp(-log_variance)).sum(-1)
