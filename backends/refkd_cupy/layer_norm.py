"""Layer norm: each row is read from memory once, and stays in a warp's registers until it is done.

Rows too long for that are read again, from the cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.layout import rows
from refkd_cupy.operands import are_float32, is_positive

__all__ = ["KERNELS"]

_STEM = "layer_norm"
_WARPS = 4  # of a block, a row each
_LONG = 1024  # entries of a row; above, a block does it
_THREADS = 256
_RESIDENT = {1: 12, 2: 8, 4: 4, 8: 2}  # blocks that a multiprocessor runs, by _vectors
_TILE = 128  # columns of a block that sums
_WIDEST = 65535 * _TILE  # row of which a grid has blocks for all columns
_LIMIT = 1 << 31


def layer_norm_forward(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Any:
    if not _fits(x, weight, bias) or not is_positive(eps):
        return NotImplemented
    count, width = _sizes(x)
    y, mean, rstd = device.empty(x.shape), device.empty(x.shape[:-1]), device.empty(x.shape[:-1])
    given = (at_vectors(a) for a in (rows(x), device.dense(weight), device.dense(bias)))
    arrays = [*given, y, mean, rstd, np.float32(eps)]
    if width > _LONG:
        device.launch(_STEM, "layer_norm_forward_long", count, _THREADS, [*arrays, np.int32(width)])
    else:
        device.launch(
            _STEM, f"layer_norm_forward_{_vectors(width)}", -(-count // _WARPS), 32 * _WARPS,
            [*arrays, np.int32(count), np.int32(width)],
        )  # fmt: skip
    return y, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> Any:
    if not _fits(x, weight) or not are_float32(x, dy) or not are_float32(mean, rstd):
        return NotImplemented
    if mean.shape != x.shape[:-1]:
        return NotImplemented
    count, width = _sizes(x)
    dx, dweight, dbias = device.empty(x.shape), device.empty((width,)), device.empty((width,))
    images = [at_vectors(a) for a in (rows(dy), rows(x), device.dense(weight))]
    statistics = [device.dense(mean), device.dense(rstd)]
    if width > _LONG:
        shifts = device.empty((count,))
        device.launch(
            _STEM, "layer_norm_backward_long", count, _THREADS,
            [*images, *statistics, dx, shifts, np.int32(width)],
        )  # fmt: skip
        tiles = -(-width // _TILE)
        most = 8 * device.multiprocessors() // tiles
        parts = device.empty((max(1, min(count // 16, most)), 2, width), np.float64)
        device.launch(
            _STEM, "layer_norm_sums", (len(parts), tiles), _THREADS,
            [*images[:2], *statistics, shifts, parts, *map(np.int32, (count, width, _TILE))],
        )  # fmt: skip
    else:
        most = _RESIDENT[_vectors(width)] * device.multiprocessors()
        parts = device.empty((min(-(-count // _WARPS), most), 2, width), np.float64)
        device.launch(
            _STEM, f"layer_norm_backward_{_vectors(width)}", len(parts), 32 * _WARPS,
            [*images, *statistics, dx, parts, *map(np.int32, (count, width))],
        )  # fmt: skip
    device.launch(
        _STEM, "layer_norm_gradients", -(-2 * width // 32), 1024,
        [parts, dweight, dbias, *map(np.int32, (len(parts), width))],
    )  # fmt: skip
    return dx, dweight, dbias


def _fits(x: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and x.size < _LIMIT
        and x.shape[-1] <= _WIDEST
        and are_float32(*vectors)
        and vectors[0].shape == x.shape[-1:]
    )


def _sizes(x: Array) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), int(x.shape[-1])


def _vectors(width: int) -> int:
    """Return how many times 4 entries a lane of a warp takes of a row: 1, 2, 4 or 8."""
    return 1 << (-(-width // 128) - 1).bit_length()


KERNELS = {"layer_norm_forward": layer_norm_forward, "layer_norm_backward": layer_norm_backward}
