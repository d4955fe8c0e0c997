"""Dropout by a given mask, one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.layout import aligned, empty_like, flat
from refkd_cupy.operands import are_float32, is_number

__all__ = ["KERNELS"]

_BOOL = np.dtype(np.bool_)


def dropout_forward(x: Array, mask: Array, *, p: float) -> Any:
    return _masked(x, mask, p)


def dropout_backward(dy: Array, mask: Array, *, p: float) -> Any:
    return _masked(dy, mask, p)


def _masked(x: Array, mask: Array, p: float) -> Any:
    if isinstance(mask, np.ndarray) and not device.is_array(mask):  # drawn by NumPy
        mask = device.asarray(mask)
    if not (
        are_float32(x)
        and device.is_array(mask)
        and mask.dtype == _BOOL
        and mask.shape == x.shape
        and is_number(p)
        and 0 <= p <= 1
        and not isinstance(p, bool)
    ):
        return NotImplemented
    x, mask = aligned(x, mask)
    y = empty_like(x)
    scale = np.float32(0.0 if p == 1 else float(1 / (1 - p)))
    grid, block = device.spread(x.size, each=4)
    arguments = [flat(x), flat(mask), flat(y), np.int64(x.size), scale]
    device.launch("dropout", "dropout", grid, block, arguments)
    return y


KERNELS = {"dropout_backward": dropout_backward, "dropout_forward": dropout_forward}
