"""Memory layouts: images with the channels last, rows, and flat views of whatever is dense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd_numba.buffers import empty
from refkd_numba.team import share
from refkd_numba.transpose import transpose

__all__ = [
    "as_images",
    "channels_first",
    "channels_last",
    "flat",
    "is_dense",
    "rows",
    "same_layout",
]

_WORTH = 1 << 15


def channels_last(x: NDArray[Any]) -> NDArray[Any]:
    """Return x (N, C, ...) as a C-ordered (N, ..., C) array, a view where its memory is one."""
    moved = np.moveaxis(x, 1, -1)
    if moved.flags.c_contiguous:
        return moved
    batch, channels, *space = x.shape
    result = empty((batch, *space, channels), x.dtype)
    if x.flags.c_contiguous:
        _transpose(x, result, batch, channels)
    else:
        result[...] = moved
    return result


def channels_first(x: NDArray[Any]) -> NDArray[Any]:
    """Return x (N, C, ...) as a C-ordered array, x itself where it is one."""
    moved = np.moveaxis(x, 1, -1)
    if x.flags.c_contiguous or not moved.flags.c_contiguous:
        return np.ascontiguousarray(x)
    result = empty(x.shape, x.dtype)
    _transpose(moved, result, x.shape[0], math.prod(x.shape[2:]))
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
    return x.ravel("K")


def rows(x: NDArray[Any]) -> NDArray[Any]:
    """Return x (..., D) as C-ordered (R, D), a view where its memory allows."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _transpose(source: NDArray[Any], target: NDArray[Any], batch: int, rows: int) -> None:
    """Write each of a batch of matrices of so many rows into ``target`` transposed."""
    if source.itemsize not in (4, 8) or not source.size:
        shape = (batch, rows, source.size // max(1, batch * rows))
        target.reshape(batch, shape[2], rows)[...] = source.reshape(shape).swapaxes(1, 2)
        return
    integers = np.dtype(f"i{source.itemsize}")
    flat_source, flat_target = (a.reshape(-1).view(integers) for a in (source, target))
    columns = source.size // (batch * rows)
    share(transpose, flat_source, flat_target, batch, rows, columns, worth=source.size > _WORTH)
