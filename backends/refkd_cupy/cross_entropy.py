"""Softmax cross-entropy with labels or distributions: a launch, and another for the batch's sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.operands import are_float32, is_number
from refkd_cupy.rows import cotangent, labels_of, launch_rows, summed

__all__ = ["KERNELS"]

_REDUCTIONS = ("mean", "sum", "none")


def softmax_cross_entropy_forward(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> Any:
    target = _target(logits, targets, label_smoothing, smoothing)
    if target is None or reduction not in _REDUCTIONS:
        return NotImplemented
    classes = logits.shape[-1]
    log_q, losses = device.empty(logits.shape), device.empty(logits.shape[:-1])
    flat = device.dense(logits).reshape(-1)
    arguments = [flat, *target, log_q.reshape(-1), losses.reshape(-1)]
    launch_rows("cross_entropy", "cross_entropy_forward", losses.size, classes, arguments)
    if reduction == "none":
        return losses, log_q
    return summed(losses.reshape(-1), losses.size if reduction == "mean" else 1), log_q


def softmax_cross_entropy_backward(
    dloss: Array | float,
    log_q: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> Any:
    target = _target(log_q, targets, label_smoothing, smoothing)
    if target is None or reduction not in _REDUCTIONS:
        return NotImplemented
    classes = log_q.shape[-1]
    rows = log_q.size // classes
    factor = cotangent(dloss, log_q, reduction, rows if reduction == "mean" else 1)
    if factor is None:
        return NotImplemented
    dz = device.empty(log_q.shape)
    arguments = [device.dense(log_q).reshape(-1), *target, *factor, dz.reshape(-1)]
    launch_rows("cross_entropy", "cross_entropy_backward", rows, classes, arguments)
    return dz


def _target(logits: Array, targets: Array, label_smoothing: float, smoothing: str) -> Any:
    """Return what ``target_of`` takes, but row and classes; None where the reference must judge."""
    if not (
        are_float32(logits)
        and logits.ndim > 0
        and device.is_array(targets)
        and is_number(label_smoothing)
        and not isinstance(label_smoothing, bool)
        and 0 <= label_smoothing <= 1
        and smoothing in ("uniform", "others")
    ):
        return None
    if targets.dtype.kind == "f":
        if not are_float32(logits, targets) or label_smoothing != 0:
            return None
        distributions = device.dense(targets).reshape(-1)
        return [None, np.int32(0), distributions, np.float32(0), np.float32(0)]
    labels = labels_of(targets, logits.shape[:-1])
    if labels is None:
        return None
    on, off = _smoothed(float(label_smoothing), smoothing, logits.shape[-1])
    if off is None:
        return None
    return [*labels, None, np.float32(on), np.float32(off)]


def _smoothed(mass: float, smoothing: str, classes: int) -> tuple[float, float | None]:
    if mass == 0:
        return 1.0, 0.0
    if smoothing == "uniform":
        return 1 - mass + mass / classes, mass / classes
    return 1 - mass, mass / (classes - 1) if classes > 1 else None


KERNELS = {
    "softmax_cross_entropy_backward": softmax_cross_entropy_backward,
    "softmax_cross_entropy_forward": softmax_cross_entropy_forward,
}
