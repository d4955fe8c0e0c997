"""Average pooling of images with the channels last, over windows and over parts of the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.taps import Windows
from refkd.ops.window import Pair, Size, as_pair
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.layout import channels_last
from refkd_cupy.pool import are_images, plane_of, spread_vectors, vector, windows_of

__all__ = ["KERNELS"]

_THREADS = 256
_LIMIT = 1 << 31
_MOST_CHANNELS = 32 * 65535  # of which a grid has blocks of 32


def avg_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    plane = x.shape[2:] if are_images(x) else None
    windows = windows_of(plane, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None or type(count_include_pad) is not bool:
        return NotImplemented
    return _forward(x, *(_axis(w, count_include_pad) for w in windows))


def avg_pool2d_backward(
    dy: Array,
    *,
    input_shape: tuple[int, int, int, int],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    plane = plane_of(dy, input_shape)
    windows = windows_of(plane, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None or type(count_include_pad) is not bool:
        return NotImplemented
    if dy.shape[2:] != tuple(w.count for w in windows):
        return NotImplemented
    return _backward(dy, *(_axis(w, count_include_pad) for w in windows))


def adaptive_avg_pool2d_forward(x: Array, *, output_size: Size) -> Any:
    if not are_images(x):
        return NotImplemented
    try:
        output = as_pair("", "", output_size, 1)
    except RefkdError:
        return NotImplemented
    if output == (1, 1) and x.shape[1] <= _MOST_CHANNELS:
        return _means(x)
    return _forward(x, *_parts(x.shape[2:], output))


def adaptive_avg_pool2d_backward(dy: Array, *, input_shape: tuple[int, int, int, int]) -> Any:
    plane = plane_of(dy, input_shape)
    return NotImplemented if plane is None else _backward(dy, *_parts(plane, dy.shape[2:]))


# What a kernel is told of an axis: size, count, kernel, stride, padding, counted.
_Axis = tuple[int, int, int, int, int, int]


def _axis(windows: Windows, padded: bool) -> _Axis:
    w = windows
    return w.size, w.count, w.kernel, w.stride, w.padding, w.padding if padded else 0


def _parts(plane: Pair, output: Pair) -> list[_Axis]:
    return [(size, count, 0, 0, 0, 0) for size, count in zip(plane, output, strict=True)]


def _are_narrow(*axes: _Axis) -> bool:
    return all((size + 1) * (count + 1) < _LIMIT for size, count, *_ in axes)


def _forward(x: Array, down: _Axis, right: _Axis) -> Any:
    shape = (*x.shape[:2], down[1], right[1])
    if math.prod(shape) >= _LIMIT or not _are_narrow(down, right):
        return NotImplemented
    y = device.empty_images(shape)
    count, grid, block = spread_vectors(shape)
    device.launch(
        "avg_pool", f"avg_pool_{vector(shape[1])}", grid, block,
        [at_vectors(channels_last(x)), channels_last(y),
         *map(np.int32, (count, shape[1], *down, *right))],
    )  # fmt: skip
    return y


def _backward(dy: Array, down: _Axis, right: _Axis) -> Any:
    if not _are_narrow(down, right):
        return NotImplemented
    shape = (*dy.shape[:2], down[0], right[0])
    dx = device.empty_images(shape)
    count, grid, block = spread_vectors(shape)
    device.launch(
        "avg_pool", f"avg_pool_gradient_{vector(shape[1])}", grid, block,
        [at_vectors(channels_last(dy)), channels_last(dx),
         *map(np.int32, (count, shape[1], *down, *right))],
    )  # fmt: skip
    return dx


def _means(x: Array) -> Array:
    batch, channels, height, width = x.shape
    y = device.empty((batch, channels))
    vectors = channels // vector(channels)
    # Several blocks for an image, where it is small, hold fewer lanes each but are more.
    tile = min(vectors, 32)
    device.launch(
        "avg_pool", f"means_{vector(channels)}", (batch, -(-vectors // tile)),
        _THREADS // tile * tile,
        [at_vectors(channels_last(x)), y, *map(np.int32, (height * width, channels, tile))],
    )  # fmt: skip
    return y.reshape(batch, channels, 1, 1)


KERNELS = {
    "avg_pool2d_forward": avg_pool2d_forward,
    "avg_pool2d_backward": avg_pool2d_backward,
    "adaptive_avg_pool2d_forward": adaptive_avg_pool2d_forward,
    "adaptive_avg_pool2d_backward": adaptive_avg_pool2d_backward,
}
