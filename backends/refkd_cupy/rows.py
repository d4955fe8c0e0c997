"""What the kernels over rows of classes share: teams, cotangents, labels and sums over a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.operands import are_float32

__all__ = ["AT_ONCE", "blocks_for", "cotangent", "labels_of", "launch_rows", "summed"]

_THREADS = 256
_NARROW, _WIDE, _VERY_WIDE = 16, 2048, 8192  # classes
_SHARED_BY_FEW, _FEW = 256, 16  # classes; rows for each multiprocessor
_FLOAT32 = np.dtype(np.float32)
AT_ONCE = 8192  # values that one block adds
_KINDS = "iu"


def launch_rows(stem: str, kernel: str, rows: int, classes: int, arguments: list[Any]) -> None:
    """Launch a kernel whose teams take a row each; rows and classes are its last arguments."""
    width = 8 if classes <= _NARROW else 32
    are_few = classes > _SHARED_BY_FEW and rows < _FEW * device.multiprocessors()
    if classes > _WIDE or are_few:
        suffix, grid, block = "block", rows, _THREADS if classes <= _VERY_WIDE else 2 * _THREADS
    else:
        suffix, grid, block = str(width), -(-rows * width // _THREADS), _THREADS
    numbers = [np.int64(rows), np.int32(classes)]
    device.launch(stem, f"{kernel}_{suffix}", grid, block, [*arguments, *numbers])


def cotangent(dloss: Any, logits: Array, reduction: str, divisor: float) -> list[Any] | None:
    """Return what ``row_scale`` takes for dloss/divisor; None where the reference must judge.

    A cotangent on the device stays there.
    """
    if reduction == "none":
        if not are_float32(dloss) or dloss.shape != logits.shape[:-1]:
            return None
        return [device.dense(dloss).reshape(-1), np.bool_(True), np.float32(1 / divisor)]
    if isinstance(dloss, (float, int)):
        return [None, np.bool_(False), np.float32(float(dloss) / divisor)]
    if are_float32(dloss) and dloss.shape == ():
        return [dloss.reshape(-1), np.bool_(False), np.float32(1 / divisor)]
    return None


def labels_of(labels: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """Return what ``label_of`` takes for integer labels of a shape; None for anything else."""
    if not device.is_array(labels) or labels.dtype.kind not in _KINDS or labels.shape != shape:
        return None
    if not labels.dtype.isnative:
        return None
    width = labels.dtype.itemsize * (-1 if labels.dtype.kind == "i" else 1)
    return [device.dense(labels).reshape(-1).view(np.uint8), np.int32(width)]


def blocks_for(count: int) -> int:
    """Return how many blocks are to add more than AT_ONCE values, before one adds their sums."""
    return min(-(-count // (8 * _THREADS)), 4 * device.multiprocessors())


def summed(values: Array, divisor: int) -> Array:
    """Return the sum of flat values, float32 or float64, divided: a float32 array of shape ()."""
    total = device.empty(())
    if values.dtype == _FLOAT32 and values.size > AT_ONCE:
        blocks = blocks_for(values.size)
        sums = device.empty((blocks,), np.float64)
        device.launch(
            "reduction", "part_sums", blocks, _THREADS, [values, sums, np.int64(values.size)]
        )
        values = sums
    kernel = "sum_f32" if values.dtype == _FLOAT32 else "sum_f64"
    arguments = [values, total.reshape(-1), np.int64(values.size), np.float64(divisor)]
    device.launch("reduction", kernel, 1, 1024, arguments)
    return total
