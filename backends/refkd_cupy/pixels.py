"""Stored images become float32, in one pass over memory."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.layout import aligned, empty_like, flat

__all__ = ["KERNELS"]

_FLOAT32 = np.dtype(np.float32)
_STORED = {np.dtype(np.uint8): "pixels_from_u8", _FLOAT32: "pixels_from_f32"}


def pixels_to_float(
    pixels: Array, *, scale: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Any:
    if (
        not device.is_array(pixels)
        or pixels.dtype not in _STORED
        or not pixels.size
        or dtype != _FLOAT32
        or type(scale) is not float  # a NumPy float64 would have NumPy compute in float64
    ):
        return NotImplemented
    channels = pixels.shape[1] if pixels.ndim > 1 else 1
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        return NotImplemented
    (pixels,) = aligned(pixels)
    x = empty_like(pixels, _FLOAT32)
    if len(mean) == len(std) == 1:
        run = channels = 1
    else:
        run = pixels.strides[1] // pixels.itemsize if channels > 1 else 1
    grid, block = device.spread(x.size)
    arguments = [
        *(flat(pixels), *_statistics(device.number(), tuple(mean), tuple(std), channels), flat(x)),
        *(np.int64(x.size), np.int32(channels), np.int32(run), np.float32(scale)),
    ]
    device.launch("pixels", _STORED[pixels.dtype], grid, block, arguments)
    return x


@functools.cache  # without a bound: a graph may read them for as long as it is there
def _statistics(
    number: int, mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> list[Array]:
    """Return mean and std of each channel, on the device of this number, the current one."""
    # No mean of −0, which the reference does not subtract.
    each = [np.broadcast_to(np.asarray(v, _FLOAT32), channels) + _FLOAT32.type(0)
            for v in (mean, std)]  # fmt: skip
    return [device.lasting(values) for values in each]


KERNELS = {"pixels_to_float": pixels_to_float}
