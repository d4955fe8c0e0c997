"""Stored images become float32, in one pass over memory and bit for bit as the reference's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd_numba.buffers import empty_like
from refkd_numba.compile import compiled
from refkd_numba.layout import flat
from refkd_numba.operands import aligned
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 17
_LONG = 256  # a run of one channel, for a loop of its own
_TABLE = 1024
_FLOAT32 = np.dtype(np.float32)
_STORED = (np.dtype(np.uint8), _FLOAT32)


def pixels_to_float(
    pixels: Array, *, scale: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Any:
    if (
        type(pixels) is not np.ndarray
        or pixels.dtype not in _STORED
        or not pixels.size
        or dtype != _FLOAT32
        or type(scale) is not float  # a NumPy float64 would have NumPy compute in float64
    ):
        return NotImplemented
    channels = pixels.shape[1] if pixels.ndim > 1 else 1
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or 0 in std:
        return NotImplemented
    (pixels,) = aligned(pixels)
    x = empty_like(pixels, _FLOAT32)
    if len(mean) == len(std) == 1:
        run = channels = 1
    else:
        run = pixels.strides[1] // pixels.itemsize
    kernel = _by_table if run < _LONG else _by_run
    statistics = _statistics(tuple(mean), tuple(std), channels, run)
    share(kernel, flat(pixels), scale, *statistics, run, flat(x), worth=x.size > _WORTH)
    return x


@functools.lru_cache(maxsize=8)
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, run: int
) -> list[NDArray[Any]]:
    """Return mean and std by channel, or, for short runs of a channel, by neighbour."""
    each = [np.broadcast_to(np.asarray(v, _FLOAT32), channels) for v in (mean, std)]
    if run < _LONG:
        repeats = -(-_TABLE // (channels * run))
        each = [np.tile(np.repeat(v, run), repeats) for v in each]
    # No mean of −0, which the reference does not subtract.
    return [each[0] + _FLOAT32.type(0), each[1] + _FLOAT32.type(0)]


@compiled(fast=False, counted=False)
def _by_run(pixels, scale, mean, std, run, x, thread, threads):
    """Write x = (pixels · scale − mean) / std, where ``run`` neighbours belong to one channel."""
    runs = span(pixels.size // run, thread, threads)
    scale = np.float32(scale)
    for r in range(runs.start, runs.stop):
        part = slice(r * run, (r + 1) * run)
        stored, out = pixels[part], x[part]
        m, s = mean[r % mean.size], std[r % std.size]
        for i in range(stored.size):
            out[i] = (np.float32(stored[i]) * scale - m) / s


@compiled(fast=False, counted=False)
def _by_table(pixels, scale, mean, std, run, x, thread, threads):
    """Write x = (pixels · scale − mean) / std, the statistics of neighbours in tables."""
    size = mean.size
    periods = span((pixels.size + size - 1) // size, thread, threads)
    scale = np.float32(scale)
    for p in range(periods.start, periods.stop):
        part = slice(p * size, min((p + 1) * size, pixels.size))
        stored, out = pixels[part], x[part]
        m, s = mean[: stored.size], std[: stored.size]
        for i in range(stored.size):
            out[i] = (np.float32(stored[i]) * scale - m[i]) / s[i]


KERNELS = {"pixels_to_float": pixels_to_float}
