"""How far a prediction may be off: the posterior of the readout's last linear layer.

Everything up to the last layer is taken as given. What is left is linear in the last weights w, and
so are the derivatives of the energy:

    E = w·f + const,   f = Σ_i σ_Zi (a_i - a0_Zi)               (features of a structure, eV)
    F = -dE/dr = w·g,  g = -df/dr                               (features of a force component, eV/Å)

where a_i are the activations in front of the last layer and a0_Z those of the isolated atom. Linear
regression with noise ε_E, ε_F and a Gaussian prior on w gives variances in closed form:

    A = Σ_train [ f fᵀ / ε_E² + Σ_components g gᵀ / ε_F² ] + s² I
    Var E = α_E² fᵀ A⁻¹ f,   Var F = α_F² gᵀ A⁻¹ g

α_E and α_F make the mean squared error of the validation frames, in units of these variances, 1; the
prior's s² is what gives the validation errors the highest likelihood. ε are the root mean square
errors of the validation frames.

F. Bigi, S. Chong, M. Ceriotti, F. Grasselli, "A prediction rigidity formalism for low-cost
uncertainties in trained neural networks", Mach. Learn.: Sci. Technol. (2024), arXiv 2403.02251, their
last-layer approximation; also known as Laplace approximation of the last layer (E. Daxberger et al.,
"Laplace Redux", NeurIPS 2021, arXiv 2106.14806). Forces enter by the rule that derivatives of a linear
model are linear in the same weights.

Shapes: atoms ``n``, edges ``e``, structures ``b``, features ``k``.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from forcefield.errors import CheckpointError, ConfigError
from forcefield.graph import edge_vectors
from forcefield.readout import EnergyReadout

COPIED_ATOMS = 200
"""Up to this many atoms are made of a small molecule, see :func:`features_and_jacobian`. Fastest for
ethanol and aspirin on one CPU core."""

PRIORS = tuple(10.0**power for power in range(-13, 0))
"""Values of s² that are tried, in units of the trace of A without it."""


class LastLayerPosterior(nn.Module):
    """What predictions need: A⁻¹ = W Wᵀ, and the two scales α.

    It is part of every potential, all zeros until it is fitted. Its tensors are no part of the
    state of a training: they belong to the finished weights.

    Args:
        features: Number of features k.
    """

    factor: Tensor
    scales: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        zeros = torch.zeros(features, features, dtype=torch.float64)
        self.register_buffer("factor", zeros, persistent=False)
        self.register_buffer("scales", torch.zeros(2, dtype=torch.float64), persistent=False)

    def forward(self, features: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations of energies and forces.

        Args:
            features: f, (b, k), eV.
            jacobian: g, (n, 3, k), eV/Å.

        Returns:
            Of the energies (b,), eV; and of the forces (n,), eV/Å, for one component: the root mean
            square over the three, which does not depend on the axes.
        """
        factor = self.factor.to(torch.float64)
        energy = (features @ factor).square().sum(1).sqrt()
        forces = ((jacobian @ factor).square().sum(2).sum(1) / 3.0).sqrt()
        return self.scales[0] * energy, self.scales[1] * forces

    def set(self, factor: Tensor, scales: Tensor) -> None:
        """Take over W (k, k) and the two scales; kept in float64, on the device they were."""
        self.factor = factor.to(self.factor.device, torch.float64)
        self.scales = scales.to(self.scales.device, torch.float64)

    def clear(self) -> None:
        """Forget: the weights have changed, or nothing is there to calibrate with."""
        self.set(torch.zeros_like(self.factor), torch.zeros_like(self.scales))


class WithLastLayer(Protocol):
    """What is needed of a potential, eager or exported."""

    posterior: LastLayerPosterior
    readout: EnergyReadout

    def last_layer(self, vectors: Tensor, atomic_numbers: Tensor, edge_index: Tensor) -> Tensor:
        """See :meth:`forcefield.potential.Potential.last_layer`."""


def has_uncertainty(potential: "WithLastLayer | torch.jit.ScriptModule") -> bool:
    """Whether a potential, eager or exported, holds a fitted error estimate."""
    return hasattr(potential, "posterior") and bool(potential.posterior.scales.min() > 0)


def check_uncertainty(
    potential: "WithLastLayer | torch.jit.ScriptModule", name: str = "this potential"
) -> None:
    """Raise :class:`CheckpointError` for a potential without an error estimate.

    Args:
        potential: Eager or exported.
        name: What the message calls it.
    """
    if not has_uncertainty(potential):
        raise CheckpointError(
            f"{name} holds no error estimate: it was trained without validation frames, or "
            "exported by a version that knew none. Train it again with validation frames, or add "
            "the estimate to a run with training.uncertainty.add_to_run(folder)"
        )


def features_and_jacobian(
    potential: "WithLastLayer | torch.jit.ScriptModule",
    positions: Tensor,
    atomic_numbers: Tensor,
    edge_index: Tensor,
    cell_shifts: Tensor,
    cell: Tensor,
    batch: Tensor,
) -> tuple[Tensor, Tensor]:
    """Features f and derivatives g of a batch: one forward pass, a backward pass for each feature.

    For few atoms a pass costs what its many small operations cost to start. Copies of the structure
    therefore share one pass, in which each of them is differentiated for a feature of its own.

    Args:
        potential: A :class:`~forcefield.potential.Potential`, or the module of an exported one; its
            parameters should not require gradients.
        positions: and the rest as in :meth:`forcefield.potential.Potential.forward`.
        atomic_numbers: (n,).
        edge_index: (2, e).
        cell_shifts: (e, 3).
        cell: (b, 3, 3), Å.
        batch: (n,).

    Returns:
        Features (b, k), eV, and -df/dr (n, 3, k), eV/Å, both float64.
    """
    n, e = positions.shape[0], edge_index.shape[1]
    k = potential.posterior.factor.shape[0]
    copies = max(1, min(k, COPIED_ATOMS // max(1, n)))
    with torch.enable_grad():
        vectors = edge_vectors(positions, edge_index, cell_shifts, cell, batch).detach()
        vectors = vectors.to(potential.readout.scale.dtype).repeat(copies, 1).requires_grad_(True)
        first_atom = n * torch.arange(copies, device=positions.device).view(1, copies, 1)
        atomic = potential.last_layer(
            vectors,
            atomic_numbers.repeat(copies),
            (edge_index.unsqueeze(1) + first_atom).reshape(2, copies * e),
        )
        columns = atomic.view(copies, n, k).sum(1)
        parts = []
        for start in range(0, k, copies):
            count = min(copies, k - start)
            chosen = columns[:count, start:].diagonal().sum()
            last = start + count == k
            gradient = torch.autograd.grad(chosen, vectors, retain_graph=not last)[0]
            gradient = gradient.to(torch.float64).view(copies, e, 3)[:count].permute(1, 2, 0)
            none = gradient.new_zeros(n, 3, count)
            part = none.index_add(0, edge_index[1], gradient)
            parts.append(part.index_add(0, edge_index[0], -gradient))
    jacobian = torch.cat(parts, dim=2)
    first = atomic[:n].detach().to(torch.float64)
    return first.new_zeros(cell.shape[0], k).index_add(0, batch, first), jacobian


def predict_uncertainty(
    potential: "WithLastLayer | torch.jit.ScriptModule", *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Standard deviations of the energies (b,), eV, and of the forces (n,), eV/Å per component.

    Args:
        potential: With a fitted posterior, see :func:`check_uncertainty`.
        inputs: Those of :meth:`forcefield.potential.Potential.forward`.
    """
    features, jacobian = features_and_jacobian(potential, *inputs)
    energy, forces = potential.posterior(features, jacobian)
    return energy, forces


@dataclass(frozen=True)
class Rows:
    """The linear regression's rows of some frames, and how far the potential is off on them.

    Attributes:
        features: f, (b, k), eV.
        jacobian: g, (n, 3, k), eV/Å.
        energy_errors: Prediction minus label, (b,), eV.
        forces_errors: (n, 3), eV/Å.
        num_atoms: Of each frame, (b,).
    """

    features: Tensor
    jacobian: Tensor
    energy_errors: Tensor
    forces_errors: Tensor
    num_atoms: Tensor


def fit_posterior(train: Rows, valid: Rows) -> tuple[Tensor, Tensor, float]:
    """Fit A on training frames; choose s² and α on validation frames.

    A fraction of the training frames is enough: their number multiplies A, which α takes back.

    Returns:
        W (k, k) with A⁻¹ = W Wᵀ, the scales α_E and α_F (2,), and s² in units of A's trace.

    Raises:
        ConfigError: There is no validation frame, or a feature or an error is not finite.
    """
    if not len(valid.energy_errors):
        raise ConfigError(
            "an error estimate is calibrated on validation frames, and there are none"
        )
    energy_squares = valid.energy_errors.square()
    forces_squares = valid.forces_errors.square().mean(1)
    tiny = torch.finfo(torch.float64).tiny
    energy_noise = energy_squares.mean().clamp(min=tiny)
    forces_noise = forces_squares.mean().clamp(min=tiny)
    rows = train.jacobian.flatten(0, 1)
    precision = train.features.T @ train.features / energy_noise + rows.T @ rows / forces_noise
    if not bool(torch.isfinite(precision).all() & torch.isfinite(energy_noise + forces_noise)):
        raise ConfigError("no error estimate: features or errors of the frames are not finite")
    values, directions = torch.linalg.eigh(precision)
    trace = values.sum().clamp(min=tiny)
    # In these directions A is diagonal for every s².
    energy_parts = (valid.features @ directions).square()
    forces_parts = (valid.jacobian @ directions).square().sum(1) / 3.0
    best = (float("inf"), directions, torch.zeros(2, dtype=torch.float64), 0.0)
    for prior in PRIORS:
        inverse = 1.0 / (values.clamp(min=0.0) + prior * trace)
        energy_variance = _not_zero(energy_parts @ inverse)
        forces_variance = _not_zero(forces_parts @ inverse)
        scales = torch.stack(
            [(energy_squares / energy_variance).mean(), (forces_squares / forces_variance).mean()]
        )
        # Minus the logarithm of the likelihood, but for constants: one energy, three components.
        loss = 0.5 * (energy_variance * scales[0]).log().sum()
        loss = loss + 1.5 * (forces_variance * scales[1]).log().sum()
        if float(loss) < best[0]:
            best = (float(loss), directions * inverse.sqrt(), scales.sqrt(), prior)
    return best[1], best[2], best[3]


def _not_zero(variance: Tensor) -> Tensor:
    """Variances of at least 1e-4 of their mean.

    Forces that vanish by symmetry have none, and errors of rounding: their ratio means nothing.
    """
    floor = (1e-4 * variance.mean()).clamp(min=torch.finfo(torch.float64).tiny)
    return variance.clamp(min=floor)
