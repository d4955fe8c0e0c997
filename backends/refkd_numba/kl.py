"""Divergences of two softmax distributions, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.losses.reduction import divisor
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.reduction import (
    expected_difference,
    flat_rows,
    reduced,
    room_for_sums,
    row_at,
    row_scale,
    scales,
)
from refkd_numba.softmax import (
    both_softmaxes,
    exponentials,
    rows_at_a_time,
    softmax,
    softmax_gradient,
    work_space,
)
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise, total

__all__ = ["KERNELS"]

_WORTH = 1 << 15
_NONE = np.empty(0, np.float32)
_REDUCTIONS = ("batchmean", "mean", "sum", "none")


def softmax_kl_forward(
    p_logits: Array, q_logits: Array, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> Any:
    return _divergence(_kl, p_logits, q_logits, temperature, reduction)


def softmax_kl_backward(
    dloss: Array | float,
    log_p: Array,
    log_q: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    need_dp: bool = True,
    need_dq: bool = True,
) -> Any:
    factors = _divergence_scales(dloss, (log_p, log_q), temperature, reduction)
    if factors is None:
        return NotImplemented
    dp, dq = (empty(log_p.shape) if need else None for need in (need_dp, need_dq))
    if need_dp or need_dq:
        share(
            _kl_gradient, flat_rows(log_p), flat_rows(log_q), log_p.shape[-1], *factors,
            _NONE if dp is None else flat_rows(dp), _NONE if dq is None else flat_rows(dq),
            worth=log_p.size > _WORTH,
        )  # fmt: skip
    return dp, dq


def softmax_kl_without_log_forward(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Any:
    return _divergence(_kl_without_log, student_logits, teacher_logits, temperature, reduction)


def softmax_kl_without_log_backward(
    dloss: Array | float,
    s: Array,
    t: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Any:
    factors = _divergence_scales(dloss, (s, t), temperature, reduction)
    if factors is None:
        return NotImplemented
    dz = empty(s.shape)
    share(
        _kl_without_log_gradient, flat_rows(s), flat_rows(t), s.shape[-1], *factors, flat_rows(dz),
        worth=s.size > _WORTH,
    )  # fmt: skip
    return dz


def _divergence(kernel: Any, a: Array, b: Array, temperature: float, reduction: str) -> Any:
    """Serve a forward of two logits that returns the loss and two arrays."""
    if not _is_divergence((a, b), temperature, reduction):
        return NotImplemented
    classes = a.shape[-1]
    first, second, losses = empty(a.shape), empty(a.shape), empty(a.shape[:-1])
    sums = room_for_sums(a.size, _WORTH)
    share(
        kernel, *map(flat_rows, (a, b)), classes, 1 / float(temperature),
        *map(flat_rows, (first, second, losses)), sums, worth=len(sums) > 1,
    )  # fmt: skip
    if reduction == "none":
        return losses[()], first, second
    return reduced(sums, divisor(reduction, examples=losses.size, elements=a.size)), first, second


def _divergence_scales(
    dloss: Array | float, arrays: tuple[Array, Array], temperature: float, reduction: str
) -> tuple[float, NDArray[Any]] | None:
    if not _is_divergence(arrays, temperature, reduction):
        return None
    size, classes = arrays[0].size, arrays[0].shape[-1]
    count = divisor(reduction, examples=size // classes, elements=size)
    return scales(dloss, arrays[0], reduction, float(temperature) * count)


def _is_divergence(arrays: tuple[Array, Array], temperature: float, reduction: str) -> bool:
    return (
        are_float32(*arrays)
        and arrays[0].ndim > 0
        and is_positive(temperature)
        and reduction in _REDUCTIONS
    )


@compiled
def _kl(p_logits, q_logits, classes, scale, log_p, log_q, losses, sums, thread, threads):
    """Write losses = Σ p (log p − log q); a row of ``sums`` is the sum of a part of them."""
    parts, work = span(len(sums), thread, threads), work_space(classes)
    for part in range(parts.start, parts.stop):
        rows = span(losses.size, part, len(sums))
        block = slice(rows.start * classes, rows.stop * classes)
        sums[part, 0] = _kl_rows(
            p_logits[block], q_logits[block], classes, scale, log_p[block], log_q[block],
            losses[rows], work,
        )  # fmt: skip


@compiled
def _kl_gradient(log_p, log_q, classes, scale, row_scales, dp, dq, thread, threads):
    """Write dp = p (l − Σ p l) · scale, l = log p − log q, and dq = (q − p) · scale."""
    rows = span(log_p.size // classes, thread, threads)
    block = slice(rows.start * classes, rows.stop * classes)
    _kl_gradient_rows(
        log_p[block], log_q[block], classes, scale, row_scales[rows], dp[block], dq[block],
        work_space(classes),
    )  # fmt: skip


@compiled
def _kl_without_log(z, v, classes, scale, s, t, losses, sums, thread, threads):
    """Write losses = Σ t (log t − s); a row of ``sums`` is the sum of a part of them."""
    parts, work = span(len(sums), thread, threads), work_space(classes)
    for part in range(parts.start, parts.stop):
        rows = span(losses.size, part, len(sums))
        block = slice(rows.start * classes, rows.stop * classes)
        sums[part, 0] = _kl_without_log_rows(
            z[block], v[block], classes, scale, s[block], t[block], losses[rows], work
        )


@compiled(counted=False)
def _kl_without_log_gradient(s, t, classes, scale, row_scales, dz, thread, threads):
    """Write dz = −s (t − Σ t s) · scale."""
    rows = span(s.size // classes, thread, threads)
    for row in range(rows.start, rows.stop):
        at = row_at(row, classes)
        softmax_gradient(t[at], s[at], -row_scale(scale, row_scales, row), dz[at])


@device(counted=False)
def _kl_rows(p_logits, q_logits, classes, scale, log_p, log_q, losses, work):
    step, scale = rows_at_a_time(classes), np.float32(scale)
    for first in range(0, losses.size, step):
        last = min(first + step, losses.size)
        block = slice(first * classes, last * classes)
        size = block.stop - block.start
        p, q = work[:size], work[size : 2 * size]
        both_softmaxes(p_logits[block], log_p[block], p, classes, scale, work)
        both_softmaxes(q_logits[block], log_q[block], q, classes, scale, work)
        for row in range(first, last):
            at, here = row_at(row, classes), row_at(row - first, classes)
            losses[row] = expected_difference(p[here], log_p[at], log_q[at])
    return total(losses)


@device(counted=False)
def _kl_gradient_rows(log_p, log_q, classes, scale, row_scales, dp, dq, work):
    """Write both gradients, or one where the other's array is empty."""
    rows, step = log_p.size // classes, rows_at_a_time(classes)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = slice(first * classes, last * classes)
        p = work[: block.stop - block.start]
        exponentials(log_p[block], p)
        if dq.size:
            exponentials(log_q[block], dq[block])
        for row in range(first, last):
            at, here = row_at(row, classes), row_at(row - first, classes)
            factor = row_scale(scale, row_scales, row)
            if dp.size:
                _kl_slope(p[here], log_p[at], log_q[at], factor, dp[at])
            if dq.size:
                _scaled_difference(dq[at], p[here], factor)


@device(counted=False)
def _kl_without_log_rows(z, v, classes, scale, s, t, losses, work):
    step, scale = rows_at_a_time(classes), np.float32(scale)
    for first in range(0, losses.size, step):
        last = min(first + step, losses.size)
        block = slice(first * classes, last * classes)
        log_t = work[: block.stop - block.start]
        softmax(z[block], s[block], classes, scale)
        both_softmaxes(v[block], log_t, t[block], classes, scale, work)
        for row in range(first, last):
            at, here = row_at(row, classes), row_at(row - first, classes)
            losses[row] = expected_difference(t[at], log_t[here], s[at])
    return total(losses)


@device(counted=False)
def _kl_slope(p, log_p, log_q, scale, dp):
    """Write p (l − Σ p l) · scale, of one row."""
    mean = np.float32(expected_difference(p, log_p, log_q))
    for i in range(p.size):
        dp[i] = _centred(p[i], log_p[i], log_q[i], mean, scale)


@elementwise
def _centred(p, log_p, log_q, mean, scale):
    return p * ((log_p - log_q) - mean) * scale


@device(counted=False)
def _scaled_difference(q, p, scale):
    """Write (q − p) · scale into q, a row."""
    for i in range(q.size):
        q[i] = _difference_times(q[i], p[i], scale)


@elementwise
def _difference_times(q, p, scale):
    return (q - p) * scale


KERNELS = {
    "softmax_kl_backward": softmax_kl_backward,
    "softmax_kl_forward": softmax_kl_forward,
    "softmax_kl_without_log_backward": softmax_kl_without_log_backward,
    "softmax_kl_without_log_forward": softmax_kl_without_log_forward,
}
