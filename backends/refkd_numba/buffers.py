"""Memory for results, used again once nobody refers to it.

A fresh array of some megabytes costs as much as the kernel that fills it: the system
clears every page. A block here is handed out as a view, and counts as free when its
reference count says that no view is left; so an array that somebody holds, or a view of
it, or a view of that, is never overwritten.
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_left, insort
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["empty", "empty_images", "empty_like"]

_ALIGNMENT = 64
_SMALL = 1 << 14  # bytes; malloc serves these from memory it already has
_SLACK = 1.25  # of a block that is taken for something smaller
_KEEP = 4096  # requests for which a block waits to be used again


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array in C order, whose contents are arbitrary."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    with _lock:
        memory, offset = _pool.take(size)
    return np.ndarray(shape, dtype, memory, offset)


def empty_images(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array (N, C, ...) whose memory holds the channels last."""
    batch, channels, *space = shape
    return np.moveaxis(empty((batch, *space, channels), dtype), -1, 1)


def empty_like(x: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return an array of x's shape whose axes lie in memory in the order of x's."""
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if x.flags.c_contiguous:
        return empty(x.shape, dtype)
    order = sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis))
    return empty(tuple(x.shape[a] for a in order), dtype).transpose(np.argsort(order))


class _Pool:
    """Blocks by size. One is free when the pool alone refers to its memory."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # sorted
        self.blocks: dict[int, list[_Block]] = {}
        self.requests = 0

    def take(self, size: int) -> tuple[NDArray[np.uint8], int]:
        self.requests += 1
        if self.requests % _KEEP == 0:
            self._drop(self.requests - _KEEP)
        first = bisect_left(self.sizes, size)
        while first < len(self.sizes) and self.sizes[first] <= _SLACK * size:
            for block in self.blocks[self.sizes[first]]:
                if block.is_free():
                    block.last_request = self.requests
                    return block.memory, block.offset
            first += 1
        block = _Block(size, self.requests)
        if size not in self.blocks:
            insort(self.sizes, size)
            self.blocks[size] = []
        self.blocks[size].append(block)
        return block.memory, block.offset

    def _drop(self, before: int) -> None:
        for size in list(self.sizes):
            kept = [b for b in self.blocks[size] if b.last_request >= before or not b.is_free()]
            self.blocks[size] = kept
            if not kept:
                del self.blocks[size]
                self.sizes.remove(size)


class _Block:
    __slots__ = ("last_request", "memory", "offset")

    def __init__(self, size: int, request: int) -> None:
        # A view's base is the array that owns the memory: that is whose references count.
        self.memory = np.empty(size + _ALIGNMENT, np.uint8)
        self.offset = -self.memory.ctypes.data % _ALIGNMENT
        self.last_request = request

    def is_free(self) -> bool:
        return sys.getrefcount(self.memory) == _REFERENCES_OF_A_FREE_BLOCK


_REFERENCES_OF_A_FREE_BLOCK = 2  # this object's, and the argument of getrefcount
_pool = _Pool()
_lock = threading.Lock()
