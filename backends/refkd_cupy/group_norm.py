"""Group norm: a block reads groups of an example once, and keeps them in shared memory.

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
_ROW = 32  # channels that a block does of several groups: a line of 128 bytes
_STATIC = (1024, 20 * 1024)  # bytes of shared memory that a kernel of one or two arrays has besides


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
    blocks = _blocks(x, num_groups, 1)
    if blocks is None:
        mean, _, rstd, coefficients = group_moments(
            pixels, weight, bias, of, channels // num_groups, eps, variances=False
        )
        y = normalised(pixels, coefficients, of)
    else:
        y, mean, rstd = (device.empty(s) for s in (pixels.shape, *2 * ((batch, num_groups),)))
        device.launch(
            "group_norm", f"group_norm_forward_{blocks.vector}", blocks.count, blocks.threads,
            [pixels, weight, bias, y, mean, rstd, np.float32(eps), *blocks.sizes],
            shared=blocks.shared,
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
    blocks = _blocks(x, num_groups, 2)
    if blocks is None:
        dx, dweight, dbias = backward(*images, *vectors, of, channels // num_groups, of_batch=True)
    else:
        dx = device.empty(images[0].shape)
        of_channels = device.empty((batch, 2, channels), np.float64)
        device.launch(
            "group_norm", f"group_norm_backward_{blocks.vector}", blocks.count, blocks.threads,
            [*images, *vectors, of_channels, dx, *blocks.sizes], shared=blocks.shared,
        )  # fmt: skip
        dweight, dbias = sum_examples(of_channels)
    return as_images(dx), dweight, dbias


class _Blocks(NamedTuple):
    """How blocks do some neighbouring groups each.

    Attributes
    ----------
    count, threads, shared : int
        Blocks, threads of each, and bytes of its dynamic shared memory.
    vector : int
        How many channels a thread takes, 1 or 4.
    sizes : list
        What a kernel takes of sizes; the last is how many groups a block does.
    """

    count: int
    threads: int
    shared: int
    vector: int
    sizes: list[np.int32]


def _blocks(x: Array, num_groups: int, arrays: int) -> _Blocks | None:
    """Return how blocks do the groups of ``arrays`` arrays; None where it does not pay.

    As many neighbouring groups as fill a line of memory, while a multiprocessor holds four such
    blocks; of a single group it may hold two.
    """
    batch, channels, *space = x.shape
    group, pixels = channels // num_groups, math.prod(space)
    vector = 1 if group % 4 else 4
    if group * pixels < _LEAST or group // vector > _THREADS:
        return None
    for groups in range(max(1, _ROW // group), 0, -1):
        shared = 4 * arrays * groups * group * pixels
        count = batch * num_groups // groups
        resident = device.shared_limit() // (shared + _STATIC[arrays - 1])
        pays = count >= device.multiprocessors() and resident >= (2 if groups == 1 else 4)
        if num_groups % groups == 0 and pays:
            tile = groups * group // vector
            sizes = [*map(np.int32, (pixels, channels, group, groups))]
            return _Blocks(count, _THREADS // tile * tile, shared, vector, sizes)
    return None


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
