"""What the losses share: rows of logits, and sums over a batch in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd_numba.buffers import empty
from refkd_numba.compile import device
from refkd_numba.operands import are_float32, cotangent
from refkd_numba.vmath import elementwise

__all__ = [
    "expected_difference",
    "flat_rows",
    "reduced",
    "room_for_sums",
    "row_at",
    "row_scale",
    "scales",
]

_PARTS = 32
_SUMMANDS = 512  # in float32
_ZERO, _ONE = np.float32(0), np.float32(1)
_NONE = np.empty(0, np.float32)


def flat_rows(x: NDArray[Any]) -> NDArray[Any]:
    """Return x in C order as one axis, a view where its memory allows."""
    return np.ascontiguousarray(x).ravel()


def room_for_sums(size: int, worth: int, columns: int = 1) -> NDArray[Any]:
    """Return room for the sums of all parts of a batch: one where it is small."""
    return empty((1 if size <= worth else _PARTS, columns), np.float64)


def reduced(sums: NDArray[Any], divisor: int) -> Any:
    """Return the sum of all parts, divided, as float32."""
    return np.float32(sums[0, 0] if len(sums) == 1 else sums.sum()) / divisor


def scales(
    dloss: Array | float, logits: Array, reduction: str, divisor: float
) -> tuple[float, NDArray[Any]] | None:
    """Return what row_scale takes for dloss/divisor; None where the reference must judge."""
    if reduction == "none":
        fits = are_float32(dloss) and dloss.shape == logits.shape[:-1]
        return (1 / divisor, flat_rows(dloss)) if fits else None
    number = cotangent(dloss)
    return None if number is None else (number / divisor, _NONE)


@device(inline=True, counted=False)
def row_at(row, classes):
    """Return where a row lies in a flat array."""
    return slice(row * classes, (row + 1) * classes)


@device(inline=True, counted=False)
def row_scale(scale, row_scales, row):
    """Return ``scale``, times the row's own where there are any."""
    return np.float32(scale) * (row_scales[row] if row_scales.size else _ONE)


@device(counted=False)
def expected_difference(p, x, y):
    """Return Σ p (x − y)."""
    result = 0.0
    for first in range(0, p.size, _SUMMANDS):
        last = min(first + _SUMMANDS, p.size)
        a, b, c = p[first:last], x[first:last], y[first:last]
        subtotal = _ZERO
        for i in range(a.size):
            subtotal += _times_difference(a[i], b[i], c[i])
        result += subtotal
    return result


@elementwise
def _times_difference(p, x, y):
    return p * (x - y)
