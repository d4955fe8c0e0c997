"""Memory for results, used again once nobody refers to it.

A fresh array of some megabytes costs as much as the kernel that fills it: the system
clears every page. So what is handed out here comes back when the array, all views of it,
and all that shares its memory are gone; nothing that somebody holds is ever overwritten.
"""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["empty", "empty_images", "empty_like"]

_ALIGNMENT = 64
_SMALL = 1 << 14  # bytes; malloc serves these from memory it already has
_LARGE, _SLACK = 1 << 20, 3  # bytes, and times as much as is asked for
_KEEP = 4096  # requests for which a block waits to be used again


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array in C order, whose contents are arbitrary."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size < _SMALL else _pool.lend(shape, dtype, size)


def empty_images(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array (N, C, ...) whose memory holds the channels last."""
    batch, channels, *space = shape
    axes = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return empty((batch, *space, channels), dtype).transpose(axes)


def empty_like(x: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return an array of x's shape whose axes lie in memory in the order of x's."""
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if x.flags.c_contiguous:
        return empty(x.shape, dtype)
    order = sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis))
    return empty(tuple(x.shape[a] for a in order), dtype).transpose(np.argsort(order))


class _Memory(np.ndarray[Any, Any]):
    """Memory that arrays are lent.

    A view refers to the owner of its memory rather than to the view that it was made of,
    but only where both are of one type. This is another: so all views, however made,
    refer to the array that was lent, which therefore lives as long as any of them.
    """


class _Block:
    __slots__ = ("lease", "memory", "offset", "returned", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _Memory(size + _ALIGNMENT, np.uint8)
        self.offset = -self.memory.ctypes.data % _ALIGNMENT
        self.lease: _Lease | None = None
        self.returned = 0  # in which request


class _Lease(weakref.ref[Any]):
    """A reference to the array that was lent; it says when that is gone."""

    __slots__ = ("block",)
    block: _Block


class _Pool:
    """Blocks that are lent and blocks that are free, by size.

    Threads, signal handlers and finalisers may all lend at any point: every step on what
    they share is one operation of a deque or a set, and none waits for another.
    """

    def __init__(self) -> None:
        self.free: dict[int, deque[_Block]] = {}  # the one returned last is taken first
        self.lent: set[_Block] = set()
        self.requests = 0

    def lend(self, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> NDArray[Any]:
        self.requests += 1
        if self.requests % _KEEP == 0:
            self._drop_unused()
        step = 1 << max(size.bit_length() - 4, 0)
        size = -(-size // step) * step  # a few sizes, of which little is wasted
        block = self._free_block(size) or _Block(size)
        array: NDArray[Any] = np.ndarray(shape, dtype, block.memory, block.offset)
        block.lease = lease = _Lease(array, self._take_back)
        lease.block = block
        self.lent.add(block)
        return array

    def _free_block(self, size: int) -> _Block | None:
        """Return a block of that size; or a larger one, rather than to take more memory."""
        free = self.free.setdefault(size, deque())
        others: list[int] = []
        if not free and size >= _LARGE:
            others = sorted(s for s in list(self.free) if size < s <= _SLACK * size)
        for blocks in (free, *map(self.free.__getitem__, others)):
            with contextlib.suppress(IndexError):
                return blocks.pop()
        return None

    def _take_back(self, lease: _Lease) -> None:
        block = lease.block
        self.lent.discard(block)
        block.lease = None
        # The block's, that of the array that is going, and the argument; another would be that
        # of somebody who took the array's base.
        if sys.getrefcount(block.memory) == 3:
            block.returned = self.requests
            self.free[block.size].append(block)

    def _drop_unused(self) -> None:
        for free in list(self.free.values()):
            with contextlib.suppress(IndexError):  # another may take the last one meanwhile
                while free[0].returned < self.requests - _KEEP:
                    free.popleft()


_pool = _Pool()
