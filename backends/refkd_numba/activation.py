"""Pointwise activations, one pass over memory each."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array

from refkd_numba.buffers import empty_like
from refkd_numba.compile import compiled
from refkd_numba.layout import flat, same_layout
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 15


def relu_forward(x: Array) -> Any:
    if x.dtype != "float32" or not same_layout(x):
        return NotImplemented
    y = empty_like(x)
    share(_relu_forward, flat(x), flat(y), worth=x.size > _WORTH)
    return y


@compiled
def _relu_forward(x, y, thread, threads):
    part = span(x.size, thread, threads)
    x, y = x[part], y[part]
    for i in range(x.size):
        y[i] = np.float32(0) if x[i] <= 0 else x[i]


KERNELS = {"relu_forward": relu_forward}
