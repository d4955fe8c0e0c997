"""Pointwise activations, one pass over memory each."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.layout import aligned, empty_like, flat
from refkd_cupy.operands import are_float32

__all__ = ["KERNELS"]

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


def relu_forward(x: Array) -> Any:
    return _forward("relu", x)


def relu_backward(dy: Array, y: Array) -> Any:
    return _backward("relu", dy, y)


def sigmoid_forward(x: Array) -> Any:
    return _forward("sigmoid", x)


def sigmoid_backward(dy: Array, y: Array) -> Any:
    return _backward("sigmoid", dy, y)


def tanh_forward(x: Array) -> Any:
    return _forward("tanh", x)


def tanh_backward(dy: Array, y: Array) -> Any:
    return _backward("tanh", dy, y)


def silu_forward(x: Array) -> Any:
    return _forward("silu", x)


def silu_backward(dy: Array, x: Array) -> Any:
    return _backward("silu", dy, x)


def gelu_forward(x: Array, *, approximate: str = "none") -> Any:
    return _forward(_GELU[approximate], x) if approximate in ("none", "tanh") else NotImplemented


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Any:
    if approximate not in ("none", "tanh"):
        return NotImplemented
    return _backward(_GELU[approximate], dy, x)


def _forward(stem: str, x: Array) -> Any:
    if not are_float32(x):
        return NotImplemented
    (x,) = aligned(x)
    y = empty_like(x)
    grid, block = device.spread(x.size, each=4)
    device.launch(
        "activation", f"{stem}_forward", grid, block, [flat(x), flat(y), np.int64(x.size)]
    )
    return y


def _backward(stem: str, dy: Array, x: Array) -> Any:
    if not are_float32(dy, x):
        return NotImplemented
    x, dy = aligned(x, dy)
    dx = empty_like(x)
    grid, block = device.spread(x.size, each=4)
    device.launch(
        "activation",
        f"{stem}_backward",
        grid,
        block,
        [flat(dy), flat(x), flat(dx), np.int64(x.size)],
    )
    return dx


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
