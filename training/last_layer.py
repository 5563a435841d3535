"""The readout's last layer in closed form, after the network before it was trained.

Energies and forces are linear in the last layer's weights (:mod:`forcefield.uncertainty`), so the
weights that fit the training frames best are one linear system away. Steps along gradients do not
get there in one direction above all: a shift of all energies costs the loss next to nothing beside
the forces, and it can take longer than the training to go away, in particular where reference
energies are those of isolated atoms and training starts from weights of another level of theory.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from forcefield import Potential
from forcefield.uncertainty import Rows, features_and_jacobian
from training.config import TrainingConfig
from training.evaluate import predict
from training.graphs import GraphDataset, evaluation_batches

FIT_FRAMES, FIT_ATOMS = 100, 2000
"""Training frames, and atoms in them, that the last layer and its posterior are fitted on, and as many
to choose by. Each atom makes three rows for some 64 unknowns."""

FEATURES = 64
"""Of the network that such numbers are for: a wider one is differentiated more often for each frame, and as
many times fewer frames are taken."""

BATCH_ATOMS = 500
"""Atoms per batch: each of them is differentiated once for every feature."""

RIDGES = tuple(10.0**power for power in range(-10, 1))
"""Strengths of the pull towards the trained weights, in units of the trace of the normal matrix."""

LARGEST_CHANGE = 0.5
"""Largest change in units of the norm of the trained weights: large weights that cancel each other fit
what single precision cannot compute."""

AS_GOOD = 1.005
"""Validation losses within this factor of each other count as equal."""

ROUNDS = 10


def rows(potential: Potential, dataset: GraphDataset, device: torch.device | str) -> Rows:
    """Features, their derivatives and the errors, on a part of the frames; float64, on the CPU."""
    frozen = copy.deepcopy(potential).eval().requires_grad_(False)
    parts = []
    chosen = dataset.subset(some(dataset, FIT_FRAMES, FIT_ATOMS, potential))
    for _, batch in evaluation_batches(chosen, BATCH_ATOMS):
        moved = batch.to(device)
        inputs = moved.graph.tensors()
        prediction = frozen(*inputs)
        tensors = (
            *features_and_jacobian(frozen, *inputs),
            prediction["energy"] - moved.energy,
            prediction["forces"] - moved.forces,
            moved.num_atoms,
        )
        parts.append([tensor.cpu() for tensor in tensors])
    return Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def some(dataset: GraphDataset, frames: int, atoms: int, potential: Potential) -> range:
    """Which so many frames, or fewer, to differentiate every feature of; see :data:`FEATURES`."""
    share = min(1.0, FEATURES / potential.representation.features)
    return dataset.evenly(round(share * frames), round(share * atoms))


def refit_for(
    settings: TrainingConfig,
    potential: Potential,
    valid: GraphDataset,
    parts: Sequence[Rows | None],
    device: torch.device | str,
) -> list[Rows | None]:
    """:func:`refit` where it is what training was for.

    It minimises errors of energies and forces: where one of them was not to be learned nothing is changed,
    nor where stresses, which it does not see, would come out worse.

    Args:
        settings: Weights of the losses.
        potential: Trained, on the device.
        valid: Validation frames.
        parts: Rows of training and validation frames, None without frames.
        device: Where to evaluate.

    Returns:
        The rows with the errors of the weights as they are now.
    """
    train_rows, valid_rows = parts
    if train_rows is None or valid_rows is None:
        return list(parts)
    if not (settings.energy_weight and settings.forces_weight):
        return list(parts)
    if not (valid.has_stress and settings.stress_weight):
        return list(refit(potential, train_rows, valid_rows))
    name = "stress_mae_meV_per_A3"
    layer = potential.readout.network[2]
    trained = copy.deepcopy(layer.state_dict())
    before = predict(potential, valid, device).errors()[name]
    refitted = refit(potential, train_rows, valid_rows)
    if predict(potential, valid, device).errors()[name] <= AS_GOOD * before:
        return list(refitted)
    layer.load_state_dict(trained)
    return list(parts)


def refit(potential: Potential, train: Rows, valid: Rows) -> tuple[Rows, Rows]:
    """Move the last layer's weights to where they fit best, in place, if validation frames agree.

    Minimises Σ (ΔE / N ε_E)² + Σ (ΔF / ε_F)² + s² |w - w0|² over the training rows, energies per atom as in
    the losses, where ε are the root mean square errors of the validation frames with the weights w0 so far;
    these choose s², and whether anything is changed at all. Repeated while that makes the errors smaller:
    a shift of the energies hides at first how exact they are but for it.

    Args:
        potential: Trained.
        train: From :func:`rows`, of the same potential.
        valid: Likewise.

    Returns:
        The rows with the errors of the new weights.
    """
    weights = potential.readout.network[2].get_parameter("weight")
    limit = LARGEST_CHANGE * float(torch.linalg.vector_norm(weights.detach()))
    for _ in range(ROUNDS):
        change = _best_change(train, valid, limit)
        if change is None:
            break
        limit -= float(torch.linalg.vector_norm(change))
        with torch.no_grad():
            weights.add_(change.to(weights))
        train, valid = moved(train, change), moved(valid, change)
    return train, valid


def _best_change(train: Rows, valid: Rows, limit: float) -> Tensor | None:
    """Change of the last weights (k,) of at most ``limit``, None if validation is not better for any."""
    noise = (_mean_square(_per_atom(valid)), _mean_square(valid.forces_errors))
    precision, gradient = _normal_equations(train, noise)
    if not bool(torch.isfinite(precision).all() and torch.isfinite(gradient).all()):
        return None
    values, directions = torch.linalg.eigh(precision)
    trace = values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    changes = [
        -directions @ ((directions.T @ gradient) / (values.clamp(min=0.0) + ridge * trace))
        for ridge in RIDGES
    ]
    changes = [change for change in changes if float(torch.linalg.vector_norm(change)) <= limit]
    if not changes:
        return None
    losses = [_loss(moved(valid, change), noise) for change in changes]
    if min(losses) * AS_GOOD >= _loss(valid, noise):
        return None
    # The strongest ridge that is as good: what need not change stays as it was trained.
    return changes[max(k for k, loss in enumerate(losses) if loss <= AS_GOOD * min(losses))]


def moved(part: Rows, change: Tensor) -> Rows:
    """The rows with the errors that the last weights have after a change (k,)."""
    return Rows(
        part.features,
        part.jacobian,
        part.energy_errors + part.features @ change,
        part.forces_errors + part.jacobian @ change,
        part.num_atoms,
    )


def _normal_equations(part: Rows, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Matrix (k, k) and gradient (k,) of half the weighted sum of squares at no change."""
    jacobian = part.jacobian.flatten(0, 1)
    features = part.features / part.num_atoms[:, None]
    precision = features.T @ features / noise[0] + jacobian.T @ jacobian / noise[1]
    gradient = features.T @ _per_atom(part) / noise[0]
    return precision, gradient + jacobian.T @ part.forces_errors.flatten() / noise[1]


def _loss(part: Rows, noise: tuple[Tensor, Tensor]) -> float:
    energy = _per_atom(part).square().mean() / noise[0]
    return float(energy + part.forces_errors.square().mean() / noise[1])


def _per_atom(part: Rows) -> Tensor:
    return part.energy_errors / part.num_atoms


def _mean_square(errors: Tensor) -> Tensor:
    return errors.square().mean().clamp(min=torch.finfo(torch.float64).tiny)
