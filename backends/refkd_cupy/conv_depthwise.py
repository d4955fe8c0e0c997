"""Depthwise convolution, of channels-last images."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.ops.im2col import ConvSizes
from refkd_cupy import device
from refkd_cupy.sums import column_sums

__all__ = ["backward_input", "backward_weight", "forward", "serves"]

_STEM = "conv_depthwise"
_PIXELS_OF_PART = 512  # at least: what a block is worth


def serves(g: ConvSizes) -> bool:
    """Return whether every output of a convolution sees one channel."""
    return g.groups == g.inputs and g.groups > 1


def forward(x: Array, weight: Array, bias: Array | None, g: ConvSizes) -> Array:
    """Return y (N, P, Q, K) of x (N, H, W, C)."""
    y = device.empty((g.batch, *g.output_size, g.outputs))
    grid, block = device.spread(y.size)
    device.launch(_STEM, "depthwise_forward", grid, block, [x, weight, bias, y, *_sizes(g)])
    return y


def backward_input(dy: Array, weight: Array, g: ConvSizes) -> Array:
    """Return dx (N, H, W, C) of dy (N, P, Q, K)."""
    dx = device.empty((g.batch, *g.input_size, g.inputs))
    grid, block = device.spread(dx.size)
    device.launch(_STEM, "depthwise_backward_input", grid, block, [dy, weight, dx, *_sizes(g)])
    return dx


def backward_weight(
    dy: Array, x: Array, g: ConvSizes, *, need_dbias: bool
) -> tuple[Array, Array | None]:
    """Return the parts of dW, (parts, K, kH kW), and dbias where it is asked for."""
    blocks, taps = -(-g.outputs // 32), g.kernel_size[0] * g.kernel_size[1]
    pixels = g.batch * g.positions
    most = max(1, 16 * device.multiprocessors() // (blocks * taps))
    parts = max(1, min(pixels // _PIXELS_OF_PART, most))
    sums = device.empty((parts, g.outputs, taps))
    arguments = [dy, x, sums, *_sizes(g)]
    device.launch(_STEM, "depthwise_backward_weight", (blocks, taps, parts), (32, 8), arguments)
    return sums, column_sums(dy.reshape(pixels, g.outputs)) if need_dbias else None


def _sizes(g: ConvSizes) -> list[Any]:
    sizes = (g.batch, *g.input_size, g.inputs, *g.output_size, g.outputs)
    return [*map(np.int32, (*sizes, *g.kernel_size, *g.stride, *g.padding, *g.dilation))]
