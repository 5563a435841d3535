"""Kernels of :mod:`forcefield.fused` for what happens at atoms, between two sums over their pairs.

A program has one atom. Weights lie in the order in which they are used: those of the update first, then
those of what the atom brings into its next pairs. They are all fetched before the first sum needs them: to
wait for memory is what takes time here. Degrees are four everywhere, those that are missing have zeros.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="misc"

import triton
import triton.language as tl

from forcefield.fused_blocks import (
    degree_matrices,
    degree_of_rows,
    matrix,
    matvec,
    mix,
    silu,
    silu_slope,
    sum_of_tiles,
    sum_of_vectors,
    to_components,
    to_degrees,
)


@triton.jit
def _place(atom, ROWS: tl.constexpr, C: tl.constexpr):
    """Where steerable features of an atom lie."""
    return (atom * ROWS + tl.arange(0, ROWS)[:, None]) * C + tl.arange(0, C)[None, :]


@triton.jit
def _update_back(
    dh, dx, matrices, up, left, right, degree, scale, atom, of_h_in, of_x_in, of_collected, of_sent,
    C: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of an update's inputs, from those of h and of x before its channels are mixed."""
    out, scalars, messages, invariants, left_back, right_back = matrices
    dup = matvec(out, dh) * silu_slope(up)
    dinner = to_components(matvec(invariants, dup), degree, C)
    dx += mix(left_back, dinner * right) + mix(right_back, dinner * left)
    f, place = tl.arange(0, F), _place(atom, ROWS, C)
    tl.store(of_h_in + atom * F + f, dh + matvec(scalars, dup))
    tl.store(of_collected + atom * F + f, scale * matvec(messages, dup))
    tl.store(of_x_in + place, dx)
    tl.store(of_sent + place, scale * dx)


@triton.jit
def _update_back_matrices(
    w, degree, F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr
):
    """Weights of :func:`_update_back`."""
    out, scalars = matrix(w, F, F), matrix(w + F * F, F, F)
    messages = matrix(w + 2 * F * F, F, F)
    invariants = matrix(w + 3 * F * F, 4 * C, F)
    w += 3 * F * F + 4 * C * F
    left = degree_matrices(w, degree, ROWS, C, L)
    right = degree_matrices(w + L * C * C, degree, ROWS, C, L)
    return out, scalars, messages, invariants, left, right


@triton.jit
def begin(
    numbers, species_index, embedding, weights, first_tile, number_of_tiles, sent,
    h_out, x_out, atoms, projected, carried, scale,
    F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """First features, and what they bring into the pairs of the first layer."""
    M: tl.constexpr = (L + 1) * (L + 1) - 1
    atom = tl.program_id(0)
    first, number = tl.load(first_tile + atom), tl.load(number_of_tiles + atom)
    degree, f, place = degree_of_rows(ROWS), tl.arange(0, F), _place(atom, ROWS, C)
    bring = matrix(weights, F, F)
    bias = tl.load(weights + F * F + f)
    w = weights + F * F + F
    project = degree_matrices(w, degree, ROWS, C, L)
    carry = degree_matrices(w + L * C * C, degree, ROWS, C, L)

    species = tl.maximum(tl.load(species_index + tl.load(numbers + atom)), 0).to(tl.int32)
    h = tl.load(embedding + species * F + f)
    x = scale * sum_of_tiles(sent, first, number, ROWS, M, C)
    tl.store(h_out + atom * F + f, h)
    tl.store(x_out + place, x)
    tl.store(atoms + atom * F + f, matvec(bring, h) + bias)
    tl.store(projected + place, mix(project, x))
    tl.store(carried + place, mix(carry, x))


@triton.jit
def begin_gradients(
    weights_back, first_tile, number_of_tiles, of_projected, of_carried, of_x, of_sent, scale,
    F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of the first sums."""
    M: tl.constexpr = (L + 1) * (L + 1) - 1
    atom = tl.program_id(0)
    first, number = tl.load(first_tile + atom), tl.load(number_of_tiles + atom)
    degree, place = degree_of_rows(ROWS), _place(atom, ROWS, C)
    w = weights_back + F * F
    project = degree_matrices(w, degree, ROWS, C, L)
    carry = degree_matrices(w + L * C * C, degree, ROWS, C, L)
    dx = tl.load(of_x + place)
    dx += mix(project, sum_of_tiles(of_projected, first, number, ROWS, M, C))
    dx += mix(carry, sum_of_tiles(of_carried, first, number, ROWS, M, C))
    tl.store(of_sent + place, scale * dx)


@triton.jit
def update(
    h_in, x_in, weights, first_tile, number_of_tiles, collected, sent,
    h_out, x_out, x_middle, ups, channel_gates, atoms, projected, carried, scale,
    F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The update of a layer that is not the last, and what the atom brings into the next."""
    M: tl.constexpr = (L + 1) * (L + 1) - 1
    atom = tl.program_id(0)
    first, number = tl.load(first_tile + atom), tl.load(number_of_tiles + atom)
    degree, f, place = degree_of_rows(ROWS), tl.arange(0, F), _place(atom, ROWS, C)
    q = tl.arange(0, 4 * C)
    h, x = tl.load(h_in + atom * F + f), tl.load(x_in + place)
    left_matrices = degree_matrices(weights, degree, ROWS, C, L)
    right_matrices = degree_matrices(weights + L * C * C, degree, ROWS, C, L)
    w = weights + 2 * L * C * C
    scalars, messages = matrix(w, F, F), matrix(w + F * F, F, F)
    bias = tl.load(w + 2 * F * F + f)
    w += 2 * F * F + F
    invariants = matrix(w, F, 4 * C)
    w += F * 4 * C
    out, out_bias = matrix(w, F, F), tl.load(w + F * F + f)
    w += F * F + F
    gates, gates_bias = matrix(w, 4 * C, F), tl.load(w + 4 * C * F + q)
    w += 4 * C * F + 4 * C
    mix_matrices = degree_matrices(w, degree, ROWS, C, L)
    w += L * C * C
    bring, bring_bias = matrix(w, F, F), tl.load(w + F * F + f)
    w += F * F + F
    project = degree_matrices(w, degree, ROWS, C, L)
    carry = degree_matrices(w + L * C * C, degree, ROWS, C, L)

    x += scale * sum_of_tiles(sent, first, number, ROWS, M, C)
    inner = to_degrees(mix(left_matrices, x) * mix(right_matrices, x), degree, C)
    up = matvec(scalars, h) + bias + matvec(invariants, inner)
    up += matvec(messages, scale * sum_of_vectors(collected, first, number, F))
    h += matvec(out, silu(up)) + out_bias
    gate = matvec(gates, h) + gates_bias
    tl.store(x_middle + place, x)
    tl.store(ups + atom * F + f, up)
    tl.store(h_out + atom * F + f, h)
    tl.store(channel_gates + atom * (4 * C) + q, gate)
    x += to_components(gate, degree, C) * mix(mix_matrices, x)
    tl.store(x_out + place, x)
    tl.store(atoms + atom * F + f, matvec(bring, h) + bring_bias)
    tl.store(projected + place, mix(project, x))
    tl.store(carried + place, mix(carry, x))


@triton.jit
def update_gradients(
    weights, weights_back, first_tile, number_of_tiles, x_middle, ups, channel_gates,
    of_atoms, of_projected, of_carried, of_h_out, of_x_out,
    of_h_in, of_x_in, of_collected, of_sent, scale,
    F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Derivative of :func:`update`; ``of_h_out`` and ``of_x_out`` are what comes from later updates."""
    M: tl.constexpr = (L + 1) * (L + 1) - 1
    UPDATE: tl.constexpr = 2 * L * C * C + 3 * F * F + 2 * F + F * 4 * C
    UPDATE_BACK: tl.constexpr = 3 * F * F + 4 * C * F + 2 * L * C * C
    atom = tl.program_id(0)
    first, number = tl.load(first_tile + atom), tl.load(number_of_tiles + atom)
    degree, f, place = degree_of_rows(ROWS), tl.arange(0, F), _place(atom, ROWS, C)
    w = weights_back + UPDATE_BACK
    gates = matrix(w, F, 4 * C)
    w += F * 4 * C
    mix_back = degree_matrices(w, degree, ROWS, C, L)
    w += L * C * C
    bring = matrix(w, F, F)
    w += F * F
    project = degree_matrices(w, degree, ROWS, C, L)
    carry = degree_matrices(w + L * C * C, degree, ROWS, C, L)
    mix_matrices = degree_matrices(weights + UPDATE + 4 * C * F + 4 * C, degree, ROWS, C, L)
    left_matrices = degree_matrices(weights, degree, ROWS, C, L)
    right_matrices = degree_matrices(weights + L * C * C, degree, ROWS, C, L)
    x = tl.load(x_middle + place)
    up = tl.load(ups + atom * F + f)
    gate = tl.load(channel_gates + atom * (4 * C) + tl.arange(0, 4 * C))
    dh, dx = tl.load(of_h_out + atom * F + f), tl.load(of_x_out + place)

    dx += mix(project, sum_of_tiles(of_projected, first, number, ROWS, M, C))
    dx += mix(carry, sum_of_tiles(of_carried, first, number, ROWS, M, C))
    back = _update_back_matrices(weights_back, degree, F, C, L, ROWS)
    dh += matvec(bring, sum_of_vectors(of_atoms, first, number, F))
    dh += matvec(gates, to_degrees(dx * mix(mix_matrices, x), degree, C))
    dx += mix(mix_back, to_components(gate, degree, C) * dx)
    left, right = mix(left_matrices, x), mix(right_matrices, x)
    _update_back(
        dh, dx, back, up, left, right, degree, scale, atom,
        of_h_in, of_x_in, of_collected, of_sent, C, F, ROWS,
    )  # fmt: skip


@triton.jit
def finish(
    h_in, x_in, weights, weights_back, first_tile, number_of_tiles, collected, sent,
    numbers, species_index, readout, energy_scale, isolated, references,
    energies, outputs, of_h_in, of_x_in, of_collected, of_sent, scale,
    F: tl.constexpr, C: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The last update and the energy; and the derivative of both.

    ``outputs`` gets the readout's network as it is; ``isolated`` is what that gave for lone atoms.
    """
    M: tl.constexpr = (L + 1) * (L + 1) - 1
    atom = tl.program_id(0)
    first, number = tl.load(first_tile + atom), tl.load(number_of_tiles + atom)
    degree, f, place = degree_of_rows(ROWS), tl.arange(0, F), _place(atom, ROWS, C)
    h, x = tl.load(h_in + atom * F + f), tl.load(x_in + place)
    found = tl.load(species_index + tl.load(numbers + atom)).to(tl.int32)
    left_matrices = degree_matrices(weights, degree, ROWS, C, L)
    right_matrices = degree_matrices(weights + L * C * C, degree, ROWS, C, L)
    w = weights + 2 * L * C * C
    scalars, messages = matrix(w, F, F), matrix(w + F * F, F, F)
    bias = tl.load(w + 2 * F * F + f)
    w += 2 * F * F + F
    invariants = matrix(w, F, 4 * C)
    w += F * 4 * C
    out, out_bias = matrix(w, F, F), tl.load(w + F * F + f)
    network, network_bias = matrix(readout, F, F), tl.load(readout + F * F + f)
    last = tl.load(readout + F * F + F + f)
    network_back = matrix(readout + F * F + 2 * F, F, F)
    species = tl.maximum(found, 0)
    sigma = tl.load(energy_scale + species)
    sigma = tl.where(found < 0, float("nan"), sigma)  # an element that it does not know
    origin, reference = tl.load(isolated + species), tl.load(references + species)

    x += scale * sum_of_tiles(sent, first, number, ROWS, M, C)
    left, right = mix(left_matrices, x), mix(right_matrices, x)
    up = matvec(scalars, h) + bias + matvec(invariants, to_degrees(left * right, degree, C))
    up += matvec(messages, scale * sum_of_vectors(collected, first, number, F))
    back = _update_back_matrices(weights_back, degree, F, C, L, ROWS)
    h += matvec(out, silu(up)) + out_bias
    inner = matvec(network, h) + network_bias
    output = tl.sum(last * silu(inner), 0)
    tl.store(outputs + atom, output)
    tl.store(energies + atom, ((output - origin) * sigma).to(tl.float64) + reference)
    dh = matvec(network_back, sigma * last * silu_slope(inner))
    _update_back(
        dh, tl.zeros([ROWS, C], tl.float32), back, up, left, right, degree, scale, atom,
        of_h_in, of_x_in, of_collected, of_sent, C, F, ROWS,
    )  # fmt: skip
