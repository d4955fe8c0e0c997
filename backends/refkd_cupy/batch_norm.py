"""Batch norm: one pass for the sums of every channel, one for the result."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.channel_norm import backward, group_moments, normalised, rows_of
from refkd_cupy.layout import as_images, channels_last
from refkd_cupy.operands import are_float32, is_positive

__all__ = ["KERNELS"]

_THREADS = 256
_MOST = 1 << 31


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    eps: float = 1e-5,
) -> Any:
    of_batch = running_mean is None and running_var is None
    running = () if of_batch else (running_mean, running_var)
    if not _fits(x, weight, bias, *running) or not is_positive(eps):
        return NotImplemented
    of = rows_of(x.shape, 1)
    if of is None or (of_batch and of.rows < 2):
        return NotImplemented
    weight, bias, *running = map(device.dense, (weight, bias, *running))
    pixels = at_vectors(channels_last(x))
    if of_batch:
        mean, var, rstd, coefficients = group_moments(
            pixels, weight, bias, of, 1, eps, variances=True
        )
    else:
        mean, var, rstd, coefficients = _given(*running, weight, bias, eps)
    return as_images(normalised(pixels, coefficients, of)), mean, var, rstd


def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, batch_statistics: bool
) -> Any:
    if not _fits(x, weight, mean, rstd) or not are_float32(x, dy):
        return NotImplemented
    of = rows_of(x.shape, 1)
    if of is None or (batch_statistics and of.rows < 2):
        return NotImplemented
    vectors = map(device.dense, (weight, mean, rstd))
    images = (at_vectors(channels_last(a)) for a in (dy, x))
    dx, dweight, dbias = backward(*images, *vectors, of, 1, of_batch=bool(batch_statistics))
    return as_images(dx), dweight, dbias


def running_statistics(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    var: Array,
    *,
    momentum: float,
    count: int,
) -> Any:
    arrays = (running_mean, running_var, mean, var)
    fits = are_float32(*arrays) and type(momentum) is float and type(count) is int and count > 1
    if not fits or running_mean.size >= _MOST:
        return NotImplemented
    given = [device.dense(array).reshape(-1) for array in arrays]
    results = tuple(device.empty(mean.shape) for _ in range(2))
    factors = [1 - momentum, momentum, momentum * count / (count - 1)]
    device.launch(
        "channel_norm", "running_statistics", -(-mean.size // _THREADS), _THREADS,
        [*given, *(result.reshape(-1) for result in results), *map(np.float32, factors),
         np.int32(mean.size)],
    )  # fmt: skip
    return results


def _fits(x: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and are_float32(*vectors)
        and vectors[0].shape == (x.shape[1],)
    )


def _given(
    running_mean: Array, running_var: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Return copies of the statistics, 1/√(v + ε), and the coefficients of y."""
    channels = weight.size
    mean, var, rstd = (device.empty((channels,)) for _ in range(3))
    coefficients = device.empty((1, 3, channels))
    device.launch(
        "channel_norm", "given_statistics", -(-channels // _THREADS), _THREADS,
        [running_mean, running_var, weight, bias, mean, var, rstd, coefficients,
         np.float32(eps), np.int32(channels)],
    )  # fmt: skip
    return mean, var, rstd, coefficients


KERNELS = {
    "batch_norm_backward": batch_norm_backward,
    "batch_norm_forward": batch_norm_forward,
    "running_statistics": running_statistics,
}
