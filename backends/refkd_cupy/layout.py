"""Memory layouts: images with the channels last, rows, and flat views of whatever is dense."""

from __future__ import annotations

import math

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device

__all__ = [
    "aligned",
    "as_images",
    "channels_first",
    "channels_last",
    "empty_like",
    "flat",
    "is_dense",
    "rows",
    "same_layout",
]

_SIDE, _THREADS = 32, 256  # of the tiles that a block transposes, and its threads
_MOST_TILES = 65535
_LIMIT = 1 << 31
_WORDS = {4: np.int32, 8: np.int64}  # by bytes


def channels_last(x: Array) -> Array:
    """Return x (N, C, ...) as a C-ordered (N, ..., C) array, a view where its memory is one."""
    pixels = x.transpose(0, *range(2, x.ndim), 1)
    if pixels.flags.c_contiguous or not x.flags.c_contiguous:
        return device.dense(pixels)
    return _transposed(x.reshape(*x.shape[:2], -1), pixels.shape)


def channels_first(x: Array) -> Array:
    """Return x (N, C, ...) as a C-ordered array, x itself where it is one."""
    pixels = x.transpose(0, *range(2, x.ndim), 1)
    if x.flags.c_contiguous or not pixels.flags.c_contiguous:
        return device.dense(x)
    return _transposed(pixels.reshape(x.shape[0], -1, x.shape[1]), x.shape)


def as_images(x: Array) -> Array:
    """Return (N, ..., C) as (N, C, ...), a view."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def is_dense(x: Array) -> bool:
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


def same_layout(x: Array, *others: Array) -> bool:
    """Return whether all are dense and hold the entry of an index at the same place."""
    for other in others:
        if other.shape != x.shape:
            return False
        if _steps(other) != _steps(x) and not (x.flags.c_contiguous and other.flags.c_contiguous):
            return False
    return is_dense(x)


def aligned(first: Array, *others: Array) -> tuple[Array, ...]:
    """Return dense arrays of the same values and one layout, the first's where it is dense."""
    arrays = (first, *others)
    if all(array.flags.c_contiguous for array in arrays) or same_layout(*arrays):
        return arrays
    order = _order(first) if is_dense(first) else range(first.ndim)
    back = _inverse(order)
    return tuple(device.dense(array.transpose(*order)).transpose(*back) for array in arrays)


def empty_like(x: Array, dtype: object = None) -> Array:
    """Return an array of x's shape whose axes lie in memory in the order of x's."""
    dtype = x.dtype if dtype is None else dtype
    if x.flags.c_contiguous:
        return device.empty(x.shape, dtype)
    order = _order(x)
    return device.empty(tuple(x.shape[a] for a in order), dtype).transpose(*_inverse(order))


def flat(x: Array) -> Array:
    """Return a dense array's memory as one axis, a view in the order of its memory."""
    return (x if x.flags.c_contiguous else x.transpose(*_order(x))).reshape(-1)


def rows(x: Array) -> Array:
    """Return x (..., D) as C-ordered (R, D), a view where its memory allows."""
    return device.dense(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _transposed(x: Array, shape: tuple[int, ...]) -> Array:
    """Return C-ordered x (batch, rows, columns) with its last two axes swapped, as ``shape``."""
    word = _WORDS.get(x.itemsize)
    batch, rows, columns = x.shape
    tiles = -(-rows // _SIDE)
    if word is None or not x.size or x.size >= _LIMIT or tiles > _MOST_TILES:
        return device.dense(x.swapaxes(1, 2)).reshape(shape)
    y = device.empty(shape, x.dtype)
    device.launch(
        "layout", f"transpose_{x.itemsize}", (batch * -(-columns // _SIDE), tiles), _THREADS,
        [x.reshape(-1).view(word), y.reshape(-1).view(word), np.int32(rows), np.int32(columns)],
    )  # fmt: skip
    return y


def _order(x: Array) -> tuple[int, ...]:
    """Return the axes from the outermost in memory to the innermost."""
    return tuple(sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis)))


def _inverse(order: object) -> tuple[int, ...]:
    axes = tuple(order)  # type: ignore[call-overload]
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _steps(x: Array) -> list[int]:
    """Return by how much each axis moves in units of entries, for arrays of any dtype."""
    return [
        stride // x.itemsize for stride, size in zip(x.strides, x.shape, strict=True) if size > 1
    ]
