"""Enlarging images by whole factors, and the shortcut that takes every few rows and columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.window import Pair, Size, as_image_shape, as_pair
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.layout import channels_last
from refkd_cupy.operands import can_be_counted
from refkd_cupy.pool import are_images, spread_vectors, vector

__all__ = ["KERNELS"]

_THREADS = 256
_LIMIT = 1 << 31


def upsample_nearest2d_forward(x: Array, *, scale_factor: Size) -> Any:
    factors = _factors(x, scale_factor)
    if factors is None:
        return NotImplemented
    batch, channels, *plane = x.shape
    shape = (batch, channels, *(n * f for n, f in zip(plane, factors, strict=True)))
    return _mapped("enlarge", x, shape, (*shape[2:], *factors))


def upsample_nearest2d_backward(dy: Array, *, scale_factor: Size) -> Any:
    factors = _factors(dy, scale_factor)
    if factors is None or any(n % f for n, f in zip(dy.shape[2:], factors, strict=True)):
        return NotImplemented
    batch, channels, *plane = dy.shape
    shape = (batch, channels, *(n // f for n, f in zip(plane, factors, strict=True)))
    return _mapped("block_sums", dy, shape, (*shape[2:], *factors))


def padded_shortcut_forward(x: Array, *, stride: int, zeros: Pair) -> Any:
    if not are_images(x) or not _are_options(stride, zeros):
        return NotImplemented
    return _shortcut("padded_shortcut", x, x.shape, stride, zeros, forward=True)


def padded_shortcut_backward(
    dy: Array, *, input_shape: tuple[int, ...], stride: int, zeros: Pair
) -> Any:
    if not are_images(dy) or not _are_options(stride, zeros):
        return NotImplemented
    try:
        shape = as_image_shape("", "", input_shape)
    except RefkdError:
        return NotImplemented
    if dy.shape != _shortened(shape, stride, zeros) or 0 in shape:
        return NotImplemented
    return _shortcut("padded_shortcut_gradient", dy, shape, stride, zeros, forward=False)


def _factors(x: Any, scale_factor: Any) -> Pair | None:
    if not are_images(x):
        return None
    try:
        return as_pair("", "", scale_factor, 1)
    except RefkdError:
        return None


def _mapped(kernel: str, x: Array, shape: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    """Return images of ``shape``, every vector of channels a thread's."""
    if math.prod(shape) >= _LIMIT:
        return NotImplemented
    y = device.empty_images(shape)
    channels = shape[1]
    count, grid, block = spread_vectors(shape)
    device.launch(
        "resample", f"{kernel}_{vector(channels)}", grid, block,
        [at_vectors(channels_last(x)), channels_last(y),
         *map(np.int32, (count, channels, *sizes))],
    )  # fmt: skip
    return y


def _are_options(stride: Any, zeros: Any) -> bool:
    return (
        type(stride) is int
        and stride >= 1
        and can_be_counted(stride)
        and isinstance(zeros, (tuple, list))
        and len(zeros) == 2
        and all(type(z) is int and z >= 0 for z in zeros)
    )


def _shortened(shape: tuple[int, ...], stride: int, zeros: Pair) -> tuple[int, ...]:
    batch, channels, height, width = shape
    return batch, sum(zeros) + channels, -(-height // stride), -(-width // stride)


def _shortcut(
    kernel: str, source: Array, shape: tuple[int, ...], stride: int, zeros: Pair, *, forward: bool
) -> Any:
    """Return y or dx of a shortcut whose x has ``shape``."""
    _, narrow, height, width = shape
    short = _shortened(shape, stride, zeros)
    count = math.prod(short if forward else shape)
    if count >= _LIMIT:
        return NotImplemented
    result = device.empty_images(short if forward else shape)
    _, wide, rows, columns = short
    sizes = (count, height, width, narrow, rows, columns, wide, zeros[0], stride)
    device.launch(
        "resample", kernel, -(-count // _THREADS), _THREADS,
        [channels_last(source), channels_last(result), *map(np.int32, sizes)],
    )  # fmt: skip
    return result


KERNELS = {
    "upsample_nearest2d_forward": upsample_nearest2d_forward,
    "upsample_nearest2d_backward": upsample_nearest2d_backward,
    "padded_shortcut_forward": padded_shortcut_forward,
    "padded_shortcut_backward": padded_shortcut_backward,
}
