"""Attention of several heads, each by itself: products by BLAS, and between them the softmax.

A block of queries is taken at a time, so that its scores stay in the cache. Arrays are read
where they lie: the heads of a projection need not be taken apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd_numba.blas import sgemm
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.softmax import rows_at_a_time, softmax, softmax_gradient
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 19  # products of queries and keys
_SCORES = 1 << 16  # of a block of queries
_FLOAT = np.int64(4)  # bytes

_ZERO, _ONE = np.float32(0), np.float32(1)


def attention_forward(q: Array, k: Array, v: Array, *, scale: float) -> Any:
    if not _fit(q, k, v) or not is_positive(scale):
        return NotImplemented
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    y = _laid_like(q, v.shape[3])
    probabilities = empty((batch, heads, queries, keys))
    arrays = *map(_in_rows, (q, k, v)), y
    share(
        _forward, _places(arrays), heads, width, y.shape[3], float(scale),
        probabilities.reshape(-1, queries, keys), worth=probabilities.size * width > _WORTH,
    )  # fmt: skip
    return y, probabilities


def attention_backward(
    dy: Array, q: Array, k: Array, v: Array, probabilities: Array, *, scale: float
) -> Any:
    if not _fit(q, k, v) or not all(map(are_float32, (dy, probabilities))):
        return NotImplemented
    rows, keys, width = q.shape[:3], k.shape[2], q.shape[3]
    if dy.shape != (*rows, v.shape[3]) or probabilities.shape != (*rows, keys):
        return NotImplemented
    if not is_positive(scale):
        return NotImplemented
    gradients = tuple(_laid_like(x, x.shape[3]) for x in (q, k, v))
    arrays = *map(_in_rows, (q, k, v, dy)), *gradients
    share(
        _backward, _places(arrays), q.shape[1], width, v.shape[3], float(scale),
        np.ascontiguousarray(probabilities).reshape(-1, rows[2], keys),
        worth=probabilities.size * width > _WORTH,
    )  # fmt: skip
    return gradients


def _fit(q: Any, k: Any, v: Any) -> bool:
    return (
        all(map(are_float32, (q, k, v)))
        and q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2]
    )


def _laid_like(x: Array, width: int) -> Array:
    """Return room for rows of ``width`` for those of x; the heads within the rows if x's are."""
    batch, heads, rows = x.shape[:3]
    if x.strides[1] < x.strides[2]:
        return empty((batch, rows, heads, width)).swapaxes(1, 2)
    return empty((batch, heads, rows, width))


def _in_rows(x: Array) -> Array:
    """Return x with rows as BLAS takes them: one piece each, and after one another."""
    pitch, rest = divmod(x.strides[2], x.itemsize)
    one_piece = x.strides[3] == x.itemsize and pitch >= x.shape[3] and not rest
    return x if one_piece else np.ascontiguousarray(x)


def _places(arrays: tuple[Array, ...]) -> NDArray[np.int64]:
    """Return where each array begins, and from batch to batch, head to head, row to row."""
    return np.array(
        [
            # NumPy may state anything as the distance of a single row.
            (x.ctypes.data, *x.strides[:2], x.strides[2] if x.shape[2] > 1 else 4 * x.shape[3])
            for x in arrays
        ],
        np.int64,
    )


@device(inline=True)
def _head(places, array, unit, heads):
    """Return the address of a head, and its rows' distance in entries."""
    n = unit // heads
    h = unit - n * heads
    place = places[array]
    return place[0] + n * place[1] + h * place[2], place[3] // _FLOAT


@compiled
def _forward(places, heads, width, value_width, scale, probabilities, thread, threads):
    """Write P = softmax(scale · q kᵀ) of each head into ``probabilities`` (heads, M, N), y = P v.

    The places are those of q, k, v and y.
    """
    _, queries, keys = probabilities.shape
    most = min(queries, max(1, _SCORES // keys))
    scores = np.empty(most * keys, np.float32)
    step = rows_at_a_time(keys)
    part = span(probabilities.shape[0], thread, threads)
    for unit in range(part.start, part.stop):
        q, q_row = _head(places, 0, unit, heads)
        k, k_row = _head(places, 1, unit, heads)
        v, v_row = _head(places, 2, unit, heads)
        y, y_row = _head(places, 3, unit, heads)
        for first in range(0, queries, most):
            rows = min(most, queries - first)
            sgemm(
                False, True, rows, keys, width, _ONE, q + first * q_row * _FLOAT, q_row, k, k_row,
                _ZERO, scores.ctypes.data, keys,
            )  # fmt: skip
            p = probabilities[unit, first : first + rows].reshape(-1)
            for row in range(0, rows, step):
                block = slice(row * keys, min(row + step, rows) * keys)
                softmax(scores[block], p[block], keys, np.float32(scale))
            sgemm(
                False, False, rows, value_width, keys, _ONE, p.ctypes.data, keys, v, v_row,
                _ZERO, y + first * y_row * _FLOAT, y_row,
            )  # fmt: skip


@compiled
def _backward(places, heads, width, value_width, scale, probabilities, thread, threads):
    """Write dv = Pᵀ dy, dq = dS k and dk = dSᵀ q, of dS = scale · P (dP − Σ dP P), dP = dy vᵀ.

    The places are those of q, k, v, dy, dq, dk and dv.
    """
    _, queries, keys = probabilities.shape
    most = min(queries, max(1, _SCORES // keys))
    dp, ds = np.empty(most * keys, np.float32), np.empty(most * keys, np.float32)
    part = span(probabilities.shape[0], thread, threads)
    for unit in range(part.start, part.stop):
        q, q_row = _head(places, 0, unit, heads)
        k, k_row = _head(places, 1, unit, heads)
        v, v_row = _head(places, 2, unit, heads)
        dy, dy_row = _head(places, 3, unit, heads)
        dq, dq_row = _head(places, 4, unit, heads)
        dk, dk_row = _head(places, 5, unit, heads)
        dv, dv_row = _head(places, 6, unit, heads)
        for first in range(0, queries, most):
            rows = min(most, queries - first)
            before = _ONE if first else _ZERO
            p = probabilities[unit, first : first + rows].reshape(-1)
            dy_block, q_block = dy + first * dy_row * _FLOAT, q + first * q_row * _FLOAT
            sgemm(
                True, False, keys, value_width, rows, _ONE, p.ctypes.data, keys, dy_block, dy_row,
                before, dv, dv_row,
            )  # fmt: skip
            sgemm(
                False, True, rows, keys, value_width, _ONE, dy_block, dy_row, v, v_row,
                _ZERO, dp.ctypes.data, keys,
            )  # fmt: skip
            for row in range(rows):
                at = slice(row * keys, (row + 1) * keys)
                softmax_gradient(dp[at], p[at], np.float32(scale), ds[at])
            sgemm(
                False, False, rows, width, keys, _ONE, ds.ctypes.data, keys, k, k_row,
                _ZERO, dq + first * dq_row * _FLOAT, dq_row,
            )  # fmt: skip
            sgemm(
                True, False, keys, width, rows, _ONE, ds.ctypes.data, keys, q_block, q_row,
                before, dk, dk_row,
            )  # fmt: skip


KERNELS = {"attention_forward": attention_forward, "attention_backward": attention_backward}
