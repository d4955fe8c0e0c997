"""The same values in other memory layouts, to show that a function takes any strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYOUTS"]


def _transposed(x: NDArray[Any]) -> NDArray[Any]:
    return x.copy(order="F")


def _reversed(x: NDArray[Any]) -> NDArray[Any]:
    backwards: Any = (*(slice(None, None, -1) for _ in x.shape), ...)
    return np.asarray(x[backwards].copy(order="C")[backwards])


def _strided(x: NDArray[Any]) -> NDArray[Any]:
    # What lies between the entries must not be read: NaN, or -1.
    every_other: Any = (*(slice(None, None, 2) for _ in x.shape), ...)
    filler = np.nan if x.dtype.kind in "fc" else -1
    spread = np.full([2 * n for n in x.shape], filler).astype(x.dtype)
    spread[every_other] = x
    return np.asarray(spread[every_other])


def _read_only(x: NDArray[Any]) -> NDArray[Any]:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "transposed": _transposed,
    "reversed": _reversed,
    "strided": _strided,
    "read-only": _read_only,
}
"""Functions from an array to an equal one: Fortran order, negative strides, gaps, read-only."""
