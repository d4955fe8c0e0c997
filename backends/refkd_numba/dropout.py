"""Dropout by a given mask, one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty_like
from refkd_numba.compile import compiled
from refkd_numba.layout import flat
from refkd_numba.operands import aligned, are_float32, is_number
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 17
_BOOL = np.dtype(np.bool_)
_ZERO = np.float32(0)


def dropout_forward(x: Array, mask: Array, *, p: float) -> Any:
    return _masked(x, mask, p)


def dropout_backward(dy: Array, mask: Array, *, p: float) -> Any:
    return _masked(dy, mask, p)


def _masked(x: Array, mask: Array, p: float) -> Any:
    if not (
        are_float32(x)
        and type(mask) is np.ndarray
        and mask.dtype == _BOOL
        and mask.shape == x.shape
        and is_number(p)
        and 0 <= p <= 1
        and not isinstance(p, bool)
    ):
        return NotImplemented
    x, mask = aligned(x, mask)
    y = empty_like(x)
    scale = 0.0 if p == 1 else float(1 / (1 - p))
    share(_scaled, flat(x), flat(mask), scale, flat(y), worth=x.size > _WORTH)
    return y


@compiled
def _scaled(x, mask, scale, y, thread, threads):
    """Write y = x · scale where the mask is set, else x · 0, so that what is not finite shows."""
    part = span(x.size, thread, threads)
    x, mask, y = x[part], mask[part], y[part]
    scale = np.float32(scale)
    for i in range(x.size):
        y[i] = x[i] * (scale if mask[i] else _ZERO)


KERNELS = {"dropout_backward": dropout_backward, "dropout_forward": dropout_forward}
