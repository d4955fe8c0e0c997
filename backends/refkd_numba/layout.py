"""Memory layouts: images with the channels last, rows, and flat views of whatever is dense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd_numba.buffers import empty
from refkd_numba.compile import compiled
from refkd_numba.team import share

__all__ = ["as_images", "channels_last", "flat", "is_dense", "rows", "same_layout"]

_BLOCK = 32  # of a transposition: two blocks fit the level-1 cache


def channels_last(x: NDArray[Any]) -> NDArray[Any]:
    """Return x (N, C, ...) as a C-ordered (N, ..., C) array, a view where its memory is one."""
    moved = np.moveaxis(x, 1, -1)
    if moved.flags.c_contiguous:
        return moved
    batch, channels, *space = x.shape
    result = empty((batch, *space, channels), x.dtype)
    if x.flags.c_contiguous and x.dtype in (np.float32, np.float64):
        pixels = math.prod(space)
        source, target = (a.reshape(-1) for a in (x, result))
        share(_transpose, source, target, batch, channels, pixels, worth=x.size > 1 << 14)
    else:
        result[...] = moved
    return result


def as_images(x: NDArray[Any]) -> NDArray[Any]:
    """Return (N, ..., C) as (N, C, ...), a view."""
    return np.moveaxis(x, -1, 1)


def is_dense(x: NDArray[Any]) -> bool:
    """Return whether x fills its memory: C order, or channels last, or any other order of axes."""
    if x.flags.c_contiguous or x.flags.f_contiguous:
        return True
    expected = x.itemsize
    for stride, size in sorted(zip(x.strides, x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_layout(x: NDArray[Any], *others: NDArray[Any]) -> bool:
    """Return whether all are dense and hold the entry of an index at the same place."""
    return is_dense(x) and all(
        other.shape == x.shape
        and (other.strides == x.strides or (x.flags.c_contiguous and other.flags.c_contiguous))
        for other in others
    )


def flat(x: NDArray[Any]) -> NDArray[Any]:
    """Return a dense array's memory as one axis, a view in the order of its memory."""
    if x.flags.c_contiguous:
        return x.reshape(-1)
    order = sorted(range(x.ndim), key=lambda axis: (-x.strides[axis], axis))
    return x.transpose(order).reshape(-1)


def rows(x: NDArray[Any]) -> NDArray[Any]:
    """Return x (..., D) as C-ordered (R, D), a view where its memory allows."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


@compiled
def _transpose(source, target, batch, channels, pixels, thread, threads):
    """Write (N, C, P) as (N, P, C)."""
    blocks = (pixels + _BLOCK - 1) // _BLOCK
    for block in range(thread, batch * blocks, threads):
        n = block // blocks
        begin = (block - n * blocks) * _BLOCK
        end = min(begin + _BLOCK, pixels)
        for first in range(0, channels, _BLOCK):
            last = min(first + _BLOCK, channels)
            for p in range(begin, end):
                to = (n * pixels + p) * channels
                for c in range(first, last):
                    target[to + c] = source[(n * channels + c) * pixels + p]
