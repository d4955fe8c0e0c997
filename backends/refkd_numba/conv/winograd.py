"""3 × 3 convolution of stride 1 by Winograd's F(4 × 4, 3 × 3): 36 products for 144.

A tile of 4 × 4 outputs y sees 6 × 6 inputs d. With the matrices below::

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A

Summed over channels, each of the 36 entries is a matrix product of tiles × channels with
channels × filters. The gradient of the weight is the adjoint of the same formula::

    dw = Gᵀ [ Σ_tiles (Bᵀ d B) ⊙ (A dy Aᵀ) ] G

and that of the input is the convolution of dy with the flipped weight. The transforms amplify
rounding: errors are some five times those of direct convolution, ERROR_FACTOR at most.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308.
"""

from __future__ import annotations

import numpy as np

from refkd_numba.blas import sgemm
from refkd_numba.compile import compiled, device
from refkd_numba.conv.direct import finish
from refkd_numba.microkernel import COLUMNS, tile

__all__ = [
    "POINTS",
    "TILE",
    "forward",
    "multiply_for_weight",
    "tiles_at_a_time",
    "transform_for_weight",
    "transform_weight",
    "weight_gradient",
]

TILE = 4
POINTS = 36

_F = 4  # bytes of a float32
_STEPS = 320  # of a panel that stays in the level-1 cache
_CHANNELS = 8  # of a weight that are read together: its rows are long

_ZERO, _TWO, _FOUR, _FIVE, _EIGHT = (np.float32(v) for v in (0, 2, 4, 5, 8))
_QUARTER, _SIXTH, _TWELFTH, _TWENTYFOURTH = (np.float32(1 / v) for v in (4, 6, 12, 24))


def tiles_at_a_time(channels: int) -> int:
    """Return how many tiles a thread transforms before it multiplies: about 1 MB of them."""
    return max(16, min(128, 8192 // channels // 8 * 8))


@device(inline=True)
def input_points(d0, d1, d2, d3, d4, d5):
    """Bᵀ d, which is B's part of the formula for one axis."""
    even, odd = d4 - _FOUR * d2, d3 - _FOUR * d1
    wide, narrow = d4 - d2, _TWO * (d3 - d1)
    return (
        _FOUR * d0 - _FIVE * d2 + d4,
        even + odd,
        even - odd,
        wide + narrow,
        wide - narrow,
        _FOUR * d1 - _FIVE * d3 + d5,
    )


@device(inline=True)
def output_values(m0, m1, m2, m3, m4, m5):
    """Aᵀ m for one axis."""
    s, t, u, v = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s + u, t + _TWO * v, s + _FOUR * u, t + _EIGHT * v + m5


@device(inline=True)
def gradient_points(y0, y1, y2, y3):
    """A dy for one axis, the adjoint of :func:`output_values`."""
    even, odd = y0 + y2, y1 + y3
    wide, narrow = y0 + _FOUR * y2, _TWO * y1 + _EIGHT * y3
    return y0, even + odd, even - odd, wide + narrow, wide - narrow, y3


@device(inline=True)
def weight_points(g0, g1, g2):
    """G w for one axis."""
    ends, middle = _SIXTH * (g0 + g2), _SIXTH * g1
    wide, narrow = _TWENTYFOURTH * g0 + _SIXTH * g2, _TWELFTH * g1
    return _QUARTER * g0, -ends - middle, middle - ends, wide + narrow, wide - narrow, g2


@device(inline=True)
def weight_values(u0, u1, u2, u3, u4, u5):
    """Gᵀ u for one axis, the adjoint of :func:`weight_points`."""
    s, t, v, w = u1 + u2, u2 - u1, u3 + u4, u3 - u4
    return (
        _QUARTER * u0 - _SIXTH * s + _TWENTYFOURTH * v,
        _SIXTH * t + _TWELFTH * w,
        _SIXTH * (v - s) + u5,
    )


@compiled
def transform_weight(weight, panels, flipped, thread, threads):
    """Write G w Gᵀ of (K, C, 3, 3) into panels (36, ⌈K / COLUMNS⌉, C, COLUMNS).

    ``flipped`` is for the adjoint: of (C, K, 3, 3), with the taps in reverse.
    """
    inputs, padded = panels.shape[2], panels.shape[1] * COLUMNS
    outputs = weight.shape[1] if flipped else weight.shape[0]
    taps = np.zeros((_CHANNELS, 3, 3, padded), np.float32)
    half = np.empty((6, 3, padded), np.float32)
    row = np.empty((6, padded), np.float32)
    blocks = (inputs + _CHANNELS - 1) // _CHANNELS
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        first = block * _CHANNELS
        count = min(_CHANNELS, inputs - first)
        for k in range(outputs):
            for c in range(count):
                for i in range(3):
                    for j in range(3):
                        taps[c, i, j, k] = (
                            weight[first + c, k, 2 - i, 2 - j] if flipped
                            else weight[k, first + c, i, j]
                        )  # fmt: skip
        for c in range(count):
            for j in range(3):
                for k in range(padded):
                    (
                        half[0, j, k], half[1, j, k], half[2, j, k],
                        half[3, j, k], half[4, j, k], half[5, j, k],
                    ) = weight_points(taps[c, 0, j, k], taps[c, 1, j, k], taps[c, 2, j, k])  # fmt: skip
            for i in range(6):
                for k in range(padded):
                    (
                        row[0, k], row[1, k], row[2, k], row[3, k], row[4, k], row[5, k],
                    ) = weight_points(half[i, 0, k], half[i, 1, k], half[i, 2, k])  # fmt: skip
                for j in range(6):
                    for panel in range(panels.shape[1]):
                        target = panels[6 * i + j, panel, first + c]
                        source = row[j, panel * COLUMNS : (panel + 1) * COLUMNS]
                        for lane in range(COLUMNS):
                            target[lane] = source[lane]


@device
def transform_input(x, n, top, left, points, t, half):
    """Write Bᵀ d B of the 6 × 6 inputs from (top, left) into points (36, tiles, C) at t."""
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    zeros = half[6, 0]
    for j in range(6):
        w = left + j
        if w < 0 or w >= width:
            for i in range(6):
                half[i, j] = _ZERO
            continue
        d0 = x[n, top, w] if top >= 0 else zeros
        d1 = x[n, top + 1, w] if top + 1 >= 0 and top + 1 < height else zeros
        d2 = x[n, top + 2, w] if top + 2 < height else zeros
        d3 = x[n, top + 3, w] if top + 3 < height else zeros
        d4 = x[n, top + 4, w] if top + 4 < height else zeros
        d5 = x[n, top + 5, w] if top + 5 < height else zeros
        h0, h1, h2 = half[0, j], half[1, j], half[2, j]
        h3, h4, h5 = half[3, j], half[4, j], half[5, j]
        for c in range(channels):
            h0[c], h1[c], h2[c], h3[c], h4[c], h5[c] = input_points(
                d0[c], d1[c], d2[c], d3[c], d4[c], d5[c]
            )
    for i in range(6):
        d0, d1, d2 = half[i, 0], half[i, 1], half[i, 2]
        d3, d4, d5 = half[i, 3], half[i, 4], half[i, 5]
        p0, p1, p2 = points[6 * i, t], points[6 * i + 1, t], points[6 * i + 2, t]
        p3, p4, p5 = points[6 * i + 3, t], points[6 * i + 4, t], points[6 * i + 5, t]
        for c in range(channels):
            p0[c], p1[c], p2[c], p3[c], p4[c], p5[c] = input_points(
                d0[c], d1[c], d2[c], d3[c], d4[c], d5[c]
            )


@device
def transform_gradient(dy, n, p0, q0, points, t, half):
    """Write A dy Aᵀ of the 4 × 4 gradients from (p0, q0) into points (36, tiles, K) at t."""
    height, width, channels = dy.shape[1], dy.shape[2], dy.shape[3]
    zeros = half[6, 0]
    for j in range(4):
        q = q0 + j
        if q >= width:
            for i in range(6):
                half[i, j] = _ZERO
            continue
        y0 = dy[n, p0, q]
        y1 = dy[n, p0 + 1, q] if p0 + 1 < height else zeros
        y2 = dy[n, p0 + 2, q] if p0 + 2 < height else zeros
        y3 = dy[n, p0 + 3, q] if p0 + 3 < height else zeros
        h0, h1, h2 = half[0, j], half[1, j], half[2, j]
        h3, h4, h5 = half[3, j], half[4, j], half[5, j]
        for k in range(channels):
            h0[k], h1[k], h2[k], h3[k], h4[k], h5[k] = gradient_points(y0[k], y1[k], y2[k], y3[k])
    for i in range(6):
        y0, y1, y2, y3 = half[i, 0], half[i, 1], half[i, 2], half[i, 3]
        p0_, p1, p2 = points[6 * i, t], points[6 * i + 1, t], points[6 * i + 2, t]
        p3, p4, p5 = points[6 * i + 3, t], points[6 * i + 4, t], points[6 * i + 5, t]
        for k in range(channels):
            p0_[k], p1[k], p2[k], p3[k], p4[k], p5[k] = gradient_points(y0[k], y1[k], y2[k], y3[k])


@device
def transform_output(points, t, y, n, p0, q0, half):
    """Write Aᵀ m A of points (36, tiles, K) at t into the 4 × 4 outputs from (p0, q0)."""
    height, width, channels = y.shape[1], y.shape[2], y.shape[3]
    for j in range(6):
        m0, m1, m2 = points[j, t], points[6 + j, t], points[12 + j, t]
        m3, m4, m5 = points[18 + j, t], points[24 + j, t], points[30 + j, t]
        h0, h1, h2, h3 = half[0, j], half[1, j], half[2, j], half[3, j]
        for k in range(channels):
            h0[k], h1[k], h2[k], h3[k] = output_values(m0[k], m1[k], m2[k], m3[k], m4[k], m5[k])
    unused = half[4, 0], half[4, 1], half[4, 2]
    for i in range(min(4, height - p0)):
        m0, m1, m2 = half[i, 0], half[i, 1], half[i, 2]
        m3, m4, m5 = half[i, 3], half[i, 4], half[i, 5]
        y0 = y[n, p0 + i, q0]
        y1 = y[n, p0 + i, q0 + 1] if q0 + 1 < width else unused[0]
        y2 = y[n, p0 + i, q0 + 2] if q0 + 2 < width else unused[1]
        y3 = y[n, p0 + i, q0 + 3] if q0 + 3 < width else unused[2]
        for k in range(channels):
            y0[k], y1[k], y2[k], y3[k] = output_values(m0[k], m1[k], m2[k], m3[k], m4[k], m5[k])


@compiled
def forward(x, panels, bias, y, pad_h, pad_w, relu, inputs, products, thread, threads):
    """Write y (N, P, Q, K) of x (N, H, W, C); ``relu`` clips what is below 0.

    ``panels`` is the transformed weight. Scratch for a block of tiles: ``inputs`` (threads, 36,
    block, C) and ``products`` (threads, 36, block, padded K).
    """
    channels, filters, block = x.shape[3], y.shape[3], inputs.shape[2]
    down, across = (y.shape[1] + TILE - 1) // TILE, (y.shape[2] + TILE - 1) // TILE
    tiles = y.shape[0] * down * across
    half = np.empty((7, 6, max(channels, filters)), np.float32)
    half[6] = _ZERO
    mine, results = inputs[thread], products[thread]
    for first in range(thread * block, tiles, threads * block):
        count = min(block, tiles - first)
        for t in range(count):
            n, i, j = place(first + t, down, across)
            transform_input(x, n, i * TILE - pad_h, j * TILE - pad_w, mine, t, half)
        for f in range(POINTS):
            for c in range(0, channels, _STEPS):
                for panel in range(panels.shape[1]):
                    tile(
                        count, mine[f].ctypes.data + _F * c, _F * channels, _F, 0,
                        panels[f, panel, c].ctypes.data, _F * COLUMNS, 0,
                        1, min(_STEPS, channels - c),
                        results[f].ctypes.data + _F * COLUMNS * panel, _F * results.shape[2], c,
                    )  # fmt: skip
        for t in range(count):
            n, i, j = place(first + t, down, across)
            transform_output(results, t, y, n, i * TILE, j * TILE, half)
            if relu or bias.size:
                left = j * TILE
                for p in range(i * TILE, min((i + 1) * TILE, y.shape[1])):
                    finish(y[n, p, left : left + TILE], bias, relu)


@device(inline=True)
def place(index, down, across):
    """Return image, row and column of a tile."""
    n = index // (down * across)
    rest = index - n * down * across
    i = rest // across
    return n, i, rest - i * across


@compiled
def transform_for_weight(x, dy, pad_h, pad_w, first, count, inputs, gradients, thread, threads):
    """Transform ``count`` tiles of x and dy from ``first`` on, each thread some of them."""
    down, across = (dy.shape[1] + TILE - 1) // TILE, (dy.shape[2] + TILE - 1) // TILE
    half = np.empty((7, 6, max(x.shape[3], dy.shape[3])), np.float32)
    half[6] = _ZERO
    for t in range(count * thread // threads, count * (thread + 1) // threads):
        n, i, j = place(first + t, down, across)
        transform_input(x, n, i * TILE - pad_h, j * TILE - pad_w, inputs, t, half)
        transform_gradient(dy, n, i * TILE, j * TILE, gradients, t, half)


@compiled
def multiply_for_weight(inputs, gradients, count, add, sums, thread, threads):
    """Add Σ_t inputs[f, t, c] gradients[f, t, k] to sums (36, C, K), each thread some f."""
    channels, filters = sums.shape[1], sums.shape[2]
    for f in range(POINTS * thread // threads, POINTS * (thread + 1) // threads):
        sgemm(
            True, False, channels, filters, count, np.float32(1), inputs[f].ctypes.data, channels,
            gradients[f].ctypes.data, filters, np.float32(1 if add else 0), sums[f].ctypes.data,
            filters,
        )  # fmt: skip


@compiled
def weight_gradient(sums, dweight, thread, threads):
    """Write Gᵀ sums G, (36, C, K), into dweight (K, C, 3, 3)."""
    channels, filters = sums.shape[1], sums.shape[2]
    half = np.empty((3, 6, filters), np.float32)
    values = np.empty((3, 3, filters), np.float32)
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        for j in range(6):
            for k in range(filters):
                half[0, j, k], half[1, j, k], half[2, j, k] = weight_values(
                    sums[j, c, k], sums[6 + j, c, k], sums[12 + j, c, k],
                    sums[18 + j, c, k], sums[24 + j, c, k], sums[30 + j, c, k],
                )  # fmt: skip
        for i in range(3):
            for k in range(filters):
                values[i, 0, k], values[i, 1, k], values[i, 2, k] = weight_values(
                    half[i, 0, k], half[i, 1, k], half[i, 2, k],
                    half[i, 3, k], half[i, 4, k], half[i, 5, k],
                )  # fmt: skip
        for k in range(filters):
            for i in range(3):
                for j in range(3):
                    dweight[k, c, i, j] = values[i, j, k]
