"""3 × 3 convolution of stride 1 by Winograd's F(4 × 4, 3 × 3): 36 products for 144.

A tile of 4 × 4 outputs y sees 6 × 6 inputs d. With the matrices that are the formulas of
:mod:`refkd_numba.conv.transforms`::

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A

Summed over channels, each of the 36 entries is a matrix product of tiles × channels with
channels × filters. The gradient of the weight is the adjoint of the same formula::

    dw = Gᵀ [ Σ_tiles (Bᵀ d B) ⊙ (A dy Aᵀ) ] G

and that of the input is the convolution of dy with the flipped weight. The transforms
amplify rounding: errors are some twenty times those of direct convolution.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308.
"""

from __future__ import annotations

import numpy as np

from refkd_numba.compile import compiled, device
from refkd_numba.conv.transforms import (
    gradient_points,
    input_points,
    output_values,
    transform,
    transform_and_finish,
    weight_points,
    weight_values,
)
from refkd_numba.microkernel import COLUMNS, LANES, tile

__all__ = [
    "POINTS",
    "SPARE",
    "TILE",
    "forward",
    "tiles_at_a_time",
    "transform_weight",
    "weight_gradient",
    "weight_sums",
]

TILE = 4
POINTS = 36
SPARE = 16
"""Values between the points in scratch memory: at a distance of a power of 2 all points of a
tile would compete for the same lines of the cache."""

_F = 4  # bytes of a float32
_STEPS = 320  # of a panel that stays in the level-1 cache
_CHANNELS = 8  # of a weight that are read together: its rows are long

_transform_input = transform(input_points, 6)
_transform_gradient = transform(gradient_points, 4)
_transform_weight = transform(weight_points, 3)
_transform_sums = transform(weight_values, 6)
_transform_output = transform_and_finish(output_values, 6)


def tiles_at_a_time(channels: int) -> int:
    """Return how many tiles a thread transforms before it multiplies: about 1 MB of them."""
    return max(16, min(128, 8192 // channels // 8 * 8))


@compiled
def transform_weight(weight, panels, flipped, thread, threads):
    """Write G w Gᵀ of (K, C, 3, 3) into panels (36, ⌈K / COLUMNS⌉, C, COLUMNS).

    ``flipped`` is for the adjoint: of (C, K, 3, 3), with the taps in reverse.
    """
    inputs, padded = panels.shape[2], panels.shape[1] * COLUMNS
    outputs = weight.shape[1] if flipped else weight.shape[0]
    taps = np.zeros((_CHANNELS, 3, 3, padded), np.float32)
    of_point = _F * panels.shape[1] * inputs * COLUMNS
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
            for k in range(0, padded, LANES):
                panel = k // COLUMNS
                source = taps[c].ctypes.data + _F * k
                target = panels[0, panel, first + c].ctypes.data + _F * (k - panel * COLUMNS)
                _transform_weight(
                    source, 3 * _F * padded, _F * padded, 0, 3, 0, 3, source,
                    target, 6 * of_point, of_point,
                )  # fmt: skip


@compiled
def forward(x, panels, bias, y, pad_h, pad_w, relu, inputs, products, thread, threads):
    """Write y (N, P, Q, K) of x (N, H, W, C); ``relu`` clips what is below 0.

    ``panels`` is the transformed weight, ``bias`` may be empty. Scratch for a block of tiles:
    ``inputs`` (threads, 36, block · C + SPARE) and ``products``, likewise with padded K.
    """
    channels, filters, padded = x.shape[3], y.shape[3], panels.shape[1] * COLUMNS
    block = (inputs.shape[2] - SPARE) // channels
    down, across = (y.shape[1] + TILE - 1) // TILE, (y.shape[2] + TILE - 1) // TILE
    tiles = y.shape[0] * down * across
    mine, results = inputs[thread], products[thread]
    added = bias if bias.size else np.zeros(filters, np.float32)
    least = np.float32(0) if relu else np.float32(-np.inf)
    zeros, elsewhere = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    row, column, point = _F * y.shape[2] * filters, _F * filters, _F * results.shape[1]
    for first in range(thread * block, tiles, threads * block):
        count = min(block, tiles - first)
        for t in range(count):
            n, i, j = place(first + t, down, across)
            input_tile(x, n, i * TILE - pad_h, j * TILE - pad_w, zeros, mine, t)
        for f in range(POINTS):
            for c in range(0, channels, _STEPS):
                for panel in range(panels.shape[1]):
                    tile(
                        count, mine[f].ctypes.data + _F * c, _F * channels, _F, 0,
                        panels[f, panel, c].ctypes.data, _F * COLUMNS, 0,
                        1, min(_STEPS, channels - c),
                        results[f].ctypes.data + _F * COLUMNS * panel, _F * padded, c,
                    )  # fmt: skip
        for t in range(count):
            n, i, j = place(first + t, down, across)
            rows, columns = y.shape[1] - i * TILE, y.shape[2] - j * TILE
            target = y[n, i * TILE, j * TILE].ctypes.data
            for lane in range(0, filters, LANES):
                k = min(lane, filters - LANES)  # the last filters once more, where they are odd
                _transform_output(
                    results.ctypes.data + _F * (t * padded + k), 6 * point, point,
                    target + _F * k, row, column, rows, columns, elsewhere.ctypes.data,
                    added.ctypes.data + _F * k, least,
                )  # fmt: skip


@device
def input_tile(x, n, top, left, zeros, points, t):
    """Write Bᵀ d B of the 6 × 6 inputs from (top, left) into points (36, tiles · C ...) at t."""
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    source = x.ctypes.data + _F * ((n * height + top) * width + left) * channels
    target, point = points.ctypes.data + _F * t * channels, _F * points.shape[1]
    for lane in range(0, channels, LANES):
        c = _F * min(lane, channels - LANES)
        _transform_input(
            source + c, _F * width * channels, _F * channels, -top, height - top, -left,
            width - left, zeros.ctypes.data, target + c, 6 * point, point,
        )  # fmt: skip


@device
def gradient_tile(dy, n, top, left, zeros, points, block, t, odd):
    """Write A dy Aᵀ of the 4 × 4 gradients from (top, left) into points at t.

    points is (36, panels · block · COLUMNS ...), COLUMNS filters to a panel. ``odd``
    (4, 4, LANES) is room for filters that do not fill a vector.
    """
    height, width, filters = dy.shape[1], dy.shape[2], dy.shape[3]
    source = dy.ctypes.data + _F * ((n * height + top) * width + left) * filters
    point = _F * points.shape[1]
    whole = filters // LANES * LANES
    for k in range(0, filters, LANES):
        panel = k // COLUMNS
        target = points.ctypes.data + _F * ((panel * block + t) * COLUMNS + k - panel * COLUMNS)
        if k < whole:
            _transform_gradient(
                source + _F * k, _F * width * filters, _F * filters, 0, height - top, 0,
                width - left, zeros.ctypes.data, target, 6 * point, point,
            )  # fmt: skip
        else:
            odd[:] = np.float32(0)
            for i in range(min(TILE, height - top)):
                for j in range(min(TILE, width - left)):
                    for lane in range(filters - k):
                        odd[i, j, lane] = dy[n, top + i, left + j, k + lane]
            _transform_gradient(
                odd.ctypes.data, _F * TILE * LANES, _F * LANES, 0, TILE, 0, TILE,
                zeros.ctypes.data, target, 6 * point, point,
            )  # fmt: skip


@device(inline=True)
def place(index, down, across):
    """Return image, row and column of a tile."""
    n = index // (down * across)
    rest = index - n * down * across
    i = rest // across
    return n, i, rest - i * across


@compiled
def weight_sums(x, dy, pad_h, pad_w, inputs, gradients, sums, thread, threads):
    """Write each thread's Σ_tiles (Bᵀ d B) ⊙ (A dy Aᵀ) into sums (threads, 36, C, padded K).

    Scratch for a block of tiles: ``inputs`` (threads, 36, block · C + SPARE) and ``gradients``,
    likewise with padded K.
    """
    channels, padded = x.shape[3], sums.shape[3]
    block = (inputs.shape[2] - SPARE) // channels
    down, across = (dy.shape[1] + TILE - 1) // TILE, (dy.shape[2] + TILE - 1) // TILE
    tiles = dy.shape[0] * down * across
    mine, theirs, total = inputs[thread], gradients[thread], sums[thread]
    zeros, odd = np.zeros(LANES, np.float32), np.empty((TILE, TILE, LANES), np.float32)
    theirs[:] = np.float32(0)  # beyond the last filter too
    total[:] = np.float32(0)
    for first in range(thread * block, tiles, threads * block):
        count = min(block, tiles - first)
        for t in range(count):
            n, i, j = place(first + t, down, across)
            input_tile(x, n, i * TILE - pad_h, j * TILE - pad_w, zeros, mine, t)
            gradient_tile(dy, n, i * TILE, j * TILE, zeros, theirs, block, t, odd)
        for f in range(POINTS):
            for panel in range(padded // COLUMNS):
                tile(
                    channels, mine[f].ctypes.data, _F, _F * channels, 0,
                    theirs[f].ctypes.data + _F * panel * block * COLUMNS, _F * COLUMNS, 0, 1, count,
                    total[f].ctypes.data + _F * COLUMNS * panel, _F * padded, 1,
                )  # fmt: skip


@compiled
def weight_gradient(sums, dweight, thread, threads):
    """Write Gᵀ Σ_threads sums G, (threads, 36, C, padded K), into dweight (K, C, 3, 3)."""
    channels, padded = sums.shape[2], sums.shape[3]
    total = np.empty((POINTS, padded), np.float32)
    values = np.empty((3, 3, padded), np.float32)
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        for f in range(POINTS):
            for k in range(padded):
                total[f, k] = sums[0, f, c, k]
            for part in range(1, sums.shape[0]):
                for k in range(padded):
                    total[f, k] += sums[part, f, c, k]
        for k in range(0, padded, LANES):
            source = total.ctypes.data + _F * k
            _transform_sums(
                source, 6 * _F * padded, _F * padded, 0, 6, 0, 6, source,
                values.ctypes.data + _F * k, 3 * _F * padded, _F * padded,
            )  # fmt: skip
        for k in range(dweight.shape[0]):
            for i in range(3):
                for j in range(3):
                    dweight[k, c, i, j] = values[i, j, k]
