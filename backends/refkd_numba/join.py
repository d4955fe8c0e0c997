"""Moving and adding channels-last images: what joins branches and takes them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd_numba.buffers import empty
from refkd_numba.compile import compiled
from refkd_numba.layout import as_images, channels_last
from refkd_numba.team import share, span

__all__ = ["add", "concatenate_channels", "masked_gradient", "split_channels"]

_WORTH = 1 << 16
_ZERO, _ONE = np.float32(0), np.float32(1)


def concatenate_channels(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images (N, C_i, H, W) as one (N, Σ C_i, H, W)."""
    batch, _, height, width = parts[0].shape
    result = empty((batch, height, width, sum(part.shape[1] for part in parts)))
    pixels, first = result.reshape(-1, result.shape[-1]), 0
    for part in parts:
        rows = channels_last(part).reshape(-1, part.shape[1])
        share(_put, rows, pixels, first, worth=rows.size > _WORTH)
        first += part.shape[1]
    return as_images(result)


def split_channels(x: NDArray[Any], channels: Sequence[int]) -> tuple[NDArray[Any], ...]:
    """Return images (N, Σ C_i, H, W) as several, none a view of x."""
    source, parts, first = channels_last(x), [], 0
    pixels = source.reshape(-1, source.shape[-1])
    for count in channels:
        part = empty((*source.shape[:-1], count))
        share(_take, pixels, part.reshape(-1, count), first, worth=part.size > _WORTH)
        parts.append(as_images(part))
        first += count
    return tuple(parts)


def add(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of two batches of images."""
    a, b = channels_last(first), channels_last(second)
    total = empty(a.shape)
    share(_add, a.reshape(-1), b.reshape(-1), total.reshape(-1), worth=a.size > _WORTH)
    return as_images(total)


def masked_gradient(dy: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return dy · [y > 0] and its sum over all pixels; images channels-last.

    The backward of a ReLU, and of the bias before it, in one pass.
    """
    channels = y.shape[-1]
    dx = empty(y.shape)
    sums = np.zeros((_BLOCKS, channels))
    share(
        _masked, dy.reshape(-1, channels), y.reshape(-1, channels), dx.reshape(-1, channels), sums,
        worth=y.size > _WORTH,
    )  # fmt: skip
    return dx, sums.sum(axis=0).astype(np.float32)


_BLOCKS = 64  # of rows whose sums are added at the end, whatever the threads


@compiled
def _put(rows, pixels, first, thread, threads):
    """Write rows (M, C) into pixels (M, K) from column ``first`` on."""
    part = span(rows.shape[0], thread, threads)
    rows, pixels = rows[part], pixels[part]
    for i in range(rows.shape[0]):
        source, target = rows[i], pixels[i, first : first + rows.shape[1]]
        for c in range(source.size):
            target[c] = source[c]


@compiled
def _take(pixels, rows, first, thread, threads):
    """Write the columns of pixels (M, K) from ``first`` on into rows (M, C)."""
    part = span(rows.shape[0], thread, threads)
    rows, pixels = rows[part], pixels[part]
    for i in range(rows.shape[0]):
        source, target = pixels[i, first : first + rows.shape[1]], rows[i]
        for c in range(target.size):
            target[c] = source[c]


@compiled
def _add(a, b, total, thread, threads):
    part = span(a.size, thread, threads)
    a, b, total = a[part], b[part], total[part]
    for i in range(a.size):
        total[i] = a[i] + b[i]


@compiled
def _masked(dy, y, dx, sums, thread, threads):
    """Write dy · [y > 0] into dx (M, K), and the sums of its blocks of rows; ∞ · 0 is NaN."""
    count, blocks = y.shape[0], sums.shape[0]
    short = np.empty(y.shape[1], np.float32)
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        total = sums[block]
        end = count * (block + 1) // blocks
        for first in range(count * block // blocks, end, 64):
            short[:] = _ZERO
            for row in range(first, min(first + 64, end)):
                g, v, d = dy[row], y[row], dx[row]
                for k in range(d.size):
                    d[k] = g[k] * (_ONE if v[k] > 0 else _ZERO)
                    short[k] += d[k]
            for k in range(short.size):
                total[k] += short[k]
