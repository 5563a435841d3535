"""Kernels of :mod:`forcefield.fused` for the messages of a layer, and for their derivative.

A program has one tile: T neighbours of one atom. It keeps what belongs to that atom.
Nearly all that it needs from memory is fetched before the first barrier: to wait for it takes longest.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  Triton knows no stars

import triton
import triton.language as tl

from forcefield.fused_blocks import matrix, rows_of_degree, silu, silu_slope, store_degree


@triton.jit(do_not_specialize=["tiles"])
def messages(
    tile_atom,
    others,
    radial,
    harmonics,
    atoms,
    projected,
    carried,
    weights,
    hidden,
    gates,
    collected,
    sent,
    tiles,
    T: tl.constexpr,
    F: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
):
    """Sums over a tile of e_ij and of what is added to X_i; ``hidden`` and ``gates`` are kept."""
    tile = tl.program_id(0)
    atom = tl.load(tile_atom + tile)
    if atom < 0:
        return
    IN: tl.constexpr = 2 * L * C * F
    OUT: tl.constexpr = IN + K * F
    HIDDEN: tl.constexpr = OUT + K * F
    GATES: tl.constexpr = HIDDEN + F * F + F
    t, c, f = tl.arange(0, T), tl.arange(0, C), tl.arange(0, F)
    middle, middle_bias = matrix(weights + HIDDEN, F, F), tl.load(weights + HIDDEN + F * F + f)
    inwards, outwards = matrix(weights + IN, K, F), matrix(weights + OUT, K, F)
    products, alongs, gating = (), (), ()
    for d in tl.static_range(L):
        products = products + (matrix(weights + d * C * F, C, F),)
        alongs = alongs + (matrix(weights + (L + d) * C * F, C, F),)
        gating = gating + (matrix(weights + GATES + d * F * 2 * C, F, 2 * C),)
    other = tl.maximum(tl.load(others + tile * T + t), 0)
    b = tl.load(radial + tile * (T * K) + t[:, None] * K + tl.arange(0, K)[None, :])
    pre = tl.load(atoms + other[:, None] * F + f[None, :]) + tl.load(atoms + atom * F + f)[None, :]
    ys, p_js, p_is, v_js = (), (), (), ()
    for d in tl.static_range(L):
        row_j, row_i, row_y, use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        ys = ys + (tl.load(harmonics + row_y, mask=use_y, other=0.0),)
        p_js = p_js + (tl.load(projected + row_j, mask=use, other=0.0),)
        p_is = p_is + (tl.load(projected + row_i, mask=use, other=0.0),)
        v_js = v_js + (tl.load(carried + row_j, mask=use, other=0.0),)

    pre = tl.dot(b, inwards, pre, input_precision="ieee")
    outer = tl.dot(b, outwards, input_precision="ieee")
    for d in tl.static_range(L):
        parity = 2.0 * (d % 2) - 1.0
        product = tl.sum(p_js[d] * p_is[d], 1)
        along = tl.sum((p_js[d] + parity * p_is[d]) * ys[d][:, :, None], 1)
        pre = tl.dot(product, products[d], pre, input_precision="ieee")
        pre = tl.dot(along, alongs[d], pre, input_precision="ieee")
    second = tl.dot(silu(pre), middle, input_precision="ieee") + middle_bias[None, :]
    message = silu(second) * outer

    place = (tile * T + t[:, None]) * F + f[None, :]
    tl.store(hidden + place, pre)
    tl.store(hidden + tiles * (T * F) + place, second)
    tl.store(hidden + 2 * tiles * (T * F) + place, outer)
    tl.store(collected + tile * F + f, tl.sum(message, 0))
    for d in tl.static_range(L):
        both = tl.dot(message, gating[d], input_precision="ieee")
        gate, carry = tl.split(tl.reshape(both, [T, C, 2]))
        place_g = (tile * (2 * L) + d) * (T * C) + t[:, None] * C + c[None, :]
        tl.store(gates + place_g, gate)
        tl.store(gates + place_g + L * T * C, carry)
        towards = gate[:, None, :] * ys[d][:, :, None] + carry[:, None, :] * v_js[d]
        store_degree(sent, tl.sum(towards, 0), tile, d, C, ROWS)


@triton.jit(do_not_specialize=["tiles"])
def message_gradients(
    tile_atom,
    others,
    harmonics,
    projected,
    carried,
    weights_back,
    hidden,
    gates,
    of_collected,
    of_sent,
    of_atoms,
    of_projected,
    of_carried,
    of_harmonics,
    of_radial,
    tiles,
    T: tl.constexpr,
    F: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
):
    """Derivative of :func:`messages`.

    Gradients of pairs are whole, with what the pair says to the neighbour; gradients of features are
    summed over the tile and are those of the tile's own atom.
    """
    tile = tl.program_id(0)
    atom = tl.load(tile_atom + tile)
    if atom < 0:
        return
    HIDDEN: tl.constexpr = 2 * L * C * F
    OUT: tl.constexpr = HIDDEN + F * F
    IN: tl.constexpr = OUT + F * K
    INVARIANTS: tl.constexpr = IN + F * K
    t, c, f = tl.arange(0, T), tl.arange(0, C), tl.arange(0, F)
    gate_weights, carry_weights, invariants = (), (), ()
    for d in tl.static_range(L):
        gate_weights = gate_weights + (matrix(weights_back + d * C * F, C, F),)
        carry_weights = carry_weights + (matrix(weights_back + (L + d) * C * F, C, F),)
        w = weights_back + INVARIANTS + d * F * 2 * C
        invariants = invariants + (matrix(w, F, 2 * C),)
    middle = matrix(weights_back + HIDDEN, F, F)
    outwards, inwards = matrix(weights_back + OUT, F, K), matrix(weights_back + IN, F, K)
    place = (tile * T + t[:, None]) * F + f[None, :]
    pre = tl.load(hidden + place)
    second = tl.load(hidden + tiles * (T * F) + place)
    outer = tl.load(hidden + 2 * tiles * (T * F) + place)
    other = tl.maximum(tl.load(others + tile * T + t), 0)
    dmessage = tl.load(of_collected + other[:, None] * F + f[None, :])
    dmessage += tl.load(of_collected + atom * F + f)[None, :]
    ys, s_js, s_is, p_js, p_is = (), (), (), (), ()
    for d in tl.static_range(L):
        row_j, row_i, row_y, use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        ys = ys + (tl.load(harmonics + row_y, mask=use_y, other=0.0),)
        s_js = s_js + (tl.load(of_sent + row_j, mask=use, other=0.0),)
        s_is = s_is + (tl.load(of_sent + row_i, mask=use, other=0.0),)
        p_js = p_js + (tl.load(projected + row_j, mask=use, other=0.0),)
        p_is = p_is + (tl.load(projected + row_i, mask=use, other=0.0),)

    for d in tl.static_range(L):
        parity = 2.0 * (d % 2) - 1.0
        row_j, row_i, row_y, use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        v_j = tl.load(carried + row_j, mask=use, other=0.0)
        v_i = tl.load(carried + row_i, mask=use, other=0.0)
        dgate = tl.sum((s_is[d] + parity * s_js[d]) * ys[d][:, :, None], 1)
        dcarry = tl.sum(s_is[d] * v_j + s_js[d] * v_i, 1)
        dmessage = tl.dot(dgate, gate_weights[d], dmessage, input_precision="ieee")
        dmessage = tl.dot(dcarry, carry_weights[d], dmessage, input_precision="ieee")

    db = tl.dot(dmessage * silu(second), outwards, input_precision="ieee")
    dsecond = dmessage * outer * silu_slope(second)
    dpre = tl.dot(dsecond, middle, input_precision="ieee") * silu_slope(pre)
    tl.store(of_atoms + tile * F + f, tl.sum(dpre, 0))
    db = tl.dot(dpre, inwards, db, input_precision="ieee")
    tl.store(of_radial + (tile * T + t[:, None]) * K + tl.arange(0, K)[None, :], db)
    for d in tl.static_range(L):
        parity = 2.0 * (d % 2) - 1.0
        both = tl.dot(dpre, invariants[d], input_precision="ieee")
        dproducts, dalong = tl.split(tl.reshape(both, [T, C, 2]))
        dproducts, dalong = dproducts[:, None, :], dalong[:, None, :]
        place_g = (tile * (2 * L) + d) * (T * C) + t[:, None, None] * C + c[None, None, :]
        gate, carry = tl.load(gates + place_g), tl.load(gates + place_g + L * T * C)
        row_j, row_i, row_y, use, use_y = rows_of_degree(other, atom, tile, d, T, C, ROWS)
        y, s_j, s_i, p_j, p_i = ys[d], s_js[d], s_is[d], p_js[d], p_is[d]
        store_degree(of_carried, tl.sum(carry * s_j, 0), tile, d, C, ROWS)
        of_p_i = dproducts * p_j + parity * dalong * y[:, :, None]
        store_degree(of_projected, tl.sum(of_p_i, 0), tile, d, C, ROWS)
        dy = tl.sum((p_j + parity * p_i) * dalong + (s_i + parity * s_j) * gate, 2)
        tl.store(of_harmonics + row_y, dy, mask=use_y)
