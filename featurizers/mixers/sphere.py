"""Nonlinearity of vector channels through signals on the sphere.

Vectors are the degree-1 coefficients of functions on the sphere, f(n) = a + V · n. A multilayer
perceptron across channels acts at every point n; what comes out is projected back on degrees 0 and 1.
A. Poulenard, L. J. Guibas, "A functional approach to rotation equivariant non-linearities for tensor
field networks", CVPR 2021; e3nn's S2Activation is the same with one function for all channels.

A rotation moves the function against the points, so what comes out turns with the molecule only up to
the error of the quadrature, which falls by a factor of 3 to 17 with each order: for weights
as they are at first, from 2e-2 (order 2, 8 points) over 8e-5 (order 4, 32 points) to 6e-7 (order 6,
72 points) of what the nonlinearity adds, and for weights three times as large from 7e-2 over 5e-3 to
4e-4. Order 4 is the default.

Shapes: frames ``b``, tokens ``t``, channels ``w`` and ``v``, points ``q``.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featurizers.mixers.vectors import normalize_vectors


def sphere_quadrature(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points in z times equally spaced azimuths.

    Exact for polynomials of degree up to 2 order - 1. With each point -n is one as well, so that
    reflections through the origin cost no accuracy.

    Args:
        order: Points in z; there are twice as many azimuths.

    Returns:
        Unit vectors (q, 3) with q = 2 order², and weights (q,) of sum 1, float64.
    """
    z, weight = np.polynomial.legendre.leggauss(order)
    azimuth = math.pi / order * (np.arange(2 * order) + 0.5)
    rho = np.sqrt(1.0 - z * z)
    points = np.stack(
        [
            np.outer(rho, np.cos(azimuth)),
            np.outer(rho, np.sin(azimuth)),
            np.outer(z, np.ones_like(azimuth)),
        ],
        axis=-1,
    )
    weights = np.repeat(0.5 * weight / (2 * order), 2 * order)
    return torch.from_numpy(points.reshape(-1, 3)), torch.from_numpy(weights)


class SphericalNonlinearity(nn.Module):
    """s += S mean_n φ(f(n)),   V += 3 mean_n n φ(f(n)) R,   f(n) = A LayerNorm(s) + n · V̂ P.

    φ is SiLU at each point. The linear maps before and behind it, which make it a perceptron across
    channels, act on coefficients: they commute with taking a function's values and projections.

    Args:
        width: Scalar channels w.
        channels: Vector channels v; the perceptron has 2 v hidden ones.
        order: Of :func:`sphere_quadrature`.
    """

    evaluate: Tensor
    project: Tensor

    def __init__(self, width: int, channels: int, order: int) -> None:
        super().__init__()
        points, weights = sphere_quadrature(order)
        dtype = torch.get_default_dtype()
        self.register_buffer("evaluate", points.to(dtype), persistent=False)  # (q, 3)
        basis = torch.cat([torch.ones(len(points), 1, dtype=points.dtype), 3.0 * points], dim=1)
        project = (weights.unsqueeze(1) * basis).T
        self.register_buffer("project", project.to(dtype).contiguous(), persistent=False)  # (4, q)
        self.norm = nn.LayerNorm(width)
        self.constant = nn.Linear(width, 2 * channels)
        self.linear = nn.Linear(channels, 2 * channels, bias=False)
        self.scalar_output = nn.Linear(2 * channels, width)
        self.vector_output = nn.Linear(2 * channels, channels, bias=False)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to the same shapes."""
        signal = self.evaluate @ self.linear(normalize_vectors(vectors))  # (b, t, q, 2 v)
        signal = signal + self.constant(self.norm(scalars)).unsqueeze(2)
        coefficients = self.project @ functional.silu(signal)  # (b, t, 4, 2 v)
        scalars = scalars + self.scalar_output(coefficients[:, :, 0])
        return scalars, vectors + self.vector_output(coefficients[:, :, 1:])
