"""Memory for results, used again once nobody refers to it.

A fresh array of some megabytes costs as much as the kernel that fills it: the system
clears every page. A block here is handed out as a view, and counts as free when its
reference count says that no view is left; so an array that somebody holds, or a view of
it, or a view of that, is never overwritten.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["empty", "empty_images", "empty_like"]

_ALIGNMENT = 64
_SMALL = 1 << 14  # bytes; malloc serves these from memory it already has
_KEEP = 4096  # requests for which a block waits to be used again
# Without the GIL a reference count is no more than a guess about other threads.
_RECYCLES = getattr(sys, "_is_gil_enabled", lambda: True)()

_Lease = tuple[NDArray[np.uint8], int]  # memory, and the offset of its first aligned byte


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array in C order, whose contents are arbitrary."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL or not _RECYCLES:
        return np.empty(shape, dtype)
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
    """Blocks by size.

    There is no lock, which a fork, a signal or the garbage collector could find taken:
    of two that refer to a block and look then, none or one finds it free.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, list[_Block]] = {}
        self.requests = 0

    def take(self, size: int) -> _Lease:
        self.requests += 1
        if self.requests % _KEEP == 0:
            self._drop(self.requests - _KEEP)
        step = 1 << max(size.bit_length() - 4, 0)
        size = -(-size // step) * step  # sizes that differ by less than a sixteenth share blocks
        blocks = self.blocks.setdefault(size, [])
        for block in blocks:
            if (lease := block.lease()) is not None:
                block.last_request = self.requests
                return lease
        block = _Block(size, self.requests)
        lease = block.memory, block.offset  # before another thread can see the block
        blocks.append(block)
        return lease

    def _drop(self, before: int) -> None:
        for blocks in list(self.blocks.values()):
            blocks[:] = [block for block in blocks if block.last_request >= before]


class _Block:
    __slots__ = ("last_request", "memory", "offset")

    def __init__(self, size: int, request: int) -> None:
        # A view's base is the array that owns the memory: that is whose references count.
        self.memory = np.empty(size + _ALIGNMENT, np.uint8)
        self.offset = -self.memory.ctypes.data % _ALIGNMENT
        self.last_request = request

    def lease(self) -> _Lease | None:
        """Return the memory where nobody else refers to it."""
        lease = self.memory, self.offset
        return lease if sys.getrefcount(self.memory) == _REFERENCES_WHEN_FREE else None


_REFERENCES_WHEN_FREE = 3  # this object's, the lease's, and the argument of getrefcount
_pool = _Pool()
