"""Sums of parts and of columns, always in one order."""

from __future__ import annotations

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device

__all__ = ["add_bias", "column_sums", "sum_parts"]

_ROWS_OF_PART = 256  # at least: what a block is worth


def sum_parts(parts: Array, out: Array, bias: Array | None = None) -> None:
    """Write Σ_p parts[p] into ``out``, plus ``bias`` (columns,) along its last axis."""
    grid, block = device.spread(out.size)
    columns = 1 if bias is None else bias.size
    sizes = [np.int64(out.size), np.int32(columns), np.int32(parts.shape[0])]
    device.launch("sums", "sum_parts", grid, block, [parts, bias, out, *sizes])


def column_sums(x: Array) -> Array:
    """Return Σ_i x[i, :] of a C-ordered x (rows, columns)."""
    rows, columns = x.shape
    blocks = -(-columns // 32)
    most = max(1, 4 * device.multiprocessors() // blocks)
    count = max(1, min(rows // _ROWS_OF_PART, most))
    parts = device.empty((count, columns))
    sizes = [np.int32(rows), np.int32(columns)]
    device.launch("sums", "column_sums", (blocks, count), (32, 8), [x, parts, *sizes])
    if count == 1:
        return parts.reshape(columns)
    total = device.empty((columns,))
    sum_parts(parts, total)
    return total


def add_bias(y: Array, bias: Array) -> None:
    """Add ``bias`` (columns,) to every row of a C-ordered y (rows, columns)."""
    grid, block = device.spread(y.size, each=4)
    arguments = [y, bias, np.int64(y.size), np.int32(bias.size)]
    device.launch("sums", "add_bias", grid, block, arguments)
