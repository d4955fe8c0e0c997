"""Max-pooling of images with the channels last. A gradient is gathered, its sums in one order."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.taps import Windows, pooling_windows
from refkd.ops.window import Pair, Size, as_image_shape, as_pair
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.layout import channels_last
from refkd_cupy.operands import are_float32, can_be_counted

__all__ = ["KERNELS", "are_images", "plane_of", "spread_vectors", "vector", "windows_of"]

_THREADS = 256
_LIMIT = 1 << 31
_MOST_SIDES = 4096  # rows and columns, whose bounds a block keeps in 32 KB


def max_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Any:
    plane = x.shape[2:] if are_images(x) else None
    windows = windows_of(plane, kernel_size, stride, padding, dilation, ceil_mode)
    if windows is None:
        return NotImplemented
    batch, channels = x.shape[:2]
    shape = (batch, channels, *(w.count for w in windows))
    if math.prod(shape) >= _LIMIT:
        return NotImplemented
    y, indices = device.empty_images(shape), device.empty_images(shape, np.int64)
    numbers = [
        getattr(w, name) for name in ("kernel", "stride", "padding", "dilation") for w in windows
    ]
    count, grid, block = spread_vectors(shape)
    device.launch(
        "pool", f"max_pool_{vector(channels)}", grid, block,
        [at_vectors(channels_last(x)), channels_last(y), channels_last(indices),
         *map(np.int32, (count, channels, *plane, *shape[2:], *numbers))],
    )  # fmt: skip
    return y, indices


def max_pool2d_backward(
    dy: Array, indices: Array, *, input_shape: tuple[int, int, int, int]
) -> Any:
    plane = plane_of(dy, input_shape)
    if plane is None or not device.is_array(indices) or indices.dtype != np.int64:
        return NotImplemented
    if indices.shape != dy.shape or sum(plane) > _MOST_SIDES:
        return NotImplemented
    batch, channels = dy.shape[:2]
    dx = device.empty_images((batch, channels, *plane))
    sides = sum(plane)
    least, most = device.empty((sides,), np.int32), device.empty((sides,), np.int32)
    device.launch(
        "pool", "max_pool_no_bounds", -(-sides // _THREADS), _THREADS,
        [least, most, np.int32(sides)],
    )  # fmt: skip
    places, gradient = (at_vectors(channels_last(a)) for a in (indices, dy))
    sizes = [*map(np.int32, (channels, *plane, *dy.shape[2:]))]
    blocks = max(1, min(-(-dy.size // (8 * _THREADS)), 8 * device.multiprocessors()))
    device.launch(
        "pool", "max_pool_bounds", blocks, _THREADS,
        [places, least, most, np.int32(dy.size), *sizes], shared=8 * sides,
    )  # fmt: skip
    count, grid, block = spread_vectors(dx.shape)
    device.launch(
        "pool", f"max_pool_gradient_{vector(channels)}", grid, block,
        [gradient, places, least, most, channels_last(dx), np.int32(count), *sizes],
    )  # fmt: skip
    return dx


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
        return _pooling_windows(plane, kernel, step, pad, spread, ceil_mode)
    except RefkdError:
        return None


@lru_cache(maxsize=256)
def _pooling_windows(
    plane: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Windows, Windows] | None:
    for sizes in zip(plane, padding, padding, stride, dilation, strict=True):
        if not can_be_counted(*sizes):
            return None
    return pooling_windows("", plane, kernel, stride, padding, dilation, ceil_mode=ceil_mode)


def are_images(x: Any) -> bool:
    """Return whether ``x`` is a batch of images whose entries a 32-bit number counts."""
    return are_float32(x) and x.ndim == 4 and x.size < _LIMIT


def plane_of(dy: Any, input_shape: Any) -> Pair | None:
    """Return H and W of images whose windows dy belongs to; None if the reference must judge."""
    try:
        shape = as_image_shape("", "", input_shape)
    except RefkdError:
        return None
    fits = are_images(dy) and shape[:2] == dy.shape[:2] and 0 not in shape
    return shape[2:] if fits and math.prod(shape) < _LIMIT else None


def vector(channels: int) -> int:
    """Return how many channels a thread takes at a time."""
    return 1 if channels % 4 else 4


def spread_vectors(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many vectors of channels images have, a thread each, a grid and a block."""
    batch, channels, height, width = shape
    count = batch * height * width * (channels // vector(channels))
    return count, -(-count // _THREADS), _THREADS


KERNELS = {"max_pool2d_forward": max_pool2d_forward, "max_pool2d_backward": max_pool2d_backward}
