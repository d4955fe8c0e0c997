"""What pointwise overrides ask of their arrays, and how they lay them out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd_numba.buffers import empty_like
from refkd_numba.layout import is_dense, same_layout

__all__ = ["aligned", "are_float32", "cotangent", "is_number", "is_positive"]

_FLOAT32 = np.dtype(np.float32)


def are_float32(first: Any, *others: Any) -> bool:
    """Return whether all are float32 arrays of one shape, with something in them."""
    if type(first) is not np.ndarray or first.dtype != _FLOAT32 or not first.size:
        return False
    for other in others:
        if type(other) is not np.ndarray or other.dtype != _FLOAT32 or other.shape != first.shape:
            return False
    return True


def aligned(first: NDArray[Any], *others: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return dense arrays of the same values and one layout, the first's where it is dense."""
    arrays = (first, *others)
    for array in arrays:
        if not array.flags.c_contiguous:
            break
    else:
        return arrays
    if same_layout(*arrays):
        return arrays
    first = first if is_dense(first) else _copied(first, first)
    return (first, *(a if same_layout(first, a) else _copied(a, first) for a in others))


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a real number, of Python or NumPy."""
    return isinstance(value, (float, int, np.floating, np.integer))


def is_positive(value: Any) -> bool:
    """Return whether ``value`` is a number above zero that float32 holds, with its reciprocal."""
    return is_number(value) and not isinstance(value, bool) and 1e-30 < float(value) < 1e30


def cotangent(dloss: Any) -> float | None:
    """Return a cotangent of a float32 scalar as a number; None where the reference must judge."""
    if isinstance(dloss, (float, int)):
        return float(dloss)
    fits = isinstance(dloss, (np.ndarray, np.float32)) and dloss.dtype == _FLOAT32
    return float(dloss) if fits and dloss.shape == () else None


def _copied(x: NDArray[Any], layout: NDArray[Any]) -> NDArray[Any]:
    copy = empty_like(layout, x.dtype)
    copy[...] = x
    return copy
