"""The distillation loss of labels and a teacher, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.losses.reduction import divisor
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.operands import are_float32, cotangent, is_number, is_positive
from refkd_numba.reduction import (
    expected_difference,
    flat_rows,
    room_for_sums,
)
from refkd_numba.softmax import both_softmaxes, rows_at_a_time, work_space
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise

__all__ = ["KERNELS", "kd_gradient_rows", "kd_rows"]

_WORTH = 1 << 15
_ZERO, _ONE = np.float32(0), np.float32(1)
_NO_LABELS = np.empty(0, np.int64)
_REDUCTIONS = ("batchmean", "mean", "sum")


def softmax_kd_forward(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array | None,
    *,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str = "batchmean",
) -> Any:
    arrays = (student_logits, teacher_logits)
    indices = _kd_labels(arrays, labels, temperature, hard_weight, soft_weight, reduction)
    if indices is None:
        return NotImplemented
    batch, classes = student_logits.shape
    q, s, t = (empty(student_logits.shape) for _ in range(3))
    sums = room_for_sums(q.size, _WORTH, 3)
    share(
        _kd, *map(flat_rows, arrays), indices, classes, 1 / float(temperature),
        *map(flat_rows, (q, s, t)), sums, worth=len(sums) > 1,
    )  # fmt: skip
    hard_sum, soft_sum, misfits = (sums[0] if len(sums) == 1 else sums.sum(axis=0)).tolist()
    if misfits:
        return NotImplemented  # the reference counts from the end, or raises
    soft = np.float32(soft_sum / divisor(reduction, examples=batch, elements=q.size))
    hard = soft * 0 if labels is None else np.float32(hard_sum / batch)
    return float(hard_weight) * hard + float(soft_weight) * soft, hard, soft, q, s, t


def softmax_kd_backward(
    dloss: Array | float,
    q: Array,
    s: Array,
    t: Array,
    labels: Array | None,
    *,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str = "batchmean",
) -> Any:
    arrays = (q, s, t)
    indices = _kd_labels(arrays, labels, temperature, hard_weight, soft_weight, reduction)
    dloss = cotangent(dloss)
    if indices is None or dloss is None:
        return NotImplemented
    batch, classes = q.shape
    scale = float(temperature) * divisor(reduction, examples=batch, elements=q.size)
    dz = empty(q.shape)
    share(
        _kd_gradient, *map(flat_rows, arrays), indices, classes, float(hard_weight) / batch,
        float(soft_weight) / scale, dloss, flat_rows(dz), worth=q.size > _WORTH,
    )  # fmt: skip
    return dz


def _kd_labels(
    arrays: tuple[Array, ...],
    labels: Array | None,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str,
) -> NDArray[Any] | None:
    """Return the labels, none where there are none; None where the reference must judge."""
    if not (
        are_float32(*arrays)
        and arrays[0].ndim == 2
        and is_positive(temperature)
        and is_number(hard_weight)
        and is_number(soft_weight)
        and reduction in _REDUCTIONS
    ):
        return None
    if labels is None:
        return _NO_LABELS if hard_weight == 0 else None
    if type(labels) is not np.ndarray or labels.dtype.kind not in "iu":
        return None
    if labels.shape != arrays[0].shape[:1]:
        return None
    return np.ascontiguousarray(labels, np.int64)


@compiled
def _kd(z, v, labels, classes, scale, q, s, t, sums, thread, threads):
    """Write q, s and t of softmax_kd_forward; a row of ``sums`` is a part's from kd_rows."""
    parts, work = span(len(sums), thread, threads), work_space(classes)
    for part in range(parts.start, parts.stop):
        rows = span(z.size // classes, part, len(sums))
        block = slice(rows.start * classes, rows.stop * classes)
        sums[part, 0], sums[part, 1], sums[part, 2] = kd_rows(
            z[block], v[block], labels[rows], classes, scale, q[block], s[block], t[block], work
        )


@compiled
def _kd_gradient(q, s, t, labels, classes, hard, soft, dloss, dz, thread, threads):
    """Write dz = dloss · (hard · (q − y) + soft · (s − t))."""
    rows = span(q.size // classes, thread, threads)
    block = slice(rows.start * classes, rows.stop * classes)
    kd_gradient_rows(
        q[block], s[block], t[block], labels[rows], classes, hard, soft, dloss, dz[block]
    )


@device(counted=False)
def kd_rows(z, v, labels, classes, scale, q, s, t, work):
    """Write q = softmax(z), s = softmax(scale · z) and t = softmax(scale · v) of all rows.

    Returns Σ −log q[label], without labels 0, Σ t (log t − log s), and how many labels are
    no class. ``work`` is from :func:`~refkd_numba.softmax.work_space`.
    """
    step = rows_at_a_time(classes)
    rows = z.size // classes
    scale = np.float32(scale)
    hard, soft, misfits = 0.0, 0.0, 0
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = slice(first * classes, last * classes)
        size = block.stop - block.start
        log_s, log_t = work[:size], work[size : 2 * size]
        both_softmaxes(z[block], log_s, q[block], classes, _ONE, work)
        if labels.size:
            for row in range(first, last):
                if 0 <= labels[row] < classes:
                    hard -= log_s[(row - first) * classes + labels[row]]  # log q, at this point
                else:
                    misfits += 1
        both_softmaxes(z[block], log_s, s[block], classes, scale, work)
        both_softmaxes(v[block], log_t, t[block], classes, scale, work)
        soft += expected_difference(t[block], log_t, log_s)
    return hard, soft, misfits


@device(counted=False)
def kd_gradient_rows(q, s, t, labels, classes, hard, soft, dloss, dz):
    """Write dloss · (hard · (q − y) + soft · (s − t)) of all rows, y one-hot labels."""
    hard, soft, dloss = np.float32(hard), np.float32(soft), np.float32(dloss)
    if labels.size == 0:
        for i in range(dz.size):
            dz[i] = _soft_slope(s[i], t[i], soft, dloss)
        return
    for i in range(dz.size):
        dz[i] = _kd_slope(q[i], _ZERO, s[i], t[i], hard, soft, dloss)
    for row in range(labels.size):
        if 0 <= labels[row] < classes:
            i = row * classes + labels[row]
            dz[i] = _kd_slope(q[i], _ONE, s[i], t[i], hard, soft, dloss)


@elementwise
def _soft_slope(s, t, soft, dloss):
    return (s - t) * soft * dloss


@elementwise
def _kd_slope(q, y, s, t, hard, soft, dloss):
    return ((s - t) * soft + (q - y) * hard) * dloss


KERNELS = {
    "softmax_kd_backward": softmax_kd_backward,
    "softmax_kd_forward": softmax_kd_forward,
}
