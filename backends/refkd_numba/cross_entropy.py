"""Softmax cross-entropy, forward and backward, of labels or distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.operands import are_float32, is_number
from refkd_numba.reduction import (
    flat_rows,
    reduced,
    room_for_sums,
    row_at,
    row_scale,
    scales,
)
from refkd_numba.softmax import both_softmaxes, exponentials, rows_at_a_time, work_space
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise, total

__all__ = ["KERNELS", "cross_entropy_gradient_rows", "cross_entropy_rows"]

_WORTH = 1 << 15
_SUMMANDS = 512  # in float32
_ZERO, _ONE = np.float32(0), np.float32(1)
_NO_LABELS, _NONE = np.empty(0, np.int64), np.empty(0, np.float32)
_REDUCTIONS = ("mean", "sum", "none")


def softmax_cross_entropy_forward(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> Any:
    given = _cross_entropy_targets(logits, targets, label_smoothing, smoothing)
    if given is None or reduction not in _REDUCTIONS:
        return NotImplemented
    log_q, losses = empty(logits.shape), empty(logits.shape[:-1])
    sums = room_for_sums(logits.size, _WORTH)
    share(
        _cross_entropy, flat_rows(logits), *given, logits.shape[-1], flat_rows(log_q),
        flat_rows(losses), sums, worth=len(sums) > 1,
    )  # fmt: skip
    if reduction == "none":
        return losses[()], log_q
    return reduced(sums, losses.size if reduction == "mean" else 1), log_q


def softmax_cross_entropy_backward(
    dloss: Array | float,
    log_q: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> Any:
    given = _cross_entropy_targets(log_q, targets, label_smoothing, smoothing)
    if given is None or reduction not in _REDUCTIONS:
        return NotImplemented
    classes = log_q.shape[-1]
    examples = log_q.size // classes if reduction == "mean" else 1
    factors = scales(dloss, log_q, reduction, examples)
    if factors is None:
        return NotImplemented
    dlogits = empty(log_q.shape)
    share(
        _cross_entropy_gradient, flat_rows(log_q), *given, classes, *factors, flat_rows(dlogits),
        worth=log_q.size > _WORTH,
    )  # fmt: skip
    return dlogits


def _cross_entropy_targets(
    logits: Array, targets: Array, label_smoothing: float, smoothing: str
) -> tuple[NDArray[Any], NDArray[Any], float, float] | None:
    """Return labels, or distributions, and the targets of a label's class and of the others."""
    if not (
        are_float32(logits)
        and logits.ndim > 0
        and type(targets) is np.ndarray
        and is_number(label_smoothing)
        and not isinstance(label_smoothing, bool)
        and 0 <= label_smoothing <= 1
        and smoothing in ("uniform", "others")
    ):
        return None
    if targets.dtype.kind == "f":
        served = are_float32(logits, targets) and label_smoothing == 0
        return (_NO_LABELS, flat_rows(targets), 0.0, 0.0) if served else None
    if targets.dtype.kind not in "iu" or targets.shape != logits.shape[:-1]:
        return None
    labels = np.ascontiguousarray(targets, np.int64).reshape(-1)
    if label_smoothing == 0:
        return labels, _NONE, 1.0, 0.0
    classes, smoothed = logits.shape[-1], float(label_smoothing)
    if smoothing == "uniform":
        return labels, _NONE, 1 - smoothed + smoothed / classes, smoothed / classes
    return (labels, _NONE, 1 - smoothed, smoothed / (classes - 1)) if classes > 1 else None


@compiled
def _cross_entropy(
    logits, labels, distributions, on, off, classes, log_q, losses, sums, thread, threads
):
    """Write losses = −Σ t log q; a row of ``sums`` is the sum of a part of them."""
    parts, work = span(len(sums), thread, threads), work_space(classes)
    for part in range(parts.start, parts.stop):
        rows = span(losses.size, part, len(sums))
        block = slice(rows.start * classes, rows.stop * classes)
        sums[part, 0] = cross_entropy_rows(
            logits[block], labels[rows], distributions[block], on, off, classes, log_q[block],
            losses[rows], work,
        )  # fmt: skip


@compiled
def _cross_entropy_gradient(
    log_q, labels, distributions, on, off, classes, scale, row_scales, dz, thread, threads
):
    """Write dz = (q Σ t − t) · scale."""
    rows = span(log_q.size // classes, thread, threads)
    block = slice(rows.start * classes, rows.stop * classes)
    cross_entropy_gradient_rows(
        log_q[block], labels[rows], distributions[block], on, off, classes, scale,
        row_scales[rows], dz[block],
    )  # fmt: skip


@device(counted=False)
def cross_entropy_rows(logits, labels, distributions, on, off, classes, log_q, losses, work):
    """Write log softmax of all rows, and the losses; return their sum.

    The target is ``on`` for the class of a row's label and ``off`` for the others, or,
    where there are no labels, the row of ``distributions``.
    """
    step = rows_at_a_time(classes)
    on, off = np.float32(on), np.float32(off)
    for first in range(0, losses.size, step):
        last = min(first + step, losses.size)
        block = slice(first * classes, last * classes)
        q = work[: block.stop - block.start]
        both_softmaxes(logits[block], log_q[block], q, classes, _ONE, work)
        for row in range(first, last):
            log_row = log_q[row_at(row, classes)]
            if labels.size == 0:
                losses[row] = -_weighted_sum(log_row, distributions[row_at(row, classes)])
                continue
            label = labels[row] if 0 <= labels[row] < classes else -1
            loss = 0.0 if label < 0 or on == 0 else -on * np.float64(log_row[label])
            for others in (log_row[: max(label, 0)], log_row[label + 1 :]):
                loss -= _scaled_sum(others, off)
            losses[row] = loss
    return total(losses)


@device(counted=False)
def cross_entropy_gradient_rows(
    log_q, labels, distributions, on, off, classes, scale, row_scales, dz
):
    """Write (q Σ t − t) · scale of all rows, times ``row_scales`` where there are any."""
    step = rows_at_a_time(classes)
    rows = log_q.size // classes
    one, zero = np.float32(on), np.float32(off)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = slice(first * classes, last * classes)
        exponentials(log_q[block], dz[block])
        for row in range(first, last):
            at = row_at(row, classes)
            out = dz[at]
            factor = row_scale(scale, row_scales, row)
            if labels.size == 0:
                t = distributions[at]
                mass = np.float32(total(t))
                for i in range(out.size):
                    out[i] = _cross_entropy_slope(out[i], mass, t[i], factor)
                continue
            label = labels[row]
            has_label = 0 <= label < classes
            mass = np.float32(on + (classes - 1) * off if has_label else classes * off)
            at_label = out[label] if has_label else zero
            for i in range(out.size):
                out[i] = _cross_entropy_slope(out[i], mass, zero, factor)
            if has_label:
                out[label] = _cross_entropy_slope(at_label, mass, one, factor)


@elementwise
def _cross_entropy_slope(q, mass, t, scale):
    return (q * mass - t) * scale


@device(counted=False)
def _weighted_sum(x, weights):
    """Return Σ weight · x, where 0 times anything is 0."""
    result = 0.0
    for first in range(0, x.size, _SUMMANDS):
        part, own = x[first : first + _SUMMANDS], weights[first : first + _SUMMANDS]
        subtotal = _ZERO
        for i in range(part.size):
            subtotal += _weighted(part[i], own[i])
        result += subtotal
    return result


@device(counted=False)
def _scaled_sum(x, weight):
    """Return Σ weight · x, where 0 times anything is 0."""
    result = 0.0
    for first in range(0, x.size, _SUMMANDS):
        part = x[first : first + _SUMMANDS]
        subtotal = _ZERO
        for i in range(part.size):
            subtotal += _weighted(part[i], weight)
        result += subtotal
    return result


@elementwise
def _weighted(x, weight):
    return _ZERO if weight == _ZERO else weight * x


KERNELS = {
    "softmax_cross_entropy_backward": softmax_cross_entropy_backward,
    "softmax_cross_entropy_forward": softmax_cross_entropy_forward,
}
