"""What overrides ask of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd_cupy import device

__all__ = ["are_float32", "can_be_counted", "is_number", "is_positive"]

_FLOAT32 = np.dtype(np.float32)
_LIMIT = 1 << 31


def are_float32(first: Any, *others: Any) -> bool:
    """Return whether all are float32 arrays of one shape, with something in them."""
    if not device.is_array(first) or first.dtype != _FLOAT32 or not first.size:
        return False
    for other in others:
        if not device.is_array(other) or other.dtype != _FLOAT32 or other.shape != first.shape:
            return False
    return True


def can_be_counted(*steps: int) -> bool:
    """Return whether so many steps, none negative, lead no further than a 32-bit number counts."""
    return sum(steps) < _LIMIT


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a real number, of Python or NumPy."""
    return isinstance(value, (float, int, np.floating, np.integer))


def is_positive(value: Any) -> bool:
    """Return whether ``value`` is a number above zero that float32 holds, with its reciprocal."""
    return is_number(value) and not isinstance(value, bool) and 1e-30 < float(value) < 1e30
