"""Attention of several heads: scores stay in shared memory, keys and values pass through it.

The heads of a projection need not be taken apart: a kernel reads them where they lie.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device, settings
from refkd_cupy.operands import are_float32, is_positive

__all__ = ["KERNELS"]

_THREADS = 256
_TILE = 64  # keys that a block takes at a time
_STEP = 32  # queries that it takes where it does keys
_WEIGHTS_STEP = 72  # entries from query to query of such a tile
_WIDEST = 128  # entries of a head
_LIMIT = 1 << 31
_FLOAT = 4  # bytes


class _Plan(NamedTuple):
    """How queries are shared: rows of a thread, bytes of shared memory, blocks."""

    rows: int
    shared: int
    blocks: int


def attention_forward(q: Array, k: Array, v: Array, *, scale: float) -> Any:
    plan = _plan(q, k, v) if is_positive(scale) else None
    if plan is None:
        return NotImplemented
    y, probabilities = _laid_like(q, v.shape[3]), device.empty((*q.shape[:3], k.shape[2]))
    arrays, inside = _memory(*map(_dense, (q, k, v)), y)
    device.launch(
        _stem(), f"attention_forward_{plan.rows}_{_columns(v.shape[3])}", plan.blocks,
        _THREADS, [*arrays[:3], probabilities, arrays[3], *_sizes(q, v, scale), inside],
        shared=plan.shared,
    )  # fmt: skip
    return y, probabilities


def attention_backward(
    dy: Array, q: Array, k: Array, v: Array, probabilities: Array, *, scale: float
) -> Any:
    plan = _plan(q, k, v) if is_positive(scale) else None
    if plan is None or not all(map(are_float32, (dy, probabilities))):
        return NotImplemented
    batch, heads, _, width = q.shape
    keys, value_width = v.shape[2:]
    if dy.shape != (*q.shape[:3], value_width) or probabilities.shape != (*q.shape[:3], keys):
        return NotImplemented
    dq, dk, dv = (_laid_like(x, x.shape[3]) for x in (q, k, v))
    probabilities, dscores = device.dense(probabilities), device.empty(probabilities.shape)
    sizes = _sizes(q, v, scale)
    dy, q = _dense(dy), _dense(q)
    arrays, inside = _memory(dy, _dense(k), _dense(v), dq)
    device.launch(
        _stem(), f"attention_gradient_{plan.rows}_{_columns(width)}", plan.blocks, _THREADS,
        [*arrays[:3], probabilities, dscores, arrays[3], *sizes, inside], shared=plan.shared,
    )  # fmt: skip
    arrays, inside = _memory(dy, q, dv, dk)
    widest = max(width, value_width)
    device.launch(
        _stem(), f"attention_keys_gradient_{_columns(widest)}",
        (batch * heads * -(-keys // _TILE), 2), _THREADS,
        [*arrays[:2], probabilities, dscores, *arrays[2:], *sizes, inside],
        shared=2 * _FLOAT * _STEP * (_WEIGHTS_STEP + _pitch(widest)),
    )  # fmt: skip
    return dq, dk, dv


def _plan(q: Any, k: Any, v: Any) -> _Plan | None:
    """Return how a block is to share the queries; None where the reference must do it."""
    fits = (
        all(map(are_float32, (q, k, v)))
        and q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2]
    )
    if not fits or max(q.shape[3], v.shape[3]) > _WIDEST:
        return None
    batch, heads, queries, width = q.shape
    keys, value_width = v.shape[2:]
    if max(x.size for x in (q, k, v)) >= _LIMIT or batch * heads * queries >= _LIMIT:
        return None
    pitch = _pitch(max(width, value_width))
    limit = device.shared_limit()
    plans = [
        _Plan(
            rows,
            _FLOAT * (16 * rows * (pitch + _pitch(keys)) + 2 * _TILE * pitch),
            batch * heads * -(-queries // (16 * rows)),
        )
        for rows in (4, 2, 1)
    ]
    plans = [plan for plan in plans if plan.shared <= limit]
    # Two blocks are to fit a multiprocessor, and every one of those is to have some.
    for plan in plans:
        small = queries <= 8 * plan.rows or plan.blocks < device.multiprocessors()
        if 2 * plan.shared <= limit and (plan.rows == 1 or not small):
            return plan
    return plans[-1] if plans else None


def _stem() -> str:
    """Return the source whose products round as they may."""
    tensor_cores = settings.tf32 and device.supports_tensor_cores()
    return "attention_tf32" if tensor_cores else "attention"


def _dense(x: Array) -> Array:
    """Return x, or a copy, with the heads outside of the rows in memory or within them."""
    return x if x.swapaxes(1, 2).flags.c_contiguous else device.dense(x)


def _memory(*arrays: Array) -> tuple[list[Array], np.int32]:
    """Return arrays in the order of their memory, and in the bits of a number whose is which."""
    bits = sum(1 << i for i, x in enumerate(arrays) if not x.flags.c_contiguous)
    return [x if x.flags.c_contiguous else x.swapaxes(1, 2) for x in arrays], np.int32(bits)


def _laid_like(x: Array, width: int) -> Array:
    """Return room for rows of ``width`` for those of x; the heads within the rows if x's are."""
    batch, heads, rows = x.shape[:3]
    if x.strides[1] < x.strides[2]:
        return device.empty((batch, rows, heads, width)).swapaxes(1, 2)
    return device.empty((batch, heads, rows, width))


def _sizes(q: Array, v: Array, scale: float) -> list[Any]:
    """Return scale, heads, queries, keys, width and value_width as a kernel takes them."""
    heads, queries, width = q.shape[1:]
    return [np.float32(scale), *map(np.int32, (heads, queries, *v.shape[2:3], width, v.shape[3]))]


def _columns(width: int) -> int:
    """Return how many columns of a result a thread holds."""
    return 2 if width <= 32 else 4 if width <= 64 else 8


def _pitch(width: int) -> int:
    """Return the entries from row to row of a tile in shared memory."""
    return -(-width // 8) * 8 + 4


KERNELS = {"attention_forward": attention_forward, "attention_backward": attention_backward}
