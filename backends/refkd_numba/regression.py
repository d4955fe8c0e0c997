"""Mean squared error and Huber loss, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty_like
from refkd_numba.compile import compiled
from refkd_numba.layout import flat
from refkd_numba.operands import aligned, are_float32, cotangent, is_positive
from refkd_numba.reduction import reduced, room_for_sums
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise

__all__ = ["KERNELS"]

_WORTH = 1 << 17
_SUMMANDS = 512  # in float32
_ZERO, _HALF = np.float32(0), np.float32(0.5)


def mse_forward(input: Array, target: Array, *, reduction: str = "mean") -> Any:
    return _difference(_mse, input, target, math.inf, reduction)


def mse_backward(
    dloss: Array | float, input: Array, target: Array, *, reduction: str = "mean"
) -> Any:
    return _difference_gradient(dloss, input, target, math.inf, 2, reduction)


def huber_forward(
    input: Array, target: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> Any:
    if not is_positive(delta):
        return NotImplemented
    return _difference(_huber, input, target, delta, reduction)


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
    return _difference_gradient(dloss, input, target, delta, 1, reduction)


def _difference(kernel: Any, x: Array, y: Array, delta: float, reduction: str) -> Any:
    if not are_float32(x, y) or reduction not in ("mean", "sum"):
        return NotImplemented
    x, y = aligned(x, y)
    sums = room_for_sums(x.size, _WORTH)
    share(kernel, flat(x), flat(y), float(delta), sums, worth=len(sums) > 1)
    return reduced(sums, x.size if reduction == "mean" else 1)


def _difference_gradient(
    dloss: Array | float, x: Array, y: Array, delta: float, factor: int, reduction: str
) -> Any:
    dloss = cotangent(dloss)
    if dloss is None or not are_float32(x, y) or reduction not in ("mean", "sum"):
        return NotImplemented
    x, y = aligned(x, y)
    dx, dy = empty_like(x), empty_like(x)
    scale = factor * (dloss / (x.size if reduction == "mean" else 1))
    share(
        _clipped_difference, flat(x), flat(y), float(delta), scale, flat(dx), flat(dy),
        worth=x.size > _WORTH,
    )  # fmt: skip
    return dx, dy


@compiled(counted=False)
def _mse(x, y, delta, sums, thread, threads):
    """A row of ``sums`` is the sum of (x − y)² of a part."""
    parts = span(len(sums), thread, threads)
    for part in range(parts.start, parts.stop):
        block = span(x.size, part, len(sums))
        result, a, b = 0.0, x[block], y[block]
        for first in range(0, a.size, _SUMMANDS):
            c, d = a[first : first + _SUMMANDS], b[first : first + _SUMMANDS]
            subtotal = _ZERO
            for i in range(c.size):
                subtotal += _squared_difference(c[i], d[i])
            result += subtotal
        sums[part, 0] = result


@compiled(counted=False)
def _huber(x, y, delta, sums, thread, threads):
    """A row of ``sums`` is the sum of c (|d| − c/2), c = min(|d|, δ), d = x − y, of a part."""
    parts, delta = span(len(sums), thread, threads), np.float32(delta)
    for part in range(parts.start, parts.stop):
        block = span(x.size, part, len(sums))
        result, a, b = 0.0, x[block], y[block]
        for first in range(0, a.size, _SUMMANDS):
            c, d = a[first : first + _SUMMANDS], b[first : first + _SUMMANDS]
            subtotal = _ZERO
            for i in range(c.size):
                subtotal += _huber_of(c[i] - d[i], delta)
            result += subtotal
        sums[part, 0] = result


@compiled
def _clipped_difference(x, y, delta, scale, dx, dy, thread, threads):
    """Write dx = (x − y within ±δ) · scale = −dy."""
    part = span(x.size, thread, threads)
    x, y, dx, dy = x[part], y[part], dx[part], dy[part]
    delta, scale = np.float32(delta), np.float32(scale)
    for i in range(x.size):
        d = x[i] - y[i]
        d = delta if d > delta else -delta if d < -delta else d
        dx[i] = d * scale
        dy[i] = -(d * scale)


@elementwise
def _squared_difference(x, y):
    return (x - y) * (x - y)


@elementwise
def _huber_of(d, delta):
    magnitude = abs(d)
    clipped = delta if magnitude > delta else magnitude
    return clipped * (magnitude - _HALF * clipped)


KERNELS = {
    "huber_backward": huber_backward,
    "huber_forward": huber_forward,
    "mse_backward": mse_backward,
    "mse_forward": mse_forward,
}
