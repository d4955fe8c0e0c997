"""Enlarging images by whole factors, and the sums that this comes back as, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.window import Pair, Size, as_pair
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled
from refkd_numba.layout import as_images, channels_last
from refkd_numba.operands import are_float32
from refkd_numba.pool import in_planes
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 15

_ZERO = np.float32(0)


def upsample_nearest2d_forward(x: Array, *, scale_factor: Size) -> Any:
    factors = _factors(x, scale_factor)
    if factors is None:
        return NotImplemented
    (height, down), (width, across) = zip(x.shape[2:], factors, strict=True)
    y, result = _images(x, (height * down, width * across))
    source = x if in_planes(x) else channels_last(x)
    channels = 1 if in_planes(x) else x.shape[1]
    rows = x.size // (width * channels)
    share(
        _enlarged, source.reshape(rows, width, channels),
        result.reshape(rows, down, width * across, channels), worth=y.size > _WORTH,
    )  # fmt: skip
    return y


def upsample_nearest2d_backward(dy: Array, *, scale_factor: Size) -> Any:
    factors = _factors(dy, scale_factor)
    if factors is None:
        return NotImplemented
    (height, down), (width, across) = zip(dy.shape[2:], factors, strict=True)
    if height % down or width % across:
        return NotImplemented
    dx, result = _images(dy, (height // down, width // across))
    source = dy if in_planes(dy) else channels_last(dy)
    channels = 1 if in_planes(dy) else dy.shape[1]
    rows = dx.size // (width // across * channels)
    share(
        _block_sums, source.reshape(rows, down, width, channels),
        result.reshape(rows, width // across, channels), worth=dy.size > _WORTH,
    )  # fmt: skip
    return dx


def _factors(x: Any, scale_factor: Any) -> Pair | None:
    if not are_float32(x) or x.ndim != 4:
        return None
    try:
        return as_pair("", "", scale_factor, 1)
    except RefkdError:
        return None


def _images(like: Array, plane: Pair) -> tuple[Array, Array]:
    """Return an array for images of ``plane``, laid out as others are, and its memory."""
    batch, channels = like.shape[:2]
    if in_planes(like):
        images = empty((batch, channels, *plane))
        return images, images
    memory = empty((batch, *plane, channels))
    return as_images(memory), memory


@compiled
def _enlarged(x, y, thread, threads):
    """Write y (R, sH, W · sW, C): rows x (R, W, C) sH times, every pixel of them sW times."""
    rows, width, channels = x.shape
    down, across = y.shape[1], y.shape[2] // width
    part = span(rows, thread, threads)
    for row in range(part.start, part.stop):
        source, first = x[row].reshape(-1), y[row, 0].reshape(-1)
        if channels == 1:
            for j in range(np.uint64(across)):
                for w in range(np.uint64(width)):
                    first[w * np.uint64(across) + j] = source[w]
        else:
            for k in range(width * across):
                values = source[k // across * channels : (k // across + 1) * channels]
                to = first[k * channels : (k + 1) * channels]
                for c in range(values.size):
                    to[c] = values[c]
        for i in range(1, down):
            to = y[row, i].reshape(-1)
            for k in range(first.size):
                to[k] = first[k]


@compiled
def _block_sums(dy, dx, thread, threads):
    """Write dx (R, W, C), the sums of blocks of sH · sW entries of dy (R, sH, W · sW, C)."""
    rows, width, channels = dx.shape
    down, across = dy.shape[1], dy.shape[2] // width
    sums = np.empty(dy.shape[2] * channels, np.float32)
    part = span(rows, thread, threads)
    for row in range(part.start, part.stop):
        gradient, to = dy[row, 0].reshape(-1), dx[row].reshape(-1)
        for k in range(sums.size):
            sums[k] = gradient[k]
        for i in range(1, down):
            gradient = dy[row, i].reshape(-1)
            for k in range(sums.size):
                sums[k] += gradient[k]
        if channels == 1:
            for w in range(np.uint64(width)):
                total = sums[w * np.uint64(across)]
                for j in range(np.uint64(1), np.uint64(across)):
                    total += sums[w * np.uint64(across) + j]
                to[w] = total
        else:
            for w in range(width):
                target = to[w * channels : (w + 1) * channels]
                for j in range(across):
                    at = (w * across + j) * channels
                    values = sums[at : at + channels]
                    for c in range(target.size):
                        before = target[c] if j else _ZERO
                        target[c] = before + values[c]


KERNELS = {
    "upsample_nearest2d_forward": upsample_nearest2d_forward,
    "upsample_nearest2d_backward": upsample_nearest2d_backward,
}
