"""Sums and differences that norms and linear maps share. No kernel is defined here.

Arrays (N, C, ...) are summed over their spatial axes first, then over the batch: partial
sums stay short, so that float32 stays accurate in any memory layout, channels-last included.
"""

from __future__ import annotations

import math

from refkd.dispatch import Array, namespace
from refkd.errors import ShapeError

__all__ = [
    "batch_sum",
    "centred",
    "check_fits",
    "over_space",
    "row_sum",
    "spatial_dot",
    "spatial_sum",
]

_BLOCK = 64  # rows that are added up by themselves


def spatial_sum(x: Array) -> Array:
    """Sum (N, C, ...) over all axes but the first two: (N, C), a view of x if there is none."""
    # Measured: twice as fast as x.sum, on contiguous and on channels-last arrays.
    axes = list(range(x.ndim))
    return namespace(x).einsum(x, axes, axes[:2])


def spatial_dot(a: Array, b: Array) -> Array:
    """Sum the products of two arrays (N, C, ...) over all axes but the first two: (N, C)."""
    axes = list(range(a.ndim))
    return namespace(a).einsum(a, axes, b, axes, axes[:2])


def batch_sum(parts: Array) -> Array:
    """Sum (N, C) over the batch: (C,)."""
    # NumPy adds the rows of an array one after another, but the entries of a row pairwise.
    return namespace(parts).ascontiguousarray(parts.T).sum(axis=1)


def row_sum(x: Array) -> Array:
    """Sum (..., D) over all axes but the last: (D,)."""
    # NumPy adds rows one after another: blocks of them keep the partial sums short.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if rows.shape[0] <= _BLOCK:
        return rows.sum(axis=0)
    whole = rows.shape[0] // _BLOCK * _BLOCK
    blocks = rows[:whole].reshape(-1, _BLOCK, rows.shape[1]).sum(axis=1)
    return blocks.sum(axis=0) + rows[whole:].sum(axis=0)


def over_space(values: Array, x: Array) -> Array:
    """Give (C,) or (N, C) the trailing axes with which it broadcasts against x (N, C, ...)."""
    return values.reshape(*values.shape, *(1,) * (x.ndim - 2))


def centred(x: Array, mean: Array, *others: Array) -> Array:
    """Return x − mean in x's memory layout and a dtype that holds ``others`` too.

    The buffer is fresh, and large: callers go on in place.
    """
    xp = namespace(x)
    buffer = xp.empty_like(x, dtype=xp.result_type(x, mean, *others))
    return xp.subtract(x, mean, out=buffer)


def check_fits(where: str, x: Array, expected: tuple[int, ...], **arrays: Array | None) -> None:
    """Raise ShapeError unless every array has the shape that x asks for; None is skipped."""
    for name, array in arrays.items():
        if array is not None and tuple(array.shape) != expected:
            raise ShapeError(
                f"{where}: {name} must have shape {expected} to match x {tuple(x.shape)}, "
                f"got {tuple(array.shape)}"
            )
