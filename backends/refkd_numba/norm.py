"""What batch and group norm share: how memory is taken, sums, and the pass that uses them.

Memory is one axis, taken as it lies. With the channels last it is rows of channels, and
several of them are taken as one long row, of which the last may be shorter. In C order it
is runs, each of one channel. Sums are taken in float32 over blocks, and in float64 over
what comes of the blocks.
"""

from __future__ import annotations

import math

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty
from refkd_numba.compile import device
from refkd_numba.layout import as_images, channels_last
from refkd_numba.vmath import elementwise

__all__ = [
    "backward_row",
    "centred",
    "column_moments",
    "column_sums",
    "fold",
    "forward_row",
    "gradient",
    "memory",
    "memory_as",
    "passed",
    "repeat",
    "result",
    "row",
    "row_width",
    "run_moments",
    "run_sums",
    "scaled",
]

_WIDTH = 512  # of a row, about: what a loop costs before it begins is spread over it
_LEAST_ROWS = 16  # of a small array; its rows are shorter
_BLOCK = 64  # rows
_STRETCH = 2048  # entries of a run, likewise
# What the first block is summed about: the mean of some of it. A single value may be far from
# all others, and then every square in the sum is as large as all of the variance.
_FIRST_ROWS, _FIRST_ENTRIES = 8, 256

_ZERO, _ONE = np.float32(0), np.float32(1)


def memory(x: Array) -> tuple[Array, int]:
    """Return x's memory as one axis, and how many entries of a channel lie side by side in it."""
    run = math.prod(x.shape[2:])
    if x.flags.c_contiguous and x.shape[1] > 1:
        return x.reshape(-1), run
    return channels_last(x).reshape(-1), 1


def memory_as(x: Array, run: int) -> Array:
    """Return x's memory as one axis, with so many entries of a channel side by side."""
    return (channels_last(x) if run == 1 else np.ascontiguousarray(x)).reshape(-1)


def result(x: Array, run: int) -> tuple[Array, Array]:
    """Return an array for a result, and its memory as one axis, which lies as x's does."""
    if run != 1 or x.flags.c_contiguous:
        y = empty(x.shape)
        return y, y.reshape(-1)
    batch, channels, *space = x.shape
    y = empty((batch, *space, channels))
    return as_images(y), y.reshape(-1)


def row_width(channels: int, pixels: int) -> int:
    """Return how long rows are, whole repeats of the channels, for so many pixels."""
    return channels * max(1, min(_WIDTH // channels, pixels // _LEAST_ROWS))


@device(inline=True)
def row(x, i, width):
    """Return row i of a flat array."""
    return x[i * width : min((i + 1) * width, x.size)]


@device
def fold(sums, channels):
    """Add what the further repeats of the channels hold in rows of sums to the first."""
    for k in range(sums.shape[0]):
        columns = sums[k]
        for first in range(channels, columns.size, channels):
            for c in range(channels):
                columns[c] += columns[first + c]


@device
def repeat(constants, channels):
    """Copy what the first of the repeats of the channels holds in rows to the others."""
    for k in range(constants.shape[0]):
        columns = constants[k]
        for first in range(channels, columns.size, channels):
            for c in range(channels):
                columns[first + c] = columns[c]


@device
def column_moments(x, origin, scratch, total, square):
    """Write Σ (x − origin) and Σ (x − origin)² of every column.

    Every block is summed about the mean of those before, so that next to nothing cancels.
    ``scratch`` is (3, width).
    """
    width = origin.size
    rows = (x.size + width - 1) // width
    shift, block_total, block_square = scratch[0], scratch[1], scratch[2]
    first = min(_FIRST_ROWS, x.size // width)
    for j in range(width):
        total[j], square[j] = 0, 0
        shift[j], block_total[j], block_square[j] = 0, 0, 0
    for i in range(first):
        _add(row(x, i, width), shift)
    for j in range(width):
        shift[j] = shift[j] / np.float32(first) if first else origin[j]
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        entries = min(stop * width, x.size) - start * width
        # Rows far apart are streams to the processor, which it fetches ahead.
        quarter = entries // width // 4
        for i in range(start, start + quarter):
            _add_moments_of_four(
                row(x, i, width), row(x, i + quarter, width),
                row(x, i + 2 * quarter, width), row(x, i + 3 * quarter, width),
                shift, block_total, block_square,
            )  # fmt: skip
        for i in range(start + 4 * quarter, stop):
            _add_moments(row(x, i, width), shift, block_total, block_square)
        _merge_moments(block_total, block_square, entries, shift, origin, total, square, stop)


@device(inline=True)
def _add(x, total):
    for j in range(x.size):
        total[j] += x[j]


@device(inline=True)
def _add_moments_of_four(a, b, c, d, shift, total, square):
    for j in range(shift.size):
        s = shift[j]
        p, q, r, t = centred(a[j], s), centred(b[j], s), centred(c[j], s), centred(d[j], s)
        total[j] += (p + q) + (r + t)
        square[j] += (p * p + q * q) + (r * r + t * t)


@device(inline=True)
def _add_moments(x, shift, total, square):
    for j in range(x.size):
        value = centred(x[j], shift[j])
        total[j] += value
        square[j] += value * value


@device(inline=True)
def _merge_moments(block_total, block_square, entries, shift, origin, total, square, rows):
    """Add the sums of a block of ``entries`` about ``shift`` to those about ``origin``.

    Then the sums of the block begin anew, about the mean of all ``rows`` so far.
    """
    rows_of_block = entries // total.size
    rest = entries - rows_of_block * total.size
    share_of_each = 1 / rows
    for j in range(total.size):
        count = np.float64(rows_of_block + 1 if j < rest else rows_of_block)
        moved, added = np.float64(shift[j]) - origin[j], np.float64(block_total[j])
        total[j] += added + count * moved
        square[j] += block_square[j] + (2 * added + count * moved) * moved
        shift[j] = origin[j] + total[j] * share_of_each
        block_total[j], block_square[j] = 0, 0


@device(inline=True)
def run_moments(x, origin):
    """Return Σ (x − origin) and Σ (x − origin)², taken as in :func:`column_moments`."""
    total, square = 0.0, 0.0
    first = min(_FIRST_ENTRIES, x.size)
    shift = np.float32(_sum(x[:first]) / np.float32(first))
    for start in range(0, x.size, _STRETCH):
        stop = min(start + _STRETCH, x.size)
        block_total, block_square = _moments(x[start:stop], shift)
        moved, added = np.float64(shift) - origin, np.float64(block_total)
        count = np.float64(stop - start)
        total += added + count * moved
        square += block_square + (2 * added + count * moved) * moved
        shift = np.float32(origin + total / stop)
    return total, square


@device(inline=True)
def _sum(x):
    total = _ZERO
    for i in range(x.size):
        total += x[i]
    return total


@device(inline=True)
def _moments(x, shift):
    total, square = _ZERO, _ZERO
    for i in range(x.size):
        value = centred(x[i], shift)
        total += value
        square += value * value
    return total, square


@device(inline=True)
def passed(dy, y, relu):
    """Return what reaches a norm of dy: with ReLU behind it, dy · [y > 0], where ∞ · 0 is NaN."""
    return dy * (_ONE if y > 0 else _ZERO) if relu else dy


@device
def column_sums(dy, y, x, relu, centre, scratch, sums):
    """Write Σ dy, Σ dy (x − centre) and Σ (x − centre) of every column, dy as it has passed.

    ``scratch`` is (3, width), and so is ``sums``.
    """
    width = centre.size
    rows = (x.size + width - 1) // width
    level, dot, shift = scratch[0], scratch[1], scratch[2]
    for j in range(width):
        sums[0, j], sums[1, j], sums[2, j] = 0, 0, 0
        level[j], dot[j], shift[j] = 0, 0, 0
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        half = (min(stop * width, x.size) - start * width) // width // 2
        for i in range(start, start + half):
            k = i + half
            _add_sums_of_two(
                row(dy, i, width), row(y, i, width), row(x, i, width),
                row(dy, k, width), row(y, k, width), row(x, k, width),
                relu, centre, level, dot, shift,
            )  # fmt: skip
        for i in range(start + 2 * half, stop):
            _add_sums(
                row(dy, i, width), row(y, i, width), row(x, i, width),
                relu, centre, level, dot, shift,
            )  # fmt: skip
        for j in range(width):
            sums[0, j] += level[j]
            sums[1, j] += dot[j]
            sums[2, j] += shift[j]
            level[j], dot[j], shift[j] = 0, 0, 0


@device(inline=True)
def _add_sums_of_two(dy0, y0, x0, dy1, y1, x1, relu, centre, level, dot, shift):
    for j in range(centre.size):
        v0, v1 = centred(x0[j], centre[j]), centred(x1[j], centre[j])
        d0, d1 = passed(dy0[j], y0[j], relu), passed(dy1[j], y1[j], relu)
        level[j] += d0 + d1
        dot[j] += d0 * v0 + d1 * v1
        shift[j] += v0 + v1


@device(inline=True)
def _add_sums(dy, y, x, relu, centre, level, dot, shift):
    for j in range(x.size):
        value = centred(x[j], centre[j])
        d = passed(dy[j], y[j], relu)
        level[j] += d
        dot[j] += d * value
        shift[j] += value


@device(inline=True)
def run_sums(dy, y, x, relu, centre):
    """Return Σ dy, Σ dy (x − centre) and Σ (x − centre), dy as it has passed."""
    level, dot, shift = 0.0, 0.0, 0.0
    for start in range(0, x.size, _STRETCH):
        stop = min(start + _STRETCH, x.size)
        of_block = _sums(dy[start:stop], y[start:stop], x[start:stop], relu, centre)
        level += of_block[0]
        dot += of_block[1]
        shift += of_block[2]
    return level, dot, shift


@device(inline=True)
def _sums(dy, y, x, relu, centre):
    level, dot, shift = _ZERO, _ZERO, _ZERO
    for i in range(x.size):
        value = centred(x[i], centre)
        d = passed(dy[i], y[i], relu)
        level += d
        dot += d * value
        shift += value
    return level, dot, shift


# The next three keep to the order they are written in: with a mean far from 0, what is
# subtracted first takes the rounding away that the rest would be lost in.


@elementwise
def centred(x, centre):
    """Return x − centre."""
    return x - centre


@elementwise
def scaled(x, centre, scale, offset):
    """Return (x − centre) · scale + offset."""
    return (x - centre) * scale + offset


@elementwise
def gradient(dy, x, centre, slope, level, scale):
    """Return dy · scale + level − (x − centre) · slope."""
    return dy * scale + level - (x - centre) * slope


@device(inline=True)
def forward_row(x, centre, scale, offset, least, y):
    """Write y = max((x − centre) · scale + offset, least), column by column; NaN stays."""
    for j in range(x.size):
        value = scaled(x[j], centre[j], scale[j], offset[j])
        y[j] = least if value <= least else value


@device(inline=True)
def backward_row(dy, y, x, relu, centre, slope, level, scale, dx):
    """Write dx = dy · scale + level − (x − centre) · slope, column by column."""
    for j in range(dx.size):
        d = passed(dy[j], y[j], relu)
        dx[j] = gradient(d, x[j], centre[j], slope[j], level[j], scale[j])
