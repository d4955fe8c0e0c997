"""Divergences of two softmax distributions: a launch over rows, another for the batch's sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.losses.reduction import divisor
from refkd_cupy import device
from refkd_cupy.operands import are_float32, is_positive
from refkd_cupy.rows import cotangent, launch_rows, summed

__all__ = ["KERNELS"]

_REDUCTIONS = ("batchmean", "mean", "sum", "none")


def softmax_kl_forward(
    p_logits: Array, q_logits: Array, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> Any:
    return _divergence("kl_forward", p_logits, q_logits, temperature, reduction)


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
    factor = _factor(dloss, (log_p, log_q), temperature, reduction)
    if factor is None:
        return NotImplemented
    dp, dq = (device.empty(log_p.shape) if need else None for need in (need_dp, need_dq))
    if need_dp or need_dq:
        outputs = [None if array is None else array.reshape(-1) for array in (dp, dq)]
        _launch("kl_backward", (log_p, log_q), [*factor, *outputs])
    return dp, dq


def softmax_kl_without_log_forward(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Any:
    arrays = (student_logits, teacher_logits)
    return _divergence("kl_without_log_forward", *arrays, temperature, reduction)


def softmax_kl_without_log_backward(
    dloss: Array | float,
    s: Array,
    t: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Any:
    factor = _factor(dloss, (s, t), temperature, reduction)
    if factor is None:
        return NotImplemented
    dz = device.empty(s.shape)
    _launch("kl_without_log_backward", (s, t), [*factor, dz.reshape(-1)])
    return dz


def _divergence(kernel: str, a: Array, b: Array, temperature: float, reduction: str) -> Any:
    """Serve a forward of two logits that returns the loss and two arrays."""
    if not _is_divergence((a, b), temperature, reduction):
        return NotImplemented
    first, second = device.empty(a.shape), device.empty(a.shape)
    losses = device.empty(a.shape[:-1])
    outputs = [array.reshape(-1) for array in (first, second, losses)]
    _launch(kernel, (a, b), [np.float32(1 / temperature), *outputs])
    if reduction == "none":
        return losses, first, second
    count = divisor(reduction, examples=losses.size, elements=a.size)
    return summed(losses.reshape(-1), count), first, second


def _launch(kernel: str, arrays: tuple[Array, Array], arguments: list[Any]) -> None:
    classes = arrays[0].shape[-1]
    flat = [device.dense(array).reshape(-1) for array in arrays]
    launch_rows("kl", kernel, flat[0].size // classes, classes, [*flat, *arguments])


def _factor(
    dloss: Array | float, arrays: tuple[Array, Array], temperature: float, reduction: str
) -> list[Any] | None:
    if not _is_divergence(arrays, temperature, reduction):
        return None
    size, classes = arrays[0].size, arrays[0].shape[-1]
    count = divisor(reduction, examples=size // classes, elements=size)
    return cotangent(dloss, arrays[0], reduction, float(temperature) * count)


def _is_divergence(arrays: tuple[Array, Array], temperature: float, reduction: str) -> bool:
    return (
        are_float32(*arrays)
        and arrays[0].ndim > 0
        and is_positive(temperature)
        and reduction in _REDUCTIONS
    )


KERNELS = {
    "softmax_kl_backward": softmax_kl_backward,
    "softmax_kl_forward": softmax_kl_forward,
    "softmax_kl_without_log_backward": softmax_kl_without_log_backward,
    "softmax_kl_without_log_forward": softmax_kl_without_log_forward,
}
