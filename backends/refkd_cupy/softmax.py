"""Softmax and log-softmax along any axis, in one launch each."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.operands import are_float32, is_positive
from refkd_cupy.rows import launch_rows

__all__ = ["KERNELS"]


def softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along("softmax_forward", (x,), axis, temperature)


def softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along("softmax_backward", (dy, y), axis, temperature)


def log_softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along("log_softmax_forward", (x,), axis, temperature)


def log_softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along("log_softmax_backward", (dy, y), axis, temperature)


def _along(kernel: str, arrays: tuple[Array, ...], axis: int, temperature: float) -> Any:
    if not (are_float32(*arrays) and is_positive(temperature) and type(axis) is int):
        return NotImplemented
    dimensions = arrays[0].ndim
    if not -dimensions <= axis < dimensions:
        return NotImplemented
    # The axis goes last for the kernel, and back to where it was in the result.
    order = [*(a for a in range(dimensions) if a != axis % dimensions), axis % dimensions]
    rows = [device.dense(array.transpose(*order)) for array in arrays]
    out = device.empty(rows[0].shape)
    classes = out.shape[-1]
    flat = [array.reshape(-1) for array in (*rows, out)]
    scale = np.float32(1 / temperature)
    launch_rows("softmax", kernel, out.size // classes, classes, [*flat, scale])
    return out.transpose(*sorted(range(dimensions), key=order.__getitem__))


KERNELS = {
    "log_softmax_backward": log_softmax_backward,
    "log_softmax_forward": log_softmax_forward,
    "softmax_backward": softmax_backward,
    "softmax_forward": softmax_forward,
}
