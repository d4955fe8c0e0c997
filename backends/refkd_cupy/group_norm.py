"""Group norm: a block reads a group of an example once, and keeps it in shared memory.

Where groups are too small, too large or too few for that, their sums are taken channel by
channel, in a pass of its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.alignment import at_vectors
from refkd_cupy.channel_norm import backward, group_moments, normalised, rows_of, sum_examples
from refkd_cupy.layout import as_images, channels_last
from refkd_cupy.operands import are_float32, is_positive

__all__ = ["KERNELS"]

_THREADS = 256
_LEAST = 1024  # entries of a group that a block does
_STATIC = 20 * 1024  # bytes of shared memory that a kernel has besides


def group_norm_forward(
    x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float = 1e-5
) -> Any:
    if not _fits(x, num_groups, weight, bias) or not is_positive(eps):
        return NotImplemented
    batch, channels = x.shape[:2]
    of = rows_of(x.shape, batch)
    if of is None:
        return NotImplemented
    pixels = at_vectors(channels_last(x))
    weight, bias = device.dense(weight), device.dense(bias)
    groups = _groups(x, num_groups, 1)
    if groups is None:
        mean, _, rstd, coefficients = group_moments(
            pixels, weight, bias, of, channels // num_groups, eps, variances=False
        )
        y = normalised(pixels, coefficients, of)
    else:
        y, mean, rstd = (
            device.empty(s) for s in (pixels.shape, (groups.blocks,), (groups.blocks,))
        )
        device.launch(
            "group_norm", f"group_norm_forward_{groups.vector}", groups.blocks, groups.threads,
            [pixels, weight, bias, y, mean, rstd, np.float32(eps), *groups.sizes],
            shared=groups.shared,
        )  # fmt: skip
    shape = (batch, num_groups)
    return as_images(y), mean.reshape(shape), rstd.reshape(shape)


def group_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, num_groups: int
) -> Any:
    if not _fits(x, num_groups, weight) or not are_float32(x, dy) or not are_float32(mean, rstd):
        return NotImplemented
    batch, channels = x.shape[:2]
    of = rows_of(x.shape, batch)
    if mean.shape != (batch, num_groups) or of is None:
        return NotImplemented
    images = [at_vectors(channels_last(a)) for a in (dy, x)]
    vectors = [*map(device.dense, (weight, mean, rstd))]
    groups = _groups(x, num_groups, 2)
    if groups is None:
        dx, dweight, dbias = backward(*images, *vectors, of, channels // num_groups, of_batch=True)
    else:
        dx = device.empty(images[0].shape)
        of_channels = device.empty((batch, 2, channels), np.float64)
        device.launch(
            "group_norm", f"group_norm_backward_{groups.vector}", groups.blocks, groups.threads,
            [*images, *vectors, of_channels, dx, *groups.sizes], shared=groups.shared,
        )  # fmt: skip
        dweight, dbias = sum_examples(of_channels)
    return as_images(dx), dweight, dbias


class _Groups(NamedTuple):
    """How blocks do a group each: blocks and threads, bytes of shared memory, and what a kernel
    takes of sizes. ``vector`` is how many channels a thread takes, 1 or 4.
    """

    blocks: int
    threads: int
    shared: int
    vector: int
    sizes: list[np.int32]


def _groups(x: Array, num_groups: int, arrays: int) -> _Groups | None:
    """Return how blocks do a group of ``arrays`` arrays each; None where it does not pay."""
    batch, channels, *space = x.shape
    group, pixels = channels // num_groups, math.prod(space)
    vector = 1 if group % 4 else 4
    tile, shared = group // vector, 4 * arrays * group * pixels
    pays = (
        group * pixels >= _LEAST
        and tile <= _THREADS
        and 2 * (shared + _STATIC) <= device.shared_limit()
        and batch * num_groups >= device.multiprocessors()
    )
    if not pays:
        return None
    threads = _THREADS // tile * tile
    sizes = [*map(np.int32, (pixels, channels, group))]
    return _Groups(batch * num_groups, threads, shared, vector, sizes)


def _fits(x: Any, num_groups: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and are_float32(*vectors)
        and vectors[0].shape == (x.shape[1],)
        and type(num_groups) is int
        and num_groups >= 1
        and x.shape[1] % num_groups == 0
    )


KERNELS = {"group_norm_forward": group_norm_forward, "group_norm_backward": group_norm_backward}
