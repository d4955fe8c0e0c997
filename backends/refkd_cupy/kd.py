"""The distillation loss of Hinton et al.: a launch over rows, another for the batch's terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.losses.reduction import divisor
from refkd_cupy import device
from refkd_cupy.operands import are_float32, is_number, is_positive
from refkd_cupy.rows import AT_ONCE, blocks_for, cotangent, labels_of, launch_rows

__all__ = ["KERNELS"]

_REDUCTIONS = ("batchmean", "mean", "sum")
_THREADS, _ROWS = 256, 128  # of a block
_NARROW, _STAGED = 16, 1024  # classes
_FEW = 16  # rows for each multiprocessor
_NO_LABELS = (None, np.int32(0))


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
    given = _given(arrays, labels, temperature, hard_weight, soft_weight, reduction)
    if given is None:
        return NotImplemented
    shape = batch, classes = student_logits.shape
    z, v = (device.dense(array).reshape(-1) for array in arrays)
    q, s, t = (device.empty(shape) for _ in range(3))
    losses = device.empty((2 * batch,))
    outputs = [array.reshape(-1) for array in (q, s, t, losses)]
    scale = np.float32(1 / temperature)
    _launch_forward(batch, classes, [z, v, *given, scale, *outputs])
    terms = [device.empty(()) for _ in range(3)]
    count = divisor(reduction, examples=batch, elements=batch * classes)
    weights = [np.float64(hard_weight), np.float64(soft_weight), np.float64(count)]
    flat = [term.reshape(-1) for term in terms]
    pairs, summed = _few_pairs(losses, batch)
    sizes = [np.int64(summed), np.int64(batch), np.bool_(labels is not None)]
    kernel = "kd_terms_f32" if pairs is losses else "kd_terms_f64"
    device.launch("kd", kernel, 1, 1024 if summed > 256 else 256, [pairs, *flat, *sizes, *weights])
    return (*terms, q, s, t)


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
    given = _given((q, s, t), labels, temperature, hard_weight, soft_weight, reduction)
    factor = None if given is None else cotangent(dloss, q, reduction, 1)
    if given is None or factor is None:
        return NotImplemented
    batch, classes = q.shape
    count = divisor(reduction, examples=batch, elements=batch * classes)
    hard = np.float32(float(hard_weight) / batch)
    soft = np.float32(float(soft_weight) / (float(temperature) * count))
    dz = device.empty(q.shape)
    inputs = [device.dense(array).reshape(-1) for array in (q, s, t)]
    arguments = [*inputs, *given, hard, soft, *factor, dz.reshape(-1)]
    launch_rows("kd", "kd_backward", batch, classes, arguments)
    return dz


def _launch_forward(rows: int, classes: int, arguments: list[Any]) -> None:
    numbers = [np.int64(rows), np.int32(classes)]
    if rows < _FEW * device.multiprocessors():
        launch_rows("kd", "kd_forward", rows, classes, arguments)
    elif classes <= _NARROW and classes % 4:  # where few neighbours fall on one bank
        device.launch(
            "kd", "kd_forward_few", -(-rows // _ROWS), _ROWS, [*arguments, *numbers],
            shared=4 * 3 * classes * _ROWS,
        )  # fmt: skip
    elif _NARROW < classes <= _STAGED:
        warps = _THREADS // 32
        device.launch(
            "kd", "kd_forward_staged", -(-rows // warps), _THREADS, [*arguments, *numbers],
            shared=4 * 2 * classes * warps,
        )  # fmt: skip
    else:
        launch_rows("kd", "kd_forward", rows, classes, arguments)


def _few_pairs(losses: Array, rows: int) -> tuple[Array, int]:
    """Return the rows' losses, or sums of them where one block would add them for long."""
    if rows <= AT_ONCE:
        return losses, rows
    blocks = blocks_for(rows)
    sums = device.empty((2 * blocks,), np.float64)
    device.launch("kd", "kd_sums", blocks, _THREADS, [losses, sums, np.int64(rows)])
    return sums, blocks


def _given(
    arrays: tuple[Array, ...],
    labels: Array | None,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str,
) -> Any:
    """Return the labels as the kernels take them; None where the reference must judge."""
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
    return labels_of(labels, arrays[0].shape[:1])


KERNELS = {"softmax_kd_backward": softmax_kd_backward, "softmax_kd_forward": softmax_kd_forward}
