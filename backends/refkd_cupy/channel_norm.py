"""What batch norm and group norm share: how their kernels split rows of channels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device

__all__ = ["Rows", "backward", "group_moments", "normalised", "rows_of", "sum_examples"]

_THREADS = 256
_RESIDENT = 3  # blocks that a multiprocessor runs at a time
_LIMIT = 1 << 31


class Rows(NamedTuple):
    """How x (examples, rows, channels) is split among blocks.

    Attributes
    ----------
    examples, rows, channels : int
    vector : int
        How many channels a thread takes, 1 or 4.
    tile : int
        How many threads stand side by side.
    tiles : int
        In how many parts the channels are split.
    chunks, pieces : int
        In how many parts the rows of an example are split where their sums are taken, no more
        than run at a time, and where they are mapped.
    """

    examples: int
    rows: int
    channels: int
    vector: int
    tile: int
    tiles: int
    chunks: int
    pieces: int

    @property
    def block(self) -> int:
        """Threads of a block: whole lanes of a tile."""
        return _THREADS // self.tile * self.tile


def rows_of(shape: tuple[int, ...], examples: int) -> Rows | None:
    """Return how (N, C, ...) with the channels last is split; None where it is too large."""
    channels = int(shape[1])
    rows = math.prod(shape) // (channels * examples)
    vector = 1 if channels % 4 else 4
    vectors = channels // vector
    tiles = -(-vectors // _THREADS)
    tile = -(-vectors // tiles)
    if math.prod(shape) >= _LIMIT or tiles > 65535:
        return None
    steps = rows // (_THREADS // tile)
    resident = _RESIDENT * device.multiprocessors() // (tiles * examples)
    chunks = max(1, min(steps // 8, resident))
    pieces = max(1, min(steps // 4, resident), steps // 16)
    return Rows(examples, rows, channels, vector, tile, tiles, chunks, pieces)


def group_moments(
    x: Array, weight: Array, bias: Array, of: Rows, group: int, eps: float, *, variances: bool
) -> tuple[Array, Array | None, Array, Array]:
    """Return mean, variance (None unless asked for), rstd of each group, and the coefficients."""
    sums = device.empty((of.examples, 2, of.channels, of.chunks), np.float64)
    sizes = (of.channels, group)
    device.launch(
        "channel_norm", f"moments_{of.vector}", (of.examples * of.chunks, of.tiles), of.block,
        [x, sums, *_int32(of.rows, *sizes, of.tile, of.chunks)],
    )  # fmt: skip
    groups = of.examples * (of.channels // group)
    mean, rstd = device.empty((groups,)), device.empty((groups,))
    var = device.empty((groups,)) if variances else None
    coefficients = device.empty((of.examples, 3, of.channels))
    device.launch(
        "channel_norm", "statistics", -(-groups // (_THREADS // 32)), _THREADS,
        [sums, x, weight, bias, mean, var, rstd, coefficients, np.float64(eps),
         *_int32(of.examples, of.rows, *sizes, of.chunks)],
    )  # fmt: skip
    return mean, var, rstd, coefficients


def normalised(x: Array, coefficients: Array, of: Rows) -> Array:
    """Return (x − centre) · scale + offset."""
    y = device.empty(x.shape)
    device.launch(
        "channel_norm", f"normalise_{of.vector}", (of.examples * of.pieces, of.tiles), of.block,
        [x, coefficients, y, *_int32(of.rows, of.channels, of.tile, of.pieces)],
    )  # fmt: skip
    return y


def backward(
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    of: Rows,
    group: int,
    *,
    of_batch: bool,
) -> tuple[Array, Array, Array]:
    """Return dx, dweight and dbias."""
    sums = device.empty((of.examples, 3, of.channels, of.chunks), np.float64)
    sizes = (of.rows, of.channels, group)
    device.launch(
        "channel_norm", f"gradient_sums_{of.vector}", (of.examples * of.chunks, of.tiles), of.block,
        [dy, x, mean, sums, *_int32(*sizes, of.tile, of.chunks)],
    )  # fmt: skip
    of_channels = device.empty((of.examples, 2, of.channels), np.float64)
    coefficients = device.empty((of.examples, 4, of.channels))
    dweight, dbias = device.empty((of.channels,)), device.empty((of.channels,))
    at_once = 1 << min(group - 1, 31).bit_length()  # channels of a warp
    groups = of.examples * (of.channels // group)
    device.launch(
        "channel_norm", "gradient_coefficients", -(-groups // (_THREADS // 32)), _THREADS,
        [sums, weight, mean, rstd, of_channels, coefficients, dweight, dbias,
         *_int32(of.examples, *sizes, of.chunks, 32 // at_once, of_batch)],
    )  # fmt: skip
    if of.examples > 1:
        dweight, dbias = sum_examples(of_channels)
    dx = device.empty(x.shape)
    device.launch(
        "channel_norm", f"gradient_{of.vector}", (of.examples * of.pieces, of.tiles), of.block,
        [dy, x if of_batch else None, coefficients, dx,
         *_int32(of.rows, of.channels, of.tile, of.pieces)],
    )  # fmt: skip
    return dx, dweight, dbias


def sum_examples(of_channels: Array) -> tuple[Array, Array]:
    """Return the two sums over the examples of (examples, 2, channels): dweight and dbias."""
    examples, _, channels = of_channels.shape
    dweight, dbias = device.empty((channels,)), device.empty((channels,))
    device.launch(
        "channel_norm", "channel_gradients", -(-2 * channels // 32), 1024,
        [of_channels, dweight, dbias, *_int32(examples, channels)],
    )  # fmt: skip
    return dweight, dbias


def _int32(*values: Any) -> list[np.int32]:
    return [np.int32(value) for value in values]
