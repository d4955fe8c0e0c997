"""Softmax and log-softmax, rows by rows that fit the cache. The losses share the parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.team import share, span
from refkd_numba.vmath import dot, elementwise, exp, exp_nonpositive, largest, log, total

__all__ = [
    "KERNELS",
    "both_softmaxes",
    "exponentials",
    "rows_at_a_time",
    "softmax",
    "softmax_gradient",
    "work_space",
]

_BLOCK = 2048  # entries: several arrays of it fit the level-1 cache
_WORTH = 1 << 16
_ONE = np.float32(1)


def softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along(_softmax_forward, (x,), axis, temperature)


def softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along(_softmax_backward, (dy, y), axis, temperature)


def log_softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along(_log_softmax_forward, (x,), axis, temperature)


def log_softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Any:
    return _along(_log_softmax_backward, (dy, y), axis, temperature)


def _along(kernel: Any, arrays: tuple[Array, ...], axis: int, temperature: float) -> Any:
    if not (are_float32(*arrays) and is_positive(temperature) and type(axis) is int):
        return NotImplemented
    last = arrays[0].ndim - 1
    if not -last - 1 <= axis <= last:
        return NotImplemented
    elsewhere = axis not in (-1, last)
    if elsewhere:
        arrays = tuple(np.moveaxis(array, axis, -1) for array in arrays)
    y = empty(arrays[0].shape)
    rows = [np.ascontiguousarray(array).ravel() for array in arrays]
    share(kernel, *rows, y.shape[-1], 1 / float(temperature), y.ravel(), worth=y.size > _WORTH)
    return np.moveaxis(y, -1, axis) if elsewhere else y


@compiled(counted=False)
def _softmax_forward(x, classes, scale, y, thread, threads):
    """Write y = softmax(scale · x)."""
    rows, step = span(x.size // classes, thread, threads), rows_at_a_time(classes)
    scale = np.float32(scale)
    for first in range(rows.start, rows.stop, step):
        block = slice(first * classes, min(first + step, rows.stop) * classes)
        softmax(x[block], y[block], classes, scale)


@compiled(counted=False)
def _softmax_backward(dy, y, classes, scale, dx, thread, threads):
    """Write dx = y (dy − Σ dy y) · scale."""
    rows = span(y.size // classes, thread, threads)
    scale = np.float32(scale)
    for row in range(rows.start, rows.stop):
        at = slice(row * classes, (row + 1) * classes)
        softmax_gradient(dy[at], y[at], scale, dx[at])


@compiled
def _log_softmax_forward(x, classes, scale, y, thread, threads):
    """Write y = scale · x − log Σ exp(scale · x)."""
    rows = span(x.size // classes, thread, threads)
    block = slice(rows.start * classes, rows.stop * classes)
    _log_softmax_rows(x[block], classes, np.float32(scale), y[block], work_space(classes))


@compiled(counted=False)
def _log_softmax_backward(dy, y, classes, scale, dx, thread, threads):
    """Write dx = (dy − exp(y) Σ dy) · scale."""
    rows, step = span(y.size // classes, thread, threads), rows_at_a_time(classes)
    scale = np.float32(scale)
    for begin in range(rows.start, rows.stop, step):
        end = min(begin + step, rows.stop)
        block = slice(begin * classes, end * classes)
        exponentials(y[block], dx[block])
        for row in range(begin, end):
            at = slice(row * classes, (row + 1) * classes)
            a, q = dy[at], dx[at]
            s = np.float32(total(a))
            for i in range(a.size):
                q[i] = _log_softmax_slope(a[i], q[i], s, scale)


@device(counted=False)
def _log_softmax_rows(x, classes, scale, y, work):
    step = rows_at_a_time(classes) * classes
    for first in range(0, x.size, step):
        block = slice(first, min(first + step, x.size))
        q = work[: block.stop - block.start]
        both_softmaxes(x[block], y[block], q, classes, scale, work)


@device(inline=True)
def rows_at_a_time(classes):
    """Return how many rows make a block. In short rows alone a loop would not fill vectors."""
    return max(1, _BLOCK // classes)


@device(counted=False)
def softmax(x, y, classes, scale):
    """Write softmax(scale · x) of each row of a block."""
    shift(x, y, classes, scale)
    for i in range(y.size):  # in place; two names of one array would not vectorise
        y[i] = exp_nonpositive(y[i])
    for first in range(0, y.size, classes):
        row = y[first : first + classes]
        factor = np.float32(1 / total(row))
        for i in range(row.size):
            row[i] *= factor


@device(counted=False)
def both_softmaxes(x, log_q, q, classes, scale, work):
    """Write log softmax(scale · x) and softmax(scale · x) of each row of a block."""
    shift(x, log_q, classes, scale)
    for i in range(q.size):
        q[i] = exp_nonpositive(log_q[i])
    rows = x.size // classes
    end = work.size - rows
    logs, factors = work[end - rows : end], work[end:]
    for row in range(rows):
        factors[row] = total(q[row * classes : (row + 1) * classes])
    for row in range(rows):  # a loop of its own, which runs in whole vectors
        logs[row] = log(factors[row])
        factors[row] = _ONE / factors[row]
    for row in range(rows):
        log_sum, factor = logs[row], factors[row]
        at = slice(row * classes, (row + 1) * classes)
        log_row, q_row = log_q[at], q[at]
        for i in range(log_row.size):
            log_row[i] -= log_sum
            q_row[i] *= factor


@device(inline=True)
def work_space(classes):
    """Return room for two blocks of rows, and for what both_softmaxes keeps of each row."""
    return np.empty(2 * rows_at_a_time(classes) * (classes + 1), np.float32)


@device(counted=False)
def softmax_gradient(dy, y, scale, dx):
    """Write y (dy − Σ dy y) · scale, of one row."""
    s = np.float32(dot(dy, y))
    for i in range(y.size):
        dx[i] = _softmax_slope(dy[i], y[i], s, scale)


@device(counted=False)
def shift(x, z, classes, scale):
    """Write (x − its row's maximum) · scale."""
    for first in range(0, x.size, classes):
        row, out = x[first : first + classes], z[first : first + classes]
        top = largest(row)
        for i in range(row.size):
            out[i] = shifted(row[i], top, scale)


@device(counted=False)
def exponentials(x, y):
    """Write exp(x)."""
    for i in range(x.size):
        y[i] = exp(x[i])


@elementwise
def shifted(x, top, scale):
    """Return (x − top) · scale, in this order: x · scale − top · scale is another number."""
    return (x - top) * scale


@elementwise
def _softmax_slope(dy, y, s, scale):
    return y * (dy - s) * scale


@elementwise
def _log_softmax_slope(dy, q, s, scale):
    return (dy - q * s) * scale


KERNELS = {
    "log_softmax_backward": log_softmax_backward,
    "log_softmax_forward": log_softmax_forward,
    "softmax_backward": softmax_backward,
    "softmax_forward": softmax_forward,
}
