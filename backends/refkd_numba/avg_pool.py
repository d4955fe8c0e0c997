"""Means over windows of images, adaptive ones included: both are runs of rows and of columns.

A run has a begin and an end: of the entries of a window, and of the windows that an entry
is in. All channels of a pixel are summed at a time, with the channels last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.taps import Windows
from refkd.ops.window import Pair, Size, as_image_shape, as_pair
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.layout import as_images, channels_first, channels_last
from refkd_numba.operands import are_float32
from refkd_numba.pool import in_planes, pixels, windows_of
from refkd_numba.team import share, span
from refkd_numba.vmath import total

__all__ = ["KERNELS"]

_WORTH = 1 << 15
_STRETCH = 256  # pixels of a window; more are sums of their own

_ZERO = np.float32(0)


class _Runs(NamedTuple):
    """Windows along one axis: where their entries begin and end, and the other way round."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    firsts: NDArray[np.int64]
    lasts: NDArray[np.int64]


def avg_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    plane = x.shape[2:] if _are_images(x) else None
    windows = windows_of(plane, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None or type(count_include_pad) is not bool:
        return NotImplemented
    return _forward(x, *map(_runs, windows), _factors(*windows, count_include_pad))


def avg_pool2d_backward(
    dy: Array,
    *,
    input_shape: tuple[int, int, int, int],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    plane = _plane(dy, input_shape)
    windows = windows_of(plane, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None or type(count_include_pad) is not bool:
        return NotImplemented
    if dy.shape[2:] != tuple(w.count for w in windows):
        return NotImplemented
    return _backward(dy, *map(_runs, windows), _factors(*windows, count_include_pad))


def adaptive_avg_pool2d_forward(x: Array, *, output_size: Size) -> Any:
    if not _are_images(x):
        return NotImplemented
    try:
        output = as_pair("", "", output_size, 1)
    except RefkdError:
        return NotImplemented
    return _forward(x, *_adaptive(x.shape[2:], output))


def adaptive_avg_pool2d_backward(dy: Array, *, input_shape: tuple[int, int, int, int]) -> Any:
    plane = _plane(dy, input_shape)
    if plane is None:
        return NotImplemented
    return _backward(dy, *_adaptive(plane, dy.shape[2:]))


def _are_images(x: Any) -> bool:
    return are_float32(x) and x.ndim == 4


def _plane(dy: Any, input_shape: Any) -> Pair | None:
    """Return H and W of images whose windows dy belongs to; None if the reference must judge."""
    try:
        shape = as_image_shape("", "", input_shape)
    except RefkdError:
        return None
    fits = _are_images(dy) and shape[:2] == dy.shape[:2] and 0 not in shape
    return shape[2:] if fits else None


def _forward(x: Array, rows: _Runs, columns: _Runs, factors: Array) -> Array:
    batch, channels, height, width = x.shape
    worth = x.size > _WORTH
    planes = in_planes(x)
    if planes and factors.size == 1 and _is_all(rows, height) and _is_all(columns, width):
        y = empty((batch, channels, 1, 1))
        images = x.reshape(batch * channels, -1)
        share(_sums_of_planes, images, factors[0, 0], y.reshape(-1), worth=worth)
        return y
    memory = empty((batch, *factors.shape, channels))
    largest = int((rows.ends - rows.begins).max() * (columns.ends - columns.begins).max())
    share(
        _means_of_windows, pixels(channels_last(x)), height, width, rows.begins, rows.ends,
        columns.begins, columns.ends, factors, largest, pixels(memory), worth=worth,
    )  # fmt: skip
    y = as_images(memory)
    return channels_first(y) if planes else y


def _is_all(windows: _Runs, size: int) -> bool:
    return bool(windows.begins[0] == 0 and windows.ends[0] == size)


def _backward(dy: Array, rows: _Runs, columns: _Runs, factors: Array) -> Array:
    memory = empty((dy.shape[0], rows.firsts.size, columns.firsts.size, dy.shape[1]))
    share(
        _spread_means, pixels(channels_last(dy)), rows.firsts, rows.lasts, columns.firsts,
        columns.lasts, factors, pixels(memory), worth=memory.size > _WORTH,
    )  # fmt: skip
    dx = as_images(memory)
    return channels_first(dx) if in_planes(dy) else dx


@lru_cache(maxsize=256)
def _runs(windows: Windows) -> _Runs:
    starts = np.arange(windows.count) * windows.stride - windows.padding
    return _runs_between(
        np.maximum(starts, 0), np.minimum(starts + windows.kernel, windows.size), windows.size
    )


@lru_cache(maxsize=256)
def _factors(rows: Windows, columns: Windows, padded: bool) -> NDArray[np.float32]:
    return _reciprocals(*(np.array(w.lengths(padded=padded)) for w in (rows, columns)))


@lru_cache(maxsize=256)
def _adaptive(plane: Pair, output: Pair) -> tuple[_Runs, _Runs, NDArray[np.float32]]:
    rows, columns = (
        _runs_between(i * size // count, -(-(i + 1) * size // count), size)
        for size, count, i in ((s, c, np.arange(c)) for s, c in zip(plane, output, strict=True))
    )
    return rows, columns, _reciprocals(rows.ends - rows.begins, columns.ends - columns.begins)


def _runs_between(begins: NDArray[Any], ends: NDArray[Any], size: int) -> _Runs:
    entries = np.arange(size)
    firsts = np.searchsorted(ends, entries, "right")
    lasts = np.searchsorted(begins, entries, "right")
    return _Runs(*(a.astype(np.int64) for a in (begins, ends, firsts, lasts)))


def _reciprocals(heights: NDArray[Any], widths: NDArray[Any]) -> NDArray[np.float32]:
    return (1 / np.outer(heights, widths)).astype(np.float32)


@compiled
def _sums_of_planes(x, factor, y, thread, threads):
    """Write y (N · C,), the sum of each plane of x (N · C, H · W), times ``factor``."""
    part = span(x.shape[0], thread, threads)
    for plane in range(part.start, part.stop):
        y[plane] = total(x[plane]) * factor


@compiled
def _means_of_windows(
    x, height, width, row_begins, row_ends, column_begins, column_ends, factors, largest, y,
    thread, threads,
):  # fmt: skip
    """Write y (N · P · Q, C), sums over windows of x (N · H · W, C) times ``factors`` (P, Q).

    No window has more than ``largest`` pixels.
    """
    rows, columns = factors.shape
    at, of_part = np.empty(largest, np.int64), np.empty(x.shape[1], np.float32)
    part = span(y.shape[0] // columns, thread, threads)
    for unit in range(part.start, part.stop):
        n, p = unit // rows, unit % rows
        for q in range(columns):
            count = 0
            for h in range(row_begins[p], row_ends[p]):
                first = (n * height + h) * width
                for w in range(column_begins[q], column_ends[q]):
                    at[count] = first + w
                    count += 1
            to = y[unit * columns + q]
            _sum_pixels(x, at[: min(count, _STRETCH)], to)
            for start in range(_STRETCH, count, _STRETCH):
                _sum_pixels(x, at[start : min(start + _STRETCH, count)], of_part)
                for c in range(to.size):
                    to[c] += of_part[c]
            factor = factors[p, q]
            for c in range(to.size):
                to[c] *= factor


@device(inline=True)
def _sum_pixels(x, at, y):
    """Write into y (C,) the sum of some rows of x (pixels, C)."""
    fours = at.size // 4
    for i in range(fours):
        a, b, c, d = x[at[4 * i]], x[at[4 * i + 1]], x[at[4 * i + 2]], x[at[4 * i + 3]]
        for j in range(y.size):
            before = y[j] if i else _ZERO
            y[j] = before + ((a[j] + b[j]) + (c[j] + d[j]))
    for i in range(4 * fours, at.size):
        a = x[at[i]]
        for j in range(y.size):
            before = y[j] if i else _ZERO
            y[j] = before + a[j]


@compiled
def _spread_means(
    dy, row_firsts, row_lasts, column_firsts, column_lasts, factors, dx, thread, threads
):
    """Write dx (N · H · W, C), sums of dy · ``factors`` over the windows that a pixel is in."""
    rows, columns = factors.shape
    height, width = row_firsts.size, column_firsts.size
    part = span(dx.shape[0] // width, thread, threads)
    for unit in range(part.start, part.stop):
        n, h = unit // height, unit % height
        for w in range(width):
            to, begun = dx[unit * width + w], False
            for p in range(row_firsts[h], row_lasts[h]):
                for q in range(column_firsts[w], column_lasts[w]):
                    gradient, factor = dy[(n * rows + p) * columns + q], factors[p, q]
                    for c in range(to.size):
                        before = to[c] if begun else _ZERO
                        to[c] = before + gradient[c] * factor
                    begun = True
            if not begun:
                for c in range(to.size):
                    to[c] = _ZERO


KERNELS = {
    "avg_pool2d_forward": avg_pool2d_forward,
    "avg_pool2d_backward": avg_pool2d_backward,
    "adaptive_avg_pool2d_forward": adaptive_avg_pool2d_forward,
    "adaptive_avg_pool2d_backward": adaptive_avg_pool2d_backward,
}
