"""Pointwise activations, one pass over memory each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty_like
from refkd_numba.compile import compiled
from refkd_numba.layout import flat, is_dense
from refkd_numba.operands import aligned, are_float32
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise, normal_tail, sigmoid_tails, tanh

__all__ = ["KERNELS"]

_WORTH = 1 << 17
_WORTH_OF_EXP = 1 << 16

_ZERO, _ONE, _TWO = map(np.float32, (0, 1, 2))
_SQRT_2_OVER_PI = np.float32(math.sqrt(2 / math.pi))
_1_OVER_SQRT_2_PI = np.float32(1 / math.sqrt(2 * math.pi))
_CUBIC, _CUBIC_SLOPE = np.float32(0.044715), np.float32(3 * 0.044715)


def relu_forward(x: Array) -> Any:
    return _forward(_relu_forward, x, _WORTH)


def relu_backward(dy: Array, y: Array) -> Any:
    return _backward(_relu_backward, dy, y, _WORTH)


def sigmoid_forward(x: Array) -> Any:
    return _forward(_sigmoid_forward, x, _WORTH_OF_EXP)


def sigmoid_backward(dy: Array, y: Array) -> Any:
    return _backward(_sigmoid_backward, dy, y, _WORTH)


def tanh_forward(x: Array) -> Any:
    return _forward(_tanh_forward, x, _WORTH_OF_EXP)


def tanh_backward(dy: Array, y: Array) -> Any:
    return _backward(_tanh_backward, dy, y, _WORTH)


def silu_forward(x: Array) -> Any:
    return _forward(_silu_forward, x, _WORTH_OF_EXP)


def silu_backward(dy: Array, x: Array) -> Any:
    return _backward(_silu_backward, dy, x, _WORTH_OF_EXP)


def gelu_forward(x: Array, *, approximate: str = "none") -> Any:
    if approximate == "none":
        return _forward(_gelu_forward, x, _WORTH_OF_EXP)
    if approximate == "tanh":
        return _forward(_gelu_tanh_forward, x, _WORTH_OF_EXP)
    return NotImplemented


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Any:
    if approximate == "none":
        return _backward(_gelu_backward, dy, x, _WORTH_OF_EXP)
    if approximate == "tanh":
        return _backward(_gelu_tanh_backward, dy, x, _WORTH_OF_EXP)
    return NotImplemented


def _forward(kernel: Any, x: Array, worth: int) -> Any:
    if not are_float32(x):
        return NotImplemented
    if not is_dense(x):
        (x,) = aligned(x)
    y = empty_like(x)
    share(kernel, flat(x), flat(y), worth=x.size > worth)
    return y


def _backward(kernel: Any, dy: Array, x: Array, worth: int) -> Any:
    if not are_float32(dy, x):
        return NotImplemented
    x, dy = aligned(x, dy)
    dx = empty_like(x)
    share(kernel, flat(dy), flat(x), flat(dx), worth=x.size > worth)
    return dx


@compiled
def _relu_forward(x, y, thread, threads):
    """Write y = max(x, 0)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = _ZERO if x[i] <= _ZERO else x[i]


@compiled
def _relu_backward(dy, y, dx, thread, threads):
    """Write dx = dy · (1 where y > 0, else 0), so that what is not finite in dy shows."""
    part = span(y.size, thread, threads)
    dy, y, dx = dy[part], y[part], dx[part]
    for i in range(y.size):
        dx[i] = dy[i] * (_ONE if y[i] > _ZERO else _ZERO)


@compiled
def _sigmoid_forward(x, y, thread, threads):
    """Write y = σ(x)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = sigmoid_tails(x[i])[0]


@compiled
def _sigmoid_backward(dy, y, dx, thread, threads):
    """Write dx = dy · y (1 − y)."""
    part = span(y.size, thread, threads)
    dy, y, dx = dy[part], y[part], dx[part]
    for i in range(y.size):
        dx[i] = dy[i] * _sigmoid_slope(y[i])


@elementwise
def _sigmoid_slope(y):
    return y * (_ONE - y)


@compiled
def _tanh_forward(x, y, thread, threads):
    """Write y = tanh(x)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = tanh(x[i])


@compiled
def _tanh_backward(dy, y, dx, thread, threads):
    """Write dx = dy · (1 − y)(1 + y)."""
    part = span(y.size, thread, threads)
    dy, y, dx = dy[part], y[part], dx[part]
    for i in range(y.size):
        dx[i] = dy[i] * _tanh_slope(y[i])


@elementwise
def _tanh_slope(y):
    return (_ONE - y) * (_ONE + y)


@compiled
def _silu_forward(x, y, thread, threads):
    """Write y = x σ(x)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = x[i] * sigmoid_tails(x[i])[0]


@compiled
def _silu_backward(dy, x, dx, thread, threads):
    """Write dx = dy · σ(x) (1 + x σ(−x))."""
    part = span(x.size, thread, threads)
    dy, x, dx = dy[part], x[part], dx[part]
    for i in range(x.size):
        dx[i] = dy[i] * _silu_slope(x[i])


@elementwise
def _silu_slope(x):
    s, rest = sigmoid_tails(x)
    return s * (_ONE + x * rest)


@compiled
def _gelu_forward(x, y, thread, threads):
    """Write y = x Φ(x)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = _gelu(x[i])


@compiled
def _gelu_backward(dy, x, dx, thread, threads):
    """Write dx = dy · (Φ(x) + x φ(x))."""
    part = span(x.size, thread, threads)
    dy, x, dx = dy[part], x[part], dx[part]
    for i in range(x.size):
        dx[i] = dy[i] * _gelu_slope(x[i])


@elementwise
def _gelu(x):
    tail, _ = normal_tail(x)
    return x * (tail if x < _ZERO else _ONE - tail)


@elementwise
def _gelu_slope(x):
    tail, density = normal_tail(x)
    return (tail if x < _ZERO else _ONE - tail) + x * (density * _1_OVER_SQRT_2_PI)


@compiled
def _gelu_tanh_forward(x, y, thread, threads):
    """Write y = x σ(2u), u = √(2/π) (x + 0.044715 x³)."""
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = x[i] * sigmoid_tails(_gelu_argument(x[i]))[0]


@compiled
def _gelu_tanh_backward(dy, x, dx, thread, threads):
    """Write dx = dy · σ(2u) (1 + 2x σ(−2u) u')."""
    part = span(x.size, thread, threads)
    dy, x, dx = dy[part], x[part], dx[part]
    for i in range(x.size):
        dx[i] = dy[i] * _gelu_tanh_slope(x[i])


@elementwise
def _gelu_argument(x):
    """Return 2u."""
    return _TWO * (_SQRT_2_OVER_PI * (x + _CUBIC * x * x * x))


@elementwise
def _gelu_tanh_slope(x):
    s, rest = sigmoid_tails(_gelu_argument(x))
    slope = _SQRT_2_OVER_PI * (_ONE + _CUBIC_SLOPE * x * x)
    return s * (_ONE + _TWO * x * rest * slope)


KERNELS = {
    "gelu_backward": gelu_backward,
    "gelu_forward": gelu_forward,
    "relu_backward": relu_backward,
    "relu_forward": relu_forward,
    "sigmoid_backward": sigmoid_backward,
    "sigmoid_forward": sigmoid_forward,
    "silu_backward": silu_backward,
    "silu_forward": silu_forward,
    "tanh_backward": tanh_backward,
    "tanh_forward": tanh_forward,
}
