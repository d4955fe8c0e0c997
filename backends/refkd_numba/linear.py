"""The linear map: each thread packs what it multiplies by into panels, a block at a time.

With few rows the weight is read as it lies, once, and the rows are packed; with many it is
the weight that is packed. An entry is the same sum either way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.threads import worker_threads
from refkd_numba.blas import sgemm
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.layout import rows
from refkd_numba.microkernel import COLUMNS
from refkd_numba.products import (
    FLOAT,
    NONE,
    ONCE,
    PANEL,
    STEPS,
    address,
    copy_into_panels,
    floats,
    panels_for,
    part,
    product,
    transpose,
    transpose_into_panels,
)
from refkd_numba.team import share

__all__ = ["KERNELS"]

_WORTH = 3 << 20  # products; below it the work is not worth a second thread
_FEW_PANELS, _MANY_PANELS = 8, 16  # packed at a time: they stay in the level-2 cache
_BLOCK = STEPS * PANEL  # floats of a packed panel
_SHORT = 128  # examples; BLAS is quicker over more, and slower over fewer
_ZERO, _ONE = np.float32(0), np.float32(1)
_FLOAT32 = np.dtype(np.float32)
_NO_BIAS = np.empty(0, np.float32)


def linear_forward(x: Array, weight: Array, bias: Array | None) -> Any:
    if not _fit(x, weight) or (
        bias is not None and not (_is_float32(bias) and bias.shape == weight.shape[:1])
    ):
        return NotImplemented
    outputs, inputs = weight.shape
    examples = math.prod(x.shape[:-1])
    y = empty((*x.shape[:-1], outputs))
    given = _NO_BIAS if bias is None else np.ascontiguousarray(bias)
    threads = _threads(examples, inputs, outputs)
    few = _are_few(examples, inputs, outputs)
    share(
        _forward_few if few else _forward_many,
        rows(x), np.ascontiguousarray(weight), given, y.reshape(examples, outputs),
        empty((threads, int(_BLOCK) * (_FEW_PANELS if few else _MANY_PANELS))),
        empty((threads, COLUMNS * (_FEW_PANELS * outputs if few else examples))),
        threads=threads,
    )  # fmt: skip
    return y


def linear_backward(dy: Array, x: Array, weight: Array, *, need_dx: bool = True) -> Any:
    if not (_fit(x, weight) and _is_float32(dy) and dy.shape == (*x.shape[:-1], weight.shape[0])):
        return NotImplemented
    outputs, inputs = weight.shape
    gradient, examples = rows(dy), rows(x)
    count = len(examples)
    dweight, dbias = empty((outputs, inputs)), empty((outputs,))
    dx = empty(x.shape if need_dx else (0,))
    threads = _threads(count, inputs, outputs)
    few = _are_few(count, inputs, outputs)
    share(
        _backward,
        gradient, examples, np.ascontiguousarray(weight),
        dx.reshape(count if need_dx else 0, inputs), dweight, dbias, few,
        empty((threads, int(_BLOCK) * _MANY_PANELS)),
        empty((threads, COLUMNS * max(_FEW_PANELS * inputs, count, outputs))),
        threads=threads,
    )  # fmt: skip
    return dx if need_dx else None, dweight, dbias


def _fit(x: Array, weight: Array) -> bool:
    return (
        _is_float32(x)
        and _is_float32(weight)
        and weight.ndim == 2
        and x.ndim > 0
        and x.shape[-1] == weight.shape[1]
        and x.size > 0
        and weight.size > 0
    )


def _is_float32(array: Array) -> bool:
    return type(array) is np.ndarray and array.dtype == _FLOAT32


def _are_few(examples: int, inputs: int, outputs: int) -> bool:
    """Return whether there is less to pack of the examples than of the weight."""
    return examples * (inputs + outputs) <= inputs * outputs


def _threads(examples: int, inputs: int, outputs: int) -> int:
    return worker_threads() if examples * inputs * outputs > _WORTH else 1


@compiled
def _forward_few(x, weight, bias, y, packed, sums, thread, threads):
    """Write y = x Wᵀ + b; a thread has some of the outputs."""
    count, inputs = x.shape
    outputs = weight.shape[0]
    begin, end = part(outputs, thread, threads)
    panels, c = address(packed[thread]), address(sums[thread])
    rows_at_a_time = _FEW_PANELS * PANEL
    for n in range(0, count, rows_at_a_time):
        height = min(rows_at_a_time, count - n)
        product_by_transposed(
            end - begin, height, inputs, address(weight[begin:]), inputs * FLOAT, FLOAT,
            address(x[n:]), inputs * FLOAT, panels, c,
        )  # fmt: skip
        transpose_from_panels(c, end - begin, height, bias, begin, y, n)


@compiled
def _forward_many(x, weight, bias, y, packed, tails, thread, threads):
    """Write y = x Wᵀ + b; a thread has some of the rows."""
    count, inputs = x.shape
    outputs = weight.shape[0]
    begin, end = part(count, thread, threads)
    panels, tail = address(packed[thread]), address(tails[thread])
    for o in range(0, outputs, _MANY_PANELS * PANEL):
        width = min(_MANY_PANELS * PANEL, outputs - o)
        for k in range(0, inputs, STEPS):
            steps = min(STEPS, inputs - k)
            transpose_into_panels(
                address(weight[o:]), inputs * FLOAT, width, k, k + steps, panels, _BLOCK * FLOAT
            )
            product_into_rows(
                end - begin, width, steps, address(x[begin:]) + k * FLOAT, inputs * FLOAT,
                FLOAT, panels, address(y[begin:, o:]), outputs * FLOAT, tail, k,
            )  # fmt: skip
        copy_tail(tail, y[begin:end, o : o + width])
    if bias.size:
        add_bias(y[begin:end], bias)


@compiled
def _backward(dy, x, weight, dx, dweight, dbias, few, packed, sums, thread, threads):
    """Write dx = dy W if it is not empty, dW = dyᵀ x, db = Σ_n dy; a thread has a part of each."""
    count, outputs = dy.shape
    inputs = x.shape[1]
    panels, c = address(packed[thread]), address(sums[thread])
    if dx.size and few:
        begin, end = part(inputs, thread, threads)
        rows_at_a_time = _FEW_PANELS * PANEL
        for n in range(0, count, rows_at_a_time):
            height = min(rows_at_a_time, count - n)
            product_by_transposed(
                end - begin, height, outputs, address(weight) + begin * FLOAT, FLOAT,
                inputs * FLOAT, address(dy[n:]), outputs * FLOAT, panels, c,
            )  # fmt: skip
            transpose_from_panels(c, end - begin, height, _NO_BIAS, begin, dx, n)
    elif dx.size:
        begin, end = part(count, thread, threads)
        _product_by_rows(
            end - begin, outputs, address(dy[begin:]), outputs * FLOAT, FLOAT, weight, panels,
            dx[begin:end], c,
        )  # fmt: skip
    begin, end = part(outputs, thread, threads)
    if count > _SHORT:
        sgemm(
            True, False, end - begin, inputs, count, _ONE, address(dy) + begin * FLOAT,
            outputs, address(x), inputs, _ZERO, address(dweight[begin:]), inputs,
        )  # fmt: skip
    else:
        _product_by_rows(
            end - begin, count, address(dy) + begin * FLOAT, FLOAT, outputs * FLOAT, x, panels,
            dweight[begin:end], c,
        )  # fmt: skip
    _sum_rows(dy[:, begin:end], dbias[begin:end], floats(c, end - begin))


@device
def product_by_transposed(rows, columns, steps, a, a_row, a_step, b, b_row, packed, c):
    """Write C[p, m, :] = Σ_t A[m, t] B[column, t] for a few panels of columns."""
    panels = panels_for(columns)
    for k in range(0, steps, STEPS):
        run = min(STEPS, steps - k)
        transpose_into_panels(b, b_row, columns, k, k + run, packed, _BLOCK * FLOAT)
        product(
            rows, panels, run, a + k * a_step, a_row, a_step, packed, _BLOCK * FLOAT,
            PANEL * FLOAT, c, PANEL * FLOAT, rows * PANEL * FLOAT, k,
        )  # fmt: skip


@device
def transpose_from_panels(panels, height, count, bias, begin, y, n):
    """Write y[n + i, begin + m] = panels[i // PANEL, m, i % PANEL] + bias[begin + m]."""
    width = y.shape[1] * FLOAT
    for p in range(panels_for(count)):
        transpose(
            panels + p * height * PANEL * FLOAT, PANEL * FLOAT, height,
            min(PANEL, count - p * PANEL),
            address(y) + (n + p * PANEL) * width + begin * FLOAT, width,
        )  # fmt: skip
    if bias.size:
        add_bias(y[n : n + count, begin : begin + height], bias[begin : begin + height])


@device
def add_bias(y, bias):
    for n in range(y.shape[0]):
        row = y[n]
        for o in range(bias.size):
            row[o] += bias[o]


@device
def _product_by_rows(rows, steps, a, a_row, a_step, b, packed, c, tail):
    """Write C[m, :] = Σ_t A[m, t] B[t, :], where b is (steps, columns)."""
    columns = b.shape[1]
    for i in range(0, columns, _MANY_PANELS * PANEL):
        width = min(_MANY_PANELS * PANEL, columns - i)
        for k in range(0, steps, STEPS):
            run = min(STEPS, steps - k)
            copy_into_panels(
                address(b[k:, i:]), columns * FLOAT, run, width, packed, _BLOCK * FLOAT
            )
            product_into_rows(
                rows, width, run, a + k * a_step, a_row, a_step, packed, address(c[:, i:]),
                columns * FLOAT, tail, k,
            )  # fmt: skip
        copy_tail(tail, c[:, i : i + width])


@device
def product_into_rows(rows, columns, steps, a, a_row, a_step, packed, c, c_row, tail, before):
    """Add C[m, :] (+)= Σ_t A[m, t] B[t, :]; the columns of a panel that is not full go to tail."""
    panels = columns // PANEL
    product(
        rows, panels, steps, a, a_row, a_step, packed, _BLOCK * FLOAT, PANEL * FLOAT,
        c, c_row, PANEL * FLOAT, before,
    )  # fmt: skip
    if columns > panels * PANEL:
        product(
            rows, ONCE, steps, a, a_row, a_step, packed + panels * _BLOCK * FLOAT, NONE,
            PANEL * FLOAT, tail, PANEL * FLOAT, NONE, before,
        )  # fmt: skip


@device
def copy_tail(tail, c):
    """Write the columns of the last panel, where it is not full, into their place."""
    first = c.shape[1] // PANEL * PANEL
    if first < c.shape[1]:
        for m in range(c.shape[0]):
            source, target = floats(tail + m * PANEL * FLOAT, PANEL), c[m, first:]
            for lane in range(target.size):
                target[lane] = source[lane]


@device
def _sum_rows(x, total, subtotal):
    """Write Σ_n x[n, :]; of many rows the sums of some."""
    total[:] = 0
    for n in range(0, x.shape[0], STEPS):
        subtotal[:] = 0
        for row in range(n, min(n + STEPS, x.shape[0])):
            for o in range(total.size):
                subtotal[o] += x[row, o]
        for o in range(total.size):
            total[o] += subtotal[o]


KERNELS: dict[str, Any] = {"linear_backward": linear_backward, "linear_forward": linear_forward}
