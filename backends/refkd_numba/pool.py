"""Max-pooling of images with the channels last: all channels of a window at a time.

The kernels' indices take eight bytes for each maximum. Fused networks use the compact
pair, whose forward remembers the number of the tap in a byte, and whose backward looks for
what comes back to an entry, so that it may be split anywhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.errors import ConfigError, RefkdError, ShapeError
from refkd.ops.taps import Windows, pooling_windows
from refkd.ops.window import Pair, Size, as_image_shape, as_pair
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.layout import as_images, channels_first, channels_last
from refkd_numba.operands import are_float32
from refkd_numba.team import share, span

__all__ = [
    "KERNELS",
    "MOST_TAPS",
    "in_planes",
    "max_pool_compact_backward",
    "max_pool_compact_forward",
    "max_pool_infer",
    "pixels",
    "windows_of",
]

MOST_TAPS = 255  # of a window, in the compact pair

_WORTH = 1 << 15
_LARGEST = 2**31 - 1  # number by which a window moves: sums of them have 64 bits
_NO_TAP = np.uint8(MOST_TAPS)
_NO_INDICES, _NO_TAPS = np.empty((0, 0), np.int64), np.empty((0, 0), np.uint8)

_ZERO = np.float32(0)


def max_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Any:
    plane = x.shape[2:] if are_float32(x) and x.ndim == 4 else None
    windows = windows_of(plane, kernel_size, stride, padding, dilation, ceil_mode)
    if windows is None:
        return NotImplemented
    y, indices = _forward(x, *windows, np.int64)
    return (channels_first(y), channels_first(indices)) if in_planes(x) else (y, indices)


def max_pool2d_backward(
    dy: Array, indices: Array, *, input_shape: tuple[int, int, int, int]
) -> Any:
    shape = _shape_for(dy, input_shape)
    if shape is None or type(indices) is not np.ndarray or indices.dtype != np.int64:
        return NotImplemented
    if indices.shape != dy.shape:
        return NotImplemented
    batch, channels, height, width = shape
    outside = np.zeros(batch, np.bool_)
    worth = dy.size > _WORTH
    if in_planes(dy):
        dx = empty(shape)
        share(
            _planes_backward, _as_planes(dy), _as_planes(indices), channels, _as_planes(dx),
            outside, worth=worth,
        )  # fmt: skip
    else:
        memory = empty((batch, height, width, channels))
        dx = as_images(memory)
        rows = (batch, dy.shape[2], dy.shape[3], channels)
        share(
            _backward, channels_last(dy).reshape(rows), channels_last(indices).reshape(rows),
            memory.reshape(batch, height * width, channels), outside, worth=worth,
        )  # fmt: skip
    return NotImplemented if outside.any() else dx


def max_pool_compact_forward(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, count: Pair
) -> tuple[Array, Array]:
    """Return the maximum of every window and the number of its tap.

    Parameters
    ----------
    x : float32 array, shape (N, C, H, W)
    kernel, stride, padding, dilation : (int, int)
        At most MOST_TAPS taps.
    count : (int, int)
        P and Q, windows along either axis. Each has at least one entry of x.

    Returns
    -------
    y : array, shape (N, C, P, Q)
    taps : uint8 array, shape (N, C, P, Q)
        Row by row within the window. Both arrays hold the channels last.
    """
    if kernel[0] * kernel[1] > MOST_TAPS:
        raise ConfigError(
            f"max_pool_compact_forward: kernel must have at most {MOST_TAPS} taps, got {kernel}"
        )
    return _forward(x, *_windows(x.shape[2:], kernel, stride, padding, dilation, count), np.uint8)


def max_pool_compact_backward(
    dy: Array,
    taps: Array,
    input_shape: tuple[int, int, int, int],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    """Backward of :func:`max_pool_compact_forward`.

    Returns
    -------
    dx : array, shape (N, C, H, W), with the channels last
    """
    batch, channels, height, width = input_shape
    rows, columns = _windows((height, width), kernel, stride, padding, dilation, dy.shape[2:])
    memory = empty((batch, height, width, channels))
    share(
        _compact_backward, pixels(channels_last(dy)), pixels(channels_last(taps)), dy.shape[2],
        dy.shape[3], *_readers(rows), *_readers(columns), kernel[1], pixels(memory),
        worth=memory.size > _WORTH,
    )  # fmt: skip
    return as_images(memory)


def max_pool_infer(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, count: Pair
) -> Array:
    """Return what :func:`max_pool_compact_forward` does, but not the taps."""
    return _forward(x, *_windows(x.shape[2:], kernel, stride, padding, dilation, count), None)[0]


def windows_of(
    plane: Pair | None,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
) -> tuple[Windows, Windows] | None:
    """Return the windows along rows and columns; None where the reference must judge."""
    if plane is None or type(ceil_mode) is not bool:
        return None
    try:
        kernel = as_pair("", "", kernel_size, 1)
        step = kernel if stride is None else as_pair("", "", stride, 1)
        pad, spread = as_pair("", "", padding, 0), as_pair("", "", dilation, 1)
        if max(*kernel, *step, *pad, *spread) > _LARGEST:
            return None
        return _pooling_windows(plane, kernel, step, pad, spread, ceil_mode)
    except RefkdError:
        return None


@lru_cache(maxsize=256)
def _pooling_windows(
    plane: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Windows, Windows]:
    return pooling_windows("", plane, kernel, stride, padding, dilation, ceil_mode=ceil_mode)


def in_planes(x: Array) -> bool:
    """Return whether images are in C order, and not with the channels last at the same time."""
    return x.flags.c_contiguous and (x.shape[1] == 1 or x.shape[2] * x.shape[3] > 1)


def pixels(memory: Array) -> Array:
    """Return (N, H, W, C) as (N · H · W, C)."""
    return memory.reshape(-1, memory.shape[-1])


def _as_planes(x: Array) -> Array:
    return channels_first(x).reshape(x.shape[0] * x.shape[1], -1)


def _shape_for(dy: Any, input_shape: Any) -> tuple[int, int, int, int] | None:
    """Return the shape of dx; None where the reference must judge."""
    try:
        shape = as_image_shape("", "", input_shape)
    except RefkdError:
        return None
    fits = are_float32(dy) and dy.ndim == 4 and shape[:2] == dy.shape[:2] and 0 not in shape
    return shape if fits else None


def _windows(
    plane: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, count: Pair
) -> tuple[Windows, Windows]:
    rows, columns = (
        Windows(*of_axis)
        for of_axis in zip((2, 3), plane, kernel, stride, padding, dilation, count, strict=True)
    )
    return rows, columns


def _forward(
    x: Array, rows: Windows, columns: Windows, remember: type | None
) -> tuple[Array, Array]:
    batch, channels, height, width = x.shape
    shape = (batch, rows.count, columns.count, channels)
    y = empty(shape)
    found = None if remember is None else empty(shape, remember)
    share(
        _maxima, pixels(channels_last(x)), height, width, *_taken(rows), *_taken(columns),
        pixels(y), pixels(found) if remember is np.int64 else _NO_INDICES,
        pixels(found) if remember is np.uint8 else _NO_TAPS, worth=x.size > _WORTH,
    )  # fmt: skip
    return as_images(y), None if found is None else as_images(found)


@lru_cache(maxsize=256)
def _taken(windows: Windows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what each window reads, and the numbers of these taps: (windows, kernel) twice.

    In the place of a tap that falls into the padding there is its neighbour inside: the same
    entry once more changes no maximum.
    """
    begins = np.arange(windows.count)[:, None] * windows.stride - windows.padding
    numbers = np.arange(windows.kernel)
    entries = begins + numbers * windows.dilation
    inside = (entries >= 0) & (entries < windows.size)
    if not inside.any(axis=1).all():
        raise ShapeError("max_pool_compact_forward: a window reads nothing but padding")
    first = inside.argmax(axis=1)[:, None]
    last = windows.kernel - 1 - inside[:, ::-1].argmax(axis=1)[:, None]
    numbers = np.clip(numbers, first, last)
    return begins + numbers * windows.dilation, numbers


@lru_cache(maxsize=256)
def _readers(windows: Windows) -> tuple[NDArray[np.int64], ...]:
    """Return the windows that read each entry, with which tap, and how many they are."""
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(windows.size)]
    for tap in windows.taps():
        served = range(tap.windows.start, tap.windows.stop)
        for window, entry in zip(served, range(windows.size)[tap.entries], strict=True):
            pairs[entry].append((window, tap.number))
    most = max(map(len, pairs))
    padded = np.array([sorted(p) + [(0, 0)] * (most - len(p)) for p in pairs], np.int64)
    return (*np.ascontiguousarray(np.moveaxis(padded, -1, 0)), np.array(list(map(len, pairs))))


@compiled
def _maxima(
    x, height, width, row_entries, row_taps, column_entries, column_taps, y, indices, taps,
    thread, threads,
):  # fmt: skip
    """Write the maxima y of windows over pixels x, and where they are, into the one of two arrays.

    All are (pixels, C). Which entries and taps there are is as :func:`_taken` says.
    """
    channels = x.shape[1]
    rows, kernel_h = row_entries.shape
    columns, kernel_w = column_entries.shape
    kernel = kernel_h * kernel_w
    # As many as the loop below for them takes: the last tap several times.
    filled = 4 if kernel <= 4 else 9 if kernel <= 9 else kernel
    at, marks = np.empty(filled, np.int64), np.empty(filled, np.int32)
    best = np.empty(channels, np.int32)
    part = span(y.shape[0] // columns, thread, threads)
    for row in range(part.start, part.stop):
        n, p = row // rows, row % rows
        for q in range(columns):
            k = 0
            for i in range(kernel_h):
                first = row_entries[p, i] * width
                for j in range(kernel_w):
                    position = first + column_entries[q, j]
                    at[k] = n * height * width + position
                    marks[k] = position
                    if taps.size:
                        marks[k] = row_taps[p, i] * kernel_w + column_taps[q, j]
                    k += 1
            while k < filled:
                at[k], marks[k] = at[k - 1], marks[k - 1]
                k += 1
            pixel = row * columns + q
            if filled == 4:
                _best_of_4(x, at, marks, y[pixel], best)
            elif filled == 9:
                _best_of_9(x, at, marks, y[pixel], best)
            else:
                _best_of_many(x, at, marks, y[pixel], best)
            if taps.size:
                for c in range(channels):
                    taps[pixel, c] = best[c]
            elif indices.size:
                for c in range(channels):
                    indices[pixel, c] = best[c]


@device(inline=True)
def _better(value, mark, largest, of_largest):
    """Return the larger value, the first of equal ones, the last NaN; and its mark."""
    better = (value > largest) | (value != value)
    return value if better else largest, mark if better else of_largest


@device(inline=True)
def _best_of_4(x, at, marks, y, best):
    a, b, c, d = x[at[0]], x[at[1]], x[at[2]], x[at[3]]
    m0, m1, m2, m3 = marks[0], marks[1], marks[2], marks[3]
    for i in range(y.size):
        value, mark = _better(b[i], m1, a[i], m0)
        value, mark = _better(c[i], m2, value, mark)
        y[i], best[i] = _better(d[i], m3, value, mark)


@device(inline=True)
def _best_of_9(x, at, marks, y, best):
    a, b, c, d, e = x[at[0]], x[at[1]], x[at[2]], x[at[3]], x[at[4]]
    f, g, h, k = x[at[5]], x[at[6]], x[at[7]], x[at[8]]
    m0, m1, m2, m3, m4 = marks[0], marks[1], marks[2], marks[3], marks[4]
    m5, m6, m7, m8 = marks[5], marks[6], marks[7], marks[8]
    for i in range(y.size):
        value, mark = _better(b[i], m1, a[i], m0)
        value, mark = _better(c[i], m2, value, mark)
        value, mark = _better(d[i], m3, value, mark)
        value, mark = _better(e[i], m4, value, mark)
        value, mark = _better(f[i], m5, value, mark)
        value, mark = _better(g[i], m6, value, mark)
        value, mark = _better(h[i], m7, value, mark)
        y[i], best[i] = _better(k[i], m8, value, mark)


@device(inline=True)
def _best_of_many(x, at, marks, y, best):
    first, mark = x[at[0]], marks[0]
    for i in range(y.size):
        y[i], best[i] = first[i], mark
    for k in range(1, at.size):
        values, mark = x[at[k]], marks[k]
        for i in range(y.size):
            y[i], best[i] = _better(values[i], mark, y[i], best[i])


@compiled
def _backward(dy, indices, dx, outside, thread, threads):
    """Add dy (N, P, Q, C) to dx (N, H · W, C) where the indices say.

    Images with an index that is not of a pixel are noted in ``outside``.
    """
    batch, rows, columns, channels = dy.shape
    pixels, pitch = np.uint64(dx.shape[1]), np.uint64(channels)
    # An image is split by its channels where there are fewer images than threads.
    splits = 1 if batch >= threads else threads
    part = span(batch * splits, thread, threads)
    for unit in range(part.start, part.stop):
        n, split = unit // splits, unit % splits
        first, last = channels * split // splits, channels * (split + 1) // splits
        for pixel in range(dx.shape[1]):
            to = dx[n, pixel, first:last]
            for c in range(to.size):
                to[c] = _ZERO
        image = dx[n].reshape(-1)[first:]
        for p in range(rows):
            for q in range(columns):
                gradient, index = dy[n, p, q, first:last], indices[n, p, q, first:last]
                for c in range(np.uint64(last - first)):
                    pixel_of_c = np.uint64(index[c])  # unsigned: one comparison, no other index
                    if pixel_of_c < pixels:
                        image[pixel_of_c * pitch + c] += gradient[c]
                    else:
                        outside[n] = True


@compiled
def _planes_backward(dy, indices, channels, dx, outside, thread, threads):
    """Add dy (N · C, P · Q) to dx (N · C, H · W) where the indices say; as :func:`_backward`."""
    size = np.uint64(dx.shape[1])
    part = span(dy.shape[0], thread, threads)
    for plane in range(part.start, part.stop):
        gradient, index, to = dy[plane], indices[plane], dx[plane]
        for i in range(to.size):
            to[i] = _ZERO
        for i in range(index.size):
            pixel = np.uint64(index[i])
            if pixel < size:
                to[pixel] += gradient[i]
            else:
                outside[plane // channels] = True


@compiled
def _compact_backward(
    dy, taps, rows, columns, row_windows, row_taps, row_counts, column_windows, column_taps,
    column_counts, kernel_w, dx, thread, threads,
):  # fmt: skip
    """Write dx (N · H · W, C), what comes back to each entry of the windows that it is chosen by.

    dy and taps are (N · P · Q, C). Which windows read an entry is as :func:`_readers` says.
    """
    height, most_h = row_windows.shape
    width, most_w = column_windows.shape
    at, numbers = np.empty(most_h * most_w + 2, np.int64), np.empty(most_h * most_w + 2, np.uint8)
    part = span(dx.shape[0] // width, thread, threads)
    for row in range(part.start, part.stop):
        n, h = row // height, row % height
        for w in range(width):
            count = 0
            for k in range(row_counts[h]):
                first = (n * rows + row_windows[h, k]) * columns
                for m in range(column_counts[w]):
                    at[count] = first + column_windows[w, m]
                    numbers[count] = row_taps[h, k] * kernel_w + column_taps[w, m]
                    count += 1
            to = dx[row * width + w]
            if count == 0:
                for c in range(to.size):
                    to[c] = _ZERO
            elif count == 1:
                _chosen_of_1(dy[at[0]], taps[at[0]], numbers[0], to)
            else:
                at[count], at[count + 1] = at[0], at[0]
                numbers[count], numbers[count + 1] = _NO_TAP, _NO_TAP
                for k in range(0, count, 3):
                    _add_chosen_of_3(dy, taps, at[k : k + 3], numbers[k : k + 3], k > 0, to)


@device(inline=True)
def _chosen_of_1(dy, taps, number, dx):
    for c in range(dx.size):
        dx[c] = dy[c] if taps[c] == number else _ZERO


@device(inline=True)
def _add_chosen_of_3(dy, taps, at, numbers, begun, dx):
    d0, d1, d2 = dy[at[0]], dy[at[1]], dy[at[2]]
    t0, t1, t2 = taps[at[0]], taps[at[1]], taps[at[2]]
    m0, m1, m2 = numbers[0], numbers[1], numbers[2]
    for c in range(dx.size):
        # Read before it is chosen: or LLVM reads only what is, which takes longer.
        first, second, third = d0[c], d1[c], d2[c]
        before = dx[c] if begun else _ZERO
        first = first if t0[c] == m0 else _ZERO
        second = second if t1[c] == m1 else _ZERO
        third = third if t2[c] == m2 else _ZERO
        dx[c] = (before + first) + (second + third)


KERNELS = {
    "max_pool2d_forward": max_pool2d_forward,
    "max_pool2d_backward": max_pool2d_backward,
}
