"""Kernels of :mod:`forcefield.fused` that know where atoms are: neighbours, first features, forces."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="misc"

import triton
import triton.language as tl

from forcefield.fused_blocks import (
    harmonic,
    harmonic_gradient,
    matrix,
    rows_of_degree,
    store_degree,
)


@triton.jit
def _pairs(positions, edges, shifts, cell, batch, pairs, start, cutoff, CHUNK: tl.constexpr):
    """Atoms j and i of some pairs, the vectors from i to j, and whether they see each other."""
    k = start + tl.arange(0, CHUNK)
    real = k < pairs
    j = tl.load(edges + k, mask=real, other=0).to(tl.int32)
    i = tl.load(edges + pairs + k, mask=real, other=0).to(tl.int32)
    lattice = cell + 9 * tl.load(batch + i, mask=real, other=0).to(tl.int32)
    a = tl.load(shifts + 3 * k, mask=real, other=0.0)
    b = tl.load(shifts + 3 * k + 1, mask=real, other=0.0)
    c = tl.load(shifts + 3 * k + 2, mask=real, other=0.0)
    x = tl.load(positions + 3 * j) - tl.load(positions + 3 * i)
    y = tl.load(positions + 3 * j + 1) - tl.load(positions + 3 * i + 1)
    z = tl.load(positions + 3 * j + 2) - tl.load(positions + 3 * i + 2)
    x += a * tl.load(lattice) + b * tl.load(lattice + 3) + c * tl.load(lattice + 6)
    y += a * tl.load(lattice + 1) + b * tl.load(lattice + 4) + c * tl.load(lattice + 7)
    z += a * tl.load(lattice + 2) + b * tl.load(lattice + 5) + c * tl.load(lattice + 8)
    # The network's own precision decides, and what is not finite stays in: it shall be seen.
    x, y, z = x.to(tl.float32), y.to(tl.float32), z.to(tl.float32)
    squared = x * x + y * y + z * z
    beyond = (squared >= cutoff * cutoff) & (squared < 1e30)
    return j, i, x, y, z, (beyond == 0) & real


@triton.jit(do_not_specialize=["atoms", "pairs", "tiles"])
def neighbours(
    positions,
    edges,
    shifts,
    cell,
    batch,
    tile_atom,
    others,
    first_tile,
    number_of_tiles,
    vectors,
    atoms,
    pairs,
    tiles,
    cutoff,
    ATOMS: tl.constexpr,
    CHUNK: tl.constexpr,
    T: tl.constexpr,
):
    """For each atom, a program: tiles of T neighbours.

    Every program counts the neighbours of all atoms, to know where its own tiles begin.
    """
    atom = tl.program_id(0)
    everyone = tl.arange(0, ATOMS)
    counts = tl.zeros([ATOMS], tl.int32)
    for start in range(0, pairs, CHUNK):
        j, i, x, y, z, inside = _pairs(
            positions, edges, shifts, cell, batch, pairs, start, cutoff, CHUNK
        )
        once = inside[:, None].to(tl.int32)
        here = (i[:, None] == everyone[None, :]).to(tl.int32) * once
        here += (j[:, None] == everyone[None, :]).to(tl.int32) * once
        counts += tl.sum(here, 0)
    needed = (counts + (T - 1)) // T
    total = tl.sum(needed, 0)
    first = tl.sum(tl.where(everyone < atom, needed, 0), 0)
    number = tl.sum(tl.where(everyone == atom, needed, 0), 0)
    count = tl.sum(tl.where(everyone == atom, counts, 0), 0)
    tl.store(first_tile + atom, first)
    tl.store(number_of_tiles + atom, number)

    t = tl.arange(0, T)
    for k in range(0, number, T):
        tl.store(tile_atom + first + k + t, tl.zeros([T], tl.int32) + atom, mask=k + t < number)
    if atom == atoms - 1:
        for k in range(total, tiles, T):
            tl.store(tile_atom + k + t, tl.full([T], -1, tl.int32), mask=k + t < tiles)
    slot = first * T
    end = slot + number * T
    padding = slot + count + t
    tl.store(others + padding, tl.full([T], -1, tl.int32), mask=padding < end)
    for axis in tl.static_range(3):
        place = (padding // T * 3 + axis) * T + padding % T
        tl.store(vectors + place, tl.full([T], 1.0, tl.float32), mask=padding < end)

    for start in range(0, pairs, CHUNK):
        j, i, x, y, z, inside = _pairs(
            positions, edges, shifts, cell, batch, pairs, start, cutoff, CHUNK
        )
        for side in tl.static_range(2):
            # An atom's own image is its neighbour twice, in opposite directions.
            if side == 0:
                hit, other, sign = inside & (i == atom), j, 1.0
            else:
                hit, other, sign = inside & (j == atom), i, -1.0
            one = hit.to(tl.int32)
            at = slot + tl.cumsum(one, 0) - 1
            to = vectors + at // T * 3 * T + at % T
            tl.store(others + at, other, mask=hit)
            tl.store(to, sign * x, mask=hit)
            tl.store(to + T, sign * y, mask=hit)
            tl.store(to + 2 * T, sign * z, mask=hit)
            slot += tl.sum(one, 0)


@triton.jit
def _directions(vectors, tile, t, T: tl.constexpr):
    """Vectors' components divided by their lengths, and the lengths."""
    x = tl.load(vectors + tile * 3 * T + t)
    y = tl.load(vectors + tile * 3 * T + T + t)
    z = tl.load(vectors + tile * 3 * T + 2 * T + t)
    distance = tl.sqrt_rn(x * x + y * y + z * z)
    return x / distance, y / distance, z / distance, distance


@triton.jit
def _inside_cutoff(distance, cutoff):
    """Distances over the cutoff, and two factors of the envelope: the one to be cubed, and the rest."""
    s = distance / cutoff
    inside = tl.where(s >= 1.0, 0.0, 1.0 - s)
    polynomial = ((((21.0 * s + 15.0) * s + 10.0) * s + 6.0) * s + 3.0) * s + 1.0
    return s, inside, polynomial


@triton.jit
def initial(
    tile_atom,
    others,
    vectors,
    numbers,
    species_index,
    weights,
    wave_numbers,
    radial,
    harmonics,
    sent,
    cutoff,
    radial_scale,
    T: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
):
    """Radial functions and harmonics of a tile's pairs, and what they add to the first X."""
    tile = tl.program_id(0)
    atom = tl.load(tile_atom + tile)
    if atom < 0:
        return
    t, c, k = tl.arange(0, T), tl.arange(0, C), tl.arange(0, K)
    other = tl.load(others + tile * T + t)
    real = other >= 0
    x, y, z, distance = _directions(vectors, tile, t, T)
    _s, inside, polynomial = _inside_cutoff(distance, cutoff)
    envelope = inside * inside * inside * polynomial
    factor = tl.where(real, envelope * (radial_scale / distance), 0.0)
    wave = tl.load(wave_numbers + k)  # zeros at the end are padding
    b = tl.sin(distance[:, None] * wave[None, :]) * factor[:, None]
    tl.store(radial + tile * (T * K) + t[:, None] * K + k[None, :], b)

    number = tl.load(numbers + tl.maximum(other, 0))
    species = tl.maximum(tl.load(species_index + number), 0).to(tl.int32)
    species_weights = weights + L * K * C + species[:, None] * (L * C) + c[None, :]
    for d in tl.static_range(L):
        gate = tl.dot(b, matrix(weights + d * K * C, K, C), input_precision="ieee")
        gate = gate * tl.load(species_weights + d * C)
        _j, _i, row_y, _use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        r = tl.arange(0, 4 if d == 0 else (8 if d < 3 else 16))[None, :]
        values = tl.zeros(row_y.shape, tl.float32)
        for m in tl.static_range(2 * d + 3):
            value = harmonic(x, y, z, (d + 1) * (d + 1) - 1 + m)
            values = tl.where((r == m) & real[:, None], value[:, None], values)
        tl.store(harmonics + row_y, values, mask=use_y)
        store_degree(sent, tl.sum(gate[:, None, :] * values[:, :, None], 0), tile, d, C, ROWS)


@triton.jit(do_not_specialize=["tiles"])
def pair_forces(
    tile_atom,
    others,
    vectors,
    numbers,
    species_index,
    weights,
    weights_back,
    wave_numbers,
    radial,
    harmonics,
    of_sent,
    of_harmonics,
    of_radial,
    parts,
    tiles,
    cutoff,
    radial_scale,
    T: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    LAYERS: tl.constexpr,
):
    """Derivative of :func:`initial`, and from all gradients of a tile its part of force and virial."""
    tile = tl.program_id(0)
    atom = tl.load(tile_atom + tile)
    if atom < 0:
        return
    t, c, k = tl.arange(0, T), tl.arange(0, C), tl.arange(0, K)
    other = tl.load(others + tile * T + t)
    real = other >= 0
    other = tl.maximum(other, 0)
    x, y, z, distance = _directions(vectors, tile, t, T)

    place_b = tile * (T * K) + t[:, None] * K + k[None, :]
    b = tl.load(radial + place_b)
    db = tl.zeros([T, K], tl.float32)
    for layer in tl.static_range(LAYERS):
        db += tl.load(of_radial + ((layer * tiles + tile) * T + t[:, None]) * K + k[None, :])

    species_weights = weights + L * K * C
    species_j = tl.maximum(tl.load(species_index + tl.load(numbers + other)), 0).to(tl.int32)
    species_i = tl.maximum(tl.load(species_index + tl.load(numbers + atom)), 0).to(tl.int32)
    gx, gy, gz = 0.0 * x, 0.0 * x, 0.0 * x
    for d in tl.static_range(L):
        parity = 2.0 * (d % 2) - 1.0
        gate = tl.dot(b, matrix(weights + d * K * C, K, C), input_precision="ieee")
        weight_j = tl.load(species_weights + species_j[:, None] * (L * C) + d * C + c[None, :])
        weight_i = tl.load(species_weights + species_i * (L * C) + d * C + c) * parity
        row_j, row_i, row_y, use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        values = tl.load(harmonics + row_y, mask=use_y, other=0.0)
        of_product = weight_j[:, None, :] * tl.load(of_sent + row_i, mask=use, other=0.0)
        of_product += weight_i[None, None, :] * tl.load(of_sent + row_j, mask=use, other=0.0)
        dgate = tl.sum(of_product * values[:, :, None], 1)
        dy = tl.sum(of_product * gate[:, None, :], 2)
        for layer in tl.static_range(LAYERS):
            dy += tl.load(of_harmonics + layer * tiles * T * ROWS + row_y, mask=use_y, other=0.0)
        hx, hy, hz = 0.0 * dy, 0.0 * dy, 0.0 * dy
        r = tl.arange(0, 4 if d == 0 else (8 if d < 3 else 16))[None, :]
        for m in tl.static_range(2 * d + 3):
            sx, sy, sz = harmonic_gradient(x, y, z, (d + 1) * (d + 1) - 1 + m)
            hx = tl.where(r == m, sx[:, None], hx)
            hy = tl.where(r == m, sy[:, None], hy)
            hz = tl.where(r == m, sz[:, None], hz)
        gx += tl.sum(dy * hx, 1)
        gy += tl.sum(dy * hy, 1)
        gz += tl.sum(dy * hz, 1)
        db = tl.dot(dgate, matrix(weights_back + d * C * K, C, K), db, input_precision="ieee")

    s, inside, polynomial = _inside_cutoff(distance, cutoff)
    slope = (((105.0 * s + 60.0) * s + 30.0) * s + 12.0) * s + 3.0
    envelope = inside * inside * inside * polynomial
    denvelope = inside * inside * (inside * slope - 3.0 * polynomial) / cutoff
    wave = tl.load(wave_numbers + k)[None, :]
    angle = distance[:, None] * wave
    dfactor = (denvelope - envelope / distance) * (radial_scale / distance)
    factor = envelope * (radial_scale / distance)
    slopes = tl.sin(angle) * dfactor[:, None] + tl.cos(angle) * wave * factor[:, None]
    along = tl.sum(db * slopes, 1)
    along -= (gx * x + gy * y + gz * z) / distance
    gx = tl.where(real, x * along + gx / distance, 0.0)
    gy = tl.where(real, y * along + gy / distance, 0.0)
    gz = tl.where(real, z * along + gz / distance, 0.0)
    x, y, z = x * distance, y * distance, z * distance
    out = parts + tile * 16
    tl.store(out, tl.sum(gx, 0))
    tl.store(out + 1, tl.sum(gy, 0))
    tl.store(out + 2, tl.sum(gz, 0))
    # A pair has two ends, and the virial is made symmetric: halves of halves.
    tl.store(out + 3, 0.5 * tl.sum(x * gx, 0))
    tl.store(out + 4, 0.25 * tl.sum(x * gy + y * gx, 0))
    tl.store(out + 5, 0.25 * tl.sum(x * gz + z * gx, 0))
    tl.store(out + 6, 0.5 * tl.sum(y * gy, 0))
    tl.store(out + 7, 0.25 * tl.sum(y * gz + z * gy, 0))
    tl.store(out + 8, 0.5 * tl.sum(z * gz, 0))


@triton.jit(do_not_specialize=["atoms"])
def collect(
    first_tile,
    number_of_tiles,
    batch,
    energies,
    parts,
    energy,
    forces,
    virial,
    atoms,
    ATOMS: tl.constexpr,
):
    """Forces of the first programs' atoms, then energies and virials of the others' structures."""
    program = tl.program_id(0)
    if program < atoms:
        first = tl.load(first_tile + program)
        column = tl.arange(0, 4)
        force = tl.zeros([4], tl.float32)
        for k in range(tl.load(number_of_tiles + program)):
            force += tl.load(parts + (first + k) * 16 + column, mask=column < 3, other=0.0)
        tl.store(forces + 3 * program + column, force, mask=column < 3)
        return
    structure = program - atoms
    atom = tl.arange(0, ATOMS)
    real = atom < atoms
    member = real & (tl.load(batch + atom, mask=real, other=-1) == structure)
    total = tl.sum(tl.load(energies + atom, mask=member, other=0.0), 0)
    tl.store(energy + structure, total)
    column = tl.arange(0, 8)
    stress = tl.zeros([ATOMS, 8], tl.float32)
    first = tl.load(first_tile + atom, mask=member, other=0)
    number = tl.load(number_of_tiles + atom, mask=member, other=0)
    for k in range(tl.max(number, 0)):
        stress += tl.load(
            parts + (first + k)[:, None] * 16 + 3 + column[None, :],
            mask=(k < number)[:, None] & (column < 6)[None, :],
            other=0.0,
        )
    stress_sum = tl.sum(stress, 0)
    # xx, xy, xz, yy, yz, zz: columns of the symmetric matrix, each off-diagonal one twice.
    row = (column >= 3).to(tl.int32) + (column >= 5).to(tl.int32)
    line = column - tl.where(column >= 3, 2, 0) - tl.where(column >= 5, 1, 0)
    out = virial + 9 * structure
    tl.store(out + 3 * row + line, stress_sum, mask=column < 6)
    tl.store(out + 3 * line + row, stress_sum, mask=column < 6)
