"""Radial and angular bases: Bessel functions, the smooth envelope, real spherical harmonics.

Shapes: edges ``e``, radial functions ``k``, components ``m = (lmax + 1)² - 1`` (degrees 1 to lmax;
degree 0 is the constant 1 and carries nothing). The modules hold their constants in float64 until
they are converted with ``.to(dtype)``: convert them once, to the type of what they are given.

Sources: radial Bessel functions and polynomial envelope, Gasteiger, Groß, Günnemann, "Directional
message passing for molecular graphs", ICLR 2020, eqs. 7 and 8. Order and signs of the harmonics are
e3nn's (y is the polar axis, components m = -l..l; Geiger and Smidt, arXiv 2207.09453).
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn


class PolynomialEnvelope(nn.Module):
    """u(r) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r / cutoff.

    It is 1 at r = 0, and exactly 0 from the cutoff on; value, first and second derivative go to zero
    there, so energies are twice continuously differentiable. Written as it is computed,
    u = (1 - x)³ Σ_k (k+1)(k+2)/2 x^k with k = 0..p-1, which loses no digits near the cutoff.

    Args:
        cutoff: Å.
        power: p.
    """

    def __init__(self, cutoff: float, power: int = 6) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.coefficients = [0.5 * (k + 1) * (k + 2) for k in reversed(range(power))]

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances (e, 1) in Å to weights (e, 1) between 0 and 1."""
        x = distance / self.cutoff
        polynomial = torch.full_like(x, self.coefficients[0])
        for coefficient in self.coefficients[1:]:
            polynomial = polynomial * x + coefficient
        inside = torch.relu(1.0 - x)  # exactly zero beyond the cutoff, with its derivatives
        return inside * inside * inside * polynomial


class BesselBasis(nn.Module):
    """b_k(r) = sqrt(2 / cutoff) sin(k π r / cutoff) / r for k = 1..num_radial.

    Args:
        cutoff: Å.
        num_radial: Number of radial functions.
    """

    wave_numbers: Tensor

    def __init__(self, cutoff: float, num_radial: int = 8) -> None:
        super().__init__()
        wave_numbers = torch.arange(1, num_radial + 1, dtype=torch.float64) * math.pi / cutoff
        self.register_buffer("wave_numbers", wave_numbers, persistent=False)
        self.scale = math.sqrt(2.0 / cutoff)

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances (e, 1) in Å to radial functions (e, k)."""
        return torch.sin(distance * self.wave_numbers) * (self.scale / distance)


def num_components(lmax: int) -> int:
    """Number of components of the degrees 1 to lmax."""
    return (lmax + 1) ** 2 - 1


def degree_of_component(lmax: int) -> list[int]:
    """Degree l of each of the (lmax + 1)² - 1 components."""
    return [degree for degree in range(1, lmax + 1) for _ in range(2 * degree + 1)]


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of the degrees 1 to lmax as polynomials, with |Y_l|² = 2l + 1.

    Y_l of a unit vector is a homogeneous polynomial of degree l in x, y, z. The monomials of each
    degree come from those of the degree before, and a constant matrix turns them into harmonics: few
    and large operations, which TorchScript, torch.export and double backward all take.

    Args:
        lmax: Highest degree, at least 1.
    """

    num_monomials: list[int]
    parents: Tensor
    factors: Tensor
    coefficients: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = int(lmax)
        parents, factors, coefficients = _monomial_tables(self.lmax)
        self.num_monomials = [len(p) for p in parents]
        self.register_buffer("parents", _flat_indices(parents), persistent=False)
        self.register_buffer("factors", _flat_indices(factors), persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, direction: Tensor) -> Tensor:
        """Map unit vectors (e, 3) to harmonics (e, m), degree after degree."""
        monomials = [direction]
        start = 0
        for count in self.num_monomials:
            parent = monomials[-1].index_select(1, self.parents[start : start + count])
            factor = direction.index_select(1, self.factors[start : start + count])
            monomials.append(parent * factor)
            start += count
        return torch.cat(monomials, dim=1) @ self.coefficients


def _flat_indices(rows: list[list[int]]) -> Tensor:
    return torch.tensor([index for row in rows for index in row], dtype=torch.int64)


def _monomial_tables(lmax: int) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """How monomials are built, and how they combine to harmonics.

    Returns:
        For each degree from 2 on, the monomial of the degree before and the coordinate (0, 1, 2) whose
        product each monomial is; and the matrix (monomials of degree 1 to lmax, components).
    """
    exponents = [[(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    parents: list[list[int]] = []
    factors: list[list[int]] = []
    for degree in range(2, lmax + 1):
        row = [
            (a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)
        ]
        parent_row, factor_row = [], []
        for exponent in row:
            axis = next(k for k in range(3) if exponent[k])
            smaller = (
                exponent[0] - (axis == 0),
                exponent[1] - (axis == 1),
                exponent[2] - (axis == 2),
            )
            parent_row.append(exponents[-1].index(smaller))
            factor_row.append(axis)
        exponents.append(row)
        parents.append(parent_row)
        factors.append(factor_row)

    matrix = torch.zeros(
        sum(len(row) for row in exponents), num_components(lmax), dtype=torch.float64
    )
    first_row = first_column = 0
    for degree, row in enumerate(exponents, start=1):
        for m in range(-degree, degree + 1):
            for exponent, value in _solid_harmonic(degree, m).items():
                matrix[first_row + row.index(exponent), first_column + degree + m] = value
        first_row += len(row)
        first_column += 2 * degree + 1
    return parents, factors, matrix


_Polynomial = dict[tuple[int, int, int], float]
"""A polynomial in x, y, z: exponents -> coefficient."""


def _solid_harmonic(degree: int, m: int) -> _Polynomial:
    """The real solid harmonic of degree l and order m, with |Y_l|² = 2l + 1 on the unit sphere.

    The usual product form r^l Y_lm = N_lm Π_l^|m|(ζ, r²) A_m(ξ, η), where A_m is the real (m >= 0) or
    imaginary (m < 0) part of (ξ + iη)^|m| and Π follows from the recurrence of the associated Legendre
    polynomials. With y as polar axis, (ξ, η, ζ) = (z, x, y).
    """
    xi: _Polynomial = {(0, 0, 1): 1.0}
    eta: _Polynomial = {(1, 0, 0): 1.0}
    zeta: _Polynomial = {(0, 1, 0): 1.0}
    r_squared: _Polynomial = {(2, 0, 0): 1.0, (0, 2, 0): 1.0, (0, 0, 2): 1.0}
    order = abs(m)

    real: _Polynomial = {(0, 0, 0): 1.0}
    imaginary: _Polynomial = {}
    for _ in range(order):
        real, imaginary = (
            _add(_multiply(xi, real), _multiply(eta, imaginary), -1.0),
            _add(_multiply(xi, imaginary), _multiply(eta, real), 1.0),
        )

    before: _Polynomial = {}
    legendre: _Polynomial = {(0, 0, 0): float(math.prod(range(1, 2 * order, 2)))}
    for step in range(order + 1, degree + 1):
        ahead = _add(
            _multiply(zeta, legendre, (2 * step - 1) / (step - order)),
            _multiply(r_squared, before),
            -(step + order - 1) / (step - order),
        )
        before, legendre = legendre, ahead

    norm = math.sqrt(
        (2 * degree + 1) * math.factorial(degree - order) / math.factorial(degree + order)
    )
    if order:
        norm *= math.sqrt(2.0)
    return _multiply(legendre, imaginary if m < 0 else real, norm)


def _multiply(a: _Polynomial, b: _Polynomial, scale: float = 1.0) -> _Polynomial:
    product: _Polynomial = defaultdict(float)
    for (i, j, k), u in a.items():
        for (p, q, r), v in b.items():
            product[i + p, j + q, k + r] += scale * u * v
    return {exponent: value for exponent, value in product.items() if value}


def _add(a: _Polynomial, b: _Polynomial, scale: float) -> _Polynomial:
    total: _Polynomial = defaultdict(float, a)
    for exponent, value in b.items():
        total[exponent] += scale * value
    return {exponent: value for exponent, value in total.items() if value}
