"""Mean squared error and Huber loss, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.layout import aligned, empty_like, flat
from refkd_cupy.operands import are_float32, is_positive
from refkd_cupy.rows import cotangent, summed

__all__ = ["KERNELS"]

_REDUCTIONS = ("mean", "sum")


def mse_forward(input: Array, target: Array, *, reduction: str = "mean") -> Any:
    return _loss("mse_forward", input, target, [], reduction)


def mse_backward(
    dloss: Array | float, input: Array, target: Array, *, reduction: str = "mean"
) -> Any:
    return _gradient(dloss, input, target, math.inf, 2, reduction)


def huber_forward(
    input: Array, target: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> Any:
    if not is_positive(delta):
        return NotImplemented
    return _loss("huber_forward", input, target, [np.float32(delta)], reduction)


def huber_backward(
    dloss: Array | float,
    input: Array,
    target: Array,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> Any:
    if not is_positive(delta):
        return NotImplemented
    return _gradient(dloss, input, target, delta, 1, reduction)


def _loss(kernel: str, x: Array, y: Array, numbers: list[Any], reduction: str) -> Any:
    if not are_float32(x, y) or reduction not in _REDUCTIONS:
        return NotImplemented
    x, y = aligned(x, y)
    grid, block = device.spread(x.size, each=4)
    sums = device.empty((grid,), np.float64)
    arguments = [flat(x), flat(y), sums, np.int64(x.size), *numbers]
    device.launch("regression", kernel, grid, block, arguments)
    return summed(sums, x.size if reduction == "mean" else 1)


def _gradient(
    dloss: Array | float, x: Array, y: Array, delta: float, factor: int, reduction: str
) -> Any:
    if not are_float32(x, y) or reduction not in _REDUCTIONS:
        return NotImplemented
    divisor = (x.size if reduction == "mean" else 1) / factor
    scale = cotangent(dloss, x, reduction, divisor)
    if scale is None:
        return NotImplemented
    x, y = aligned(x, y)
    dx, dy = empty_like(x), empty_like(x)
    grid, block = device.spread(x.size)
    numbers = [scale[0], scale[2], np.float32(delta)]
    arguments = [flat(x), flat(y), *numbers, flat(dx), flat(dy), np.int64(x.size)]
    device.launch("regression", "difference_backward", grid, block, arguments)
    return dx, dy


KERNELS = {
    "huber_backward": huber_backward,
    "huber_forward": huber_forward,
    "mse_backward": mse_backward,
    "mse_forward": mse_forward,
}
