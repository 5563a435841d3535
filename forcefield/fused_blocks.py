"""Building blocks of the kernels in :mod:`forcefield.fused`: small products, activations, harmonics."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="misc"

import triton
import triton.language as tl


@triton.jit
def matrix(base, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A matrix that lies row after row, (ROWS, COLUMNS)."""
    return tl.load(base + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def matvec(weights, x):
    """Matrix (out, in) times vector; rows are summed within a warp."""
    return tl.sum(weights * x[None, :], 1)


@triton.jit
def silu(x):
    """The activation, x σ(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def silu_slope(x):
    """Derivative of :func:`silu`."""
    s = 1.0 / (1.0 + tl.exp(-x))
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def degree_of_rows(ROWS: tl.constexpr):
    """Degree, from 0 for l = 1 on, of components 0..ROWS-1; padding gets one that does not matter."""
    row = tl.arange(0, ROWS)
    one, zero = tl.full([ROWS], 1, tl.int32), tl.zeros([ROWS], tl.int32)
    degree = tl.where(row >= 3, one, zero) + tl.where(row >= 8, one, zero)
    return degree + tl.where(row >= 15, one, zero) + tl.where(row >= 24, one, zero)


@triton.jit
def degree_matrices(base, degree, ROWS: tl.constexpr, C: tl.constexpr, L: tl.constexpr):
    """For each component the matrix (out, in) of its degree, (ROWS, C, C)."""
    c = tl.arange(0, C)
    place = degree[:, None, None] * (C * C) + c[None, :, None] * C + c[None, None, :]
    return tl.load(base + place, mask=(degree < L)[:, None, None], other=0.0)


@triton.jit
def mix(matrices, x):
    """Mix channels of x (ROWS, C) with a matrix for each component."""
    return tl.sum(matrices * x[:, None, :], 2)


@triton.jit
def to_degrees(x, degree, C: tl.constexpr):
    """Sums over the components of each of four degrees, (4 C)."""
    own = degree[None, :, None] == tl.arange(0, 4)[:, None, None]
    return tl.reshape(tl.sum(tl.where(own, x[None, :, :], 0.0), 1), [4 * C])


@triton.jit
def to_components(gates, degree, C: tl.constexpr):
    """Repeat the gates (4 C) of degrees for their components, (ROWS, C)."""
    own = degree[:, None, None] == tl.arange(0, 4)[None, :, None]
    return tl.sum(tl.where(own, tl.reshape(gates, [4, C])[None, :, :], 0.0), 1)


@triton.jit
def sum_of_tiles(parts, first, number, ROWS: tl.constexpr, M: tl.constexpr, C: tl.constexpr):
    """Sum of what ``number`` tiles from the first on left, (ROWS, C); rows from M on are zero."""
    row = tl.arange(0, ROWS)[:, None]
    place = first * (ROWS * C) + row * C + tl.arange(0, C)[None, :]
    total = tl.zeros([ROWS, C], tl.float32)
    for start in range(0, number, 4):
        for k in tl.static_range(4):  # four at a time do not wait for each other
            use = (start + k < number) & (row < M)
            total += tl.load(parts + (start + k) * (ROWS * C) + place, mask=use, other=0.0)
    return total


@triton.jit
def sum_of_vectors(parts, first, number, F: tl.constexpr):
    """Sum of the vectors (F) of ``number`` tiles from the first on."""
    place = first * F + tl.arange(0, F)
    total = tl.zeros([F], tl.float32)
    for start in range(0, number, 4):
        for k in tl.static_range(4):
            use = start + k < number
            total += tl.load(parts + (start + k) * F + place, mask=use, other=0.0)
    return total


@triton.jit
def rows_of_degree(
    other, atom, tile, d: tl.constexpr, T: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr
):
    """Where features of degree d + 1 lie, of the neighbours (T, R, C) and of the atom (1, R, C).

    And where the harmonics (T, R) of a tile lie; R is a power of two, and rows 2 d + 3 to R are not used.
    """
    R: tl.constexpr = 4 if d == 0 else (8 if d < 3 else 16)
    FIRST: tl.constexpr = (d + 1) * (d + 1) - 1
    r, c, t = tl.arange(0, R), tl.arange(0, C), tl.arange(0, T)
    inner = (FIRST + r)[None, :, None] * C + c[None, None, :]
    row_y = (tile * T + t[:, None]) * ROWS + FIRST + r[None, :]
    use = (r < 2 * d + 3)[None, :, None]
    row_j = other[:, None, None] * (ROWS * C) + inner
    return row_j, atom * (ROWS * C) + inner, row_y, use, (r < 2 * d + 3)[None, :]


@triton.jit
def store_degree(to, x, tile, d: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr):
    """Store the components of degree d + 1 of a tile, x (R, C)."""
    R: tl.constexpr = 4 if d == 0 else (8 if d < 3 else 16)
    FIRST: tl.constexpr = (d + 1) * (d + 1) - 1
    r = tl.arange(0, R)
    place = (tile * ROWS + FIRST + r[:, None]) * C + tl.arange(0, C)[None, :]
    tl.store(to + place, x, mask=(r < 2 * d + 3)[:, None])


@triton.jit
def harmonic(x, y, z, m: tl.constexpr):
    """Component m of the harmonics of unit vectors, as :class:`forcefield.basis.SphericalHarmonics`."""
    if m == 0:
        value = 1.7320508075688772 * x
    elif m == 1:
        value = 1.7320508075688772 * y
    elif m == 2:
        value = 1.7320508075688772 * z
    elif m == 3:
        value = 3.872983346207417 * x * z
    elif m == 4:
        value = 3.872983346207417 * x * y
    elif m == 5:
        value = 1.118033988749895 * (3.0 * y * y - 1.0)
    elif m == 6:
        value = 3.872983346207417 * y * z
    elif m == 7:
        value = 1.9364916731037085 * (z * z - x * x)
    elif m == 8:
        value = 2.091650066335189 * x * (3.0 * z * z - x * x)
    elif m == 9:
        value = 10.246950765959598 * x * y * z
    elif m == 10:
        value = 1.620185174601965 * x * (5.0 * y * y - 1.0)
    elif m == 11:
        value = 1.3228756555322954 * y * (5.0 * y * y - 3.0)
    elif m == 12:
        value = 1.620185174601965 * z * (5.0 * y * y - 1.0)
    elif m == 13:
        value = 5.123475382979799 * y * (z * z - x * x)
    elif m == 14:
        value = 2.091650066335189 * z * (z * z - 3.0 * x * x)
    elif m == 15:
        value = 8.874119674649425 * x * z * (z * z - x * x)
    elif m == 16:
        value = 6.274950199005566 * x * y * (3.0 * z * z - x * x)
    elif m == 17:
        value = 3.3541019662496847 * x * z * (7.0 * y * y - 1.0)
    elif m == 18:
        value = 2.3717082451262845 * x * y * (7.0 * y * y - 3.0)
    elif m == 19:
        value = 0.375 * ((35.0 * y * y - 30.0) * y * y + 3.0)
    elif m == 20:
        value = 2.3717082451262845 * y * z * (7.0 * y * y - 3.0)
    elif m == 21:
        value = 1.6770509831248424 * (z * z - x * x) * (7.0 * y * y - 1.0)
    elif m == 22:
        value = 6.274950199005566 * y * z * (z * z - 3.0 * x * x)
    else:
        value = 2.2185299186623562 * (z * z * (z * z - 6.0 * x * x) + x * x * x * x)
    return value


@triton.jit
def harmonic_gradient(x, y, z, m: tl.constexpr):
    """Derivatives of :func:`harmonic` with respect to x, y and z.

    On the unit sphere only what is tangential has a meaning, and only that is used.
    """
    gx, gy, gz = 0.0 * x, 0.0 * x, 0.0 * x
    if m == 0:
        gx += 1.7320508075688772
    elif m == 1:
        gy += 1.7320508075688772
    elif m == 2:
        gz += 1.7320508075688772
    elif m == 3:
        gx, gz = 3.872983346207417 * z, 3.872983346207417 * x
    elif m == 4:
        gx, gy = 3.872983346207417 * y, 3.872983346207417 * x
    elif m == 5:
        gy = 6.708203932499369 * y
    elif m == 6:
        gy, gz = 3.872983346207417 * z, 3.872983346207417 * y
    elif m == 7:
        gx, gz = -3.872983346207417 * x, 3.872983346207417 * z
    elif m == 8:
        gx = 6.274950199005566 * (z * z - x * x)
        gz = 12.549900398011133 * x * z
    elif m == 9:
        gx, gy, gz = (
            10.246950765959598 * y * z,
            10.246950765959598 * x * z,
            10.246950765959598 * x * y,
        )
    elif m == 10:
        gx = 1.620185174601965 * (5.0 * y * y - 1.0)
        gy = 16.20185174601965 * x * y
    elif m == 11:
        gy = 3.968626966596886 * (5.0 * y * y - 1.0)
    elif m == 12:
        gz = 1.620185174601965 * (5.0 * y * y - 1.0)
        gy = 16.20185174601965 * y * z
    elif m == 13:
        gx = -10.246950765959598 * x * y
        gy = 5.123475382979799 * (z * z - x * x)
        gz = 10.246950765959598 * y * z
    elif m == 14:
        gx = -12.549900398011133 * x * z
        gz = 6.274950199005566 * (z * z - x * x)
    elif m == 15:
        gx = 8.874119674649425 * z * (z * z - 3.0 * x * x)
        gz = 8.874119674649425 * x * (3.0 * z * z - x * x)
    elif m == 16:
        gx = 18.824850597016699 * y * (z * z - x * x)
        gy = 6.274950199005566 * x * (3.0 * z * z - x * x)
        gz = 37.649701194033398 * x * y * z
    elif m == 17:
        gx = 3.3541019662496847 * z * (7.0 * y * y - 1.0)
        gy = 46.957427527495586 * x * y * z
        gz = 3.3541019662496847 * x * (7.0 * y * y - 1.0)
    elif m == 18:
        gx = 2.3717082451262845 * y * (7.0 * y * y - 3.0)
        gy = 7.115124735378853 * x * (7.0 * y * y - 1.0)
    elif m == 19:
        gy = 7.5 * y * (7.0 * y * y - 3.0)
    elif m == 20:
        gy = 7.115124735378853 * z * (7.0 * y * y - 1.0)
        gz = 2.3717082451262845 * y * (7.0 * y * y - 3.0)
    elif m == 21:
        gx = -3.3541019662496847 * x * (7.0 * y * y - 1.0)
        gy = 23.478713763747793 * y * (z * z - x * x)
        gz = 3.3541019662496847 * z * (7.0 * y * y - 1.0)
    elif m == 22:
        gx = -37.649701194033398 * x * y * z
        gy = 6.274950199005566 * z * (z * z - 3.0 * x * x)
        gz = 18.824850597016699 * y * (z * z - x * x)
    else:
        gx = 8.874119674649425 * x * (x * x - 3.0 * z * z)
        gz = 8.874119674649425 * z * (z * z - 3.0 * x * x)
    return gx, gy, gz
