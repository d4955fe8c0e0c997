"""Convolution as implicit matrix products: which kernel takes which shape, and in how many parts.

Images are channels-last inside: an input that is not is copied, results are views of
channels-last memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.im2col import ConvSizes, conv_sizes
from refkd.ops.window import Pair, Size, as_pair
from refkd_cupy import conv_depthwise, device, settings
from refkd_cupy.alignment import at_vectors
from refkd_cupy.conv_tiles import (
    DEPTH,
    FMA,
    GATHER_TILES,
    SMALLEST,
    TF32,
    THREE_TERMS,
    WEIGHT_TILES,
    tile_and_parts,
)
from refkd_cupy.layout import as_images, channels_last
from refkd_cupy.operands import can_be_counted
from refkd_cupy.sums import sum_parts

__all__ = ["KERNELS", "backward_input", "backward_weight", "forward", "sizes"]

_FLOAT32 = np.dtype(np.float32)
_MOST_ENTRIES = 2**30  # of an array with its padding: the kernels count in 32 bits
_MOST_BLOCKS = 65535  # along the second and third axes of a grid
_MOST_TAPS = 2048  # of a kernel: what shared memory has a place for, where there is enough of it
_PACKED = 32  # outputs that a block packs at a time
_FEW_TERMS = 64  # up to which tensor cores are not worth their rounding
_MOST_STEPS = 256  # in a part of the sum over pixels: longer sums lose accuracy
_MANY_PARTS = 8
_MOST_SUMS = 2**27  # entries of all parts of a sum, where there are many: 512 MiB


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    if not _are_images(x, weight):
        return NotImplemented
    arrays = (x, weight) if bias is None else (x, weight, bias)
    g = sizes(arrays, x.shape, weight.shape, stride, padding, dilation, groups)
    if g is None or (bias is not None and bias.shape != (g.outputs,)):
        return NotImplemented
    return as_images(forward(channels_last(x), weight, bias, g))


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    need_dx: bool = True,
) -> Any:
    if not _are_images(x, weight):
        return NotImplemented
    g = sizes((dy, x, weight), x.shape, weight.shape, stride, padding, dilation, groups)
    if g is None or dy.shape != (g.batch, g.outputs, *g.output_size):
        return NotImplemented
    gradient = channels_last(dy)
    dweight, dbias = backward_weight(gradient, channels_last(x), g, need_dbias=True)
    dx = as_images(backward_input(gradient, weight, g)) if need_dx else None
    return dx, dweight, dbias


def conv2d_backward_input(
    dy: Array,
    weight: Array,
    *,
    input_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    size = _as_pair(input_size)
    if size is None or not _are_images(dy, weight) or not isinstance(groups, int):
        return NotImplemented
    x_shape = (dy.shape[0], weight.shape[1] * groups, *size)
    g = sizes((dy, weight), x_shape, weight.shape, stride, padding, dilation, groups)
    if g is None or dy.shape != (g.batch, g.outputs, *g.output_size):
        return NotImplemented
    return as_images(backward_input(channels_last(dy), weight, g))


def conv2d_backward_weight(
    dy: Array,
    x: Array,
    *,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    taps = _as_pair(kernel_size)
    if taps is None or not _are_images(dy, x) or not isinstance(groups, int) or groups < 1:
        return NotImplemented
    weight_shape = (dy.shape[1], x.shape[1] // groups, *taps)
    g = sizes((dy, x), x.shape, weight_shape, stride, padding, dilation, groups)
    if g is None or dy.shape != (g.batch, g.outputs, *g.output_size):
        return NotImplemented
    return backward_weight(channels_last(dy), channels_last(x), g, need_dbias=False)[0]


def sizes(
    arrays: tuple[Array, ...],
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> ConvSizes | None:
    """Return the sizes, or None for what the reference serves, or refuses."""
    if any(not device.is_array(a) or a.dtype != _FLOAT32 or a.size == 0 for a in arrays):
        return None
    try:
        g = conv_sizes("", x_shape, weight_shape, stride, padding, dilation, groups)
    except RefkdError:
        return None
    padded = math.prod(n + 2 * z for n, z in zip(g.input_size, g.padding, strict=True))
    entries = max(g.batch * padded * max(g.inputs, g.outputs), 4 * g.outputs * g.taps)
    taps = math.prod(g.kernel_size)
    blocks = max(
        g.groups * math.prod(g.stride),
        -(-g.outputs // (g.groups * _PACKED)),
        -(-g.batch * g.positions // (DEPTH * _MOST_STEPS)),
    )
    fits = (
        entries <= _MOST_ENTRIES
        and can_be_counted(*g.dilation)
        and blocks <= _MOST_BLOCKS
        and taps <= _MOST_TAPS
        and SMALLEST.fits(FMA, taps, device.shared_limit())
    )
    return g if fits else None


def _as_pair(size: Size) -> Pair | None:
    try:
        return as_pair("", "", size, 0)
    except RefkdError:
        return None


def _are_images(*arrays: Array) -> bool:
    return all(getattr(array, "ndim", 0) == 4 for array in arrays)


def forward(x: Array, weight: Array, bias: Array | None, g: ConvSizes) -> Array:
    """Return y (N, P, Q, K) of x (N, H, W, C)."""
    weight, bias = device.dense(weight), None if bias is None else device.dense(bias)
    if conv_depthwise.serves(g):
        return conv_depthwise.forward(x, weight, bias, g)
    y = device.empty((g.batch, *g.output_size, g.outputs))
    stem = _stem(g.taps)
    packed = _packed_for_forward(stem, weight, g)
    _gather(stem, x, packed, bias, y, g, backward=False)
    return y


def backward_input(dy: Array, weight: Array, g: ConvSizes) -> Array:
    """Return dx (N, H, W, C) of dy (N, P, Q, K)."""
    weight = device.dense(weight)
    if conv_depthwise.serves(g):
        return conv_depthwise.backward_input(dy, weight, g)
    dx = device.empty((g.batch, *g.input_size, g.inputs))
    stem = _stem(g.outputs // g.groups * math.prod(g.kernel_size))
    packed = _packed_for_backward(stem, weight, g)
    _gather(stem, dy, packed, None, dx, g, backward=True)
    return dx


def _packed_for_forward(stem: str, weight: Array, g: ConvSizes) -> Array:
    """Return the weight as (groups, taps, inputs, outputs of a group), these in fours.

    Inputs come in pairs, and in each outputs, where _are_pairs.
    """
    outputs, inputs, taps = _of_a_group(g)
    step, pairs = -(-outputs // 4) * 4, _are_pairs(stem, inputs)
    packed = device.empty((g.groups, taps, inputs // (1 + pairs), step * (1 + pairs)))
    grid = (-(-inputs * taps // 32), -(-step // _PACKED), g.groups)
    flags = stem == TF32, pairs
    arguments = [weight, packed, *map(np.int32, (outputs, inputs, taps, step, *flags))]
    device.launch("conv_weight", "pack_for_forward", grid, (32, 8), arguments)
    return packed


def _packed_for_backward(stem: str, weight: Array, g: ConvSizes) -> Array:
    """Return the weight as (groups, taps, outputs, inputs of a group), these in fours.

    Outputs come in pairs, and in each inputs, where _are_pairs.
    """
    outputs, inputs, taps = _of_a_group(g)
    pairs, rounded = _are_pairs(stem, outputs), stem == TF32
    if taps == 1 and inputs % 4 == 0 and not (pairs or rounded):
        return at_vectors(weight).reshape(g.groups, 1, outputs, inputs)
    step = -(-inputs // 4) * 4
    packed = device.empty((g.groups, taps, outputs // (1 + pairs), step * (1 + pairs)))
    flags = rounded, pairs
    arguments = [weight, packed, *map(np.int32, (outputs, inputs, taps, step, *flags))]
    device.launch("conv_weight", "pack_for_backward", (outputs, g.groups), 256, arguments)
    return packed


def backward_weight(
    dy: Array, x: Array, g: ConvSizes, *, need_dbias: bool
) -> tuple[Array, Array | None]:
    """Return dW (K, C / groups, kH, kW) of channels-last dy and x, and dbias if it is asked for."""
    bias_sums = dbias = None
    if conv_depthwise.serves(g):
        sums, dbias = conv_depthwise.backward_weight(dy, x, g, need_dbias=need_dbias)
    else:
        sums, bias_sums = _weight_sums(dy, x, g, need_dbias)
        dbias = device.empty((g.outputs,)) if need_dbias else None
    _, inputs, taps = _of_a_group(g)
    dweight = device.empty((g.outputs, inputs, *g.kernel_size))
    parts = sums.shape[0]
    grid: Any
    if parts < _MANY_PARTS:
        name, (grid, block) = "finish_weight", device.spread(dweight.size)
    else:
        name, grid, block = "finish_weight_of_many", -(-(dweight.size + g.outputs) // 32), (32, 8)
    written = None if bias_sums is None else dbias
    counts = map(np.int32, (g.outputs, inputs, taps, parts))
    device.launch("conv_weight", name, grid, block, [sums, bias_sums, dweight, written, *counts])
    return dweight, dbias


def _gather(
    stem: str,
    source: Array,
    packed: Array,
    bias: Array | None,
    target: Array,
    g: ConvSizes,
    *,
    backward: bool,
) -> None:
    """Write y, or dx, a sum over the pixels of ``source`` that a kernel's taps meet."""
    batch, height, width, channels = target.shape
    phases = g.stride if backward else (1, 1)
    pixels = batch * -(-height // phases[0]) * -(-width // phases[1])
    columns, count = channels // g.groups, g.groups * phases[0] * phases[1]
    taps = g.kernel_size[0] * g.kernel_size[1]
    terms = source.shape[3] // g.groups * taps
    source, vector = at_vectors(source), _vector(source, g.groups)
    steps = -(-terms // (count // g.groups * DEPTH))
    tile, parts = tile_and_parts(
        stem, GATHER_TILES[vector], pixels, columns, count, steps, target.size, taps,
        device.multiprocessors(), device.shared_limit(),
    )  # fmt: skip
    result = target if parts == 1 else device.empty((parts, *target.shape))
    arguments = [source, packed, bias, result, *map(np.int32, (
        *source.shape, *target.shape[1:], packed.shape[3], g.groups,
        *g.kernel_size, *g.stride, *g.padding, *g.dilation, backward, parts,
    ))]  # fmt: skip
    device.launch(
        stem,
        f"conv2d_gather_{tile.rows}x{tile.columns}_v{vector}",
        (tile.blocks(pixels, columns), count, parts),
        32 * tile.warps(stem),
        arguments,
        shared=tile.shared(stem, taps),
    )
    if parts > 1:
        sum_parts(result, target, bias)


def _weight_sums(dy: Array, x: Array, g: ConvSizes, need_dbias: bool) -> tuple[Array, Array | None]:
    """Return dW (parts, K, kH, kW, C / groups) as parts of sums over pixels, and dbias likewise."""
    outputs, inputs, taps = _of_a_group(g)
    columns, pixels = taps * inputs, g.batch * g.positions
    dy, x = at_vectors(dy), at_vectors(x)
    vectors = _vector(dy, g.groups), _vector(x, g.groups)
    if vectors[0] == 1:
        vectors = (1, 1)
    steps = -(-pixels // DEPTH)
    stem = _stem(pixels)
    tile, parts = tile_and_parts(
        stem, WEIGHT_TILES[vectors], outputs, columns, g.groups, steps, g.outputs * columns, 0,
        device.multiprocessors(), device.shared_limit(),
    )  # fmt: skip
    parts = max(parts, -(-steps // _MOST_STEPS))
    if parts > max(_MANY_PARTS, _MOST_SUMS // (g.outputs * columns)) and g.batch > 1:
        return _weight_sums_of_halves(dy, x, g, need_dbias)
    sums = device.empty((parts, g.outputs, *g.kernel_size, inputs))
    bias_sums = device.empty((parts, g.outputs)) if need_dbias else None
    arguments = [dy, x, sums, bias_sums, *map(np.int32, (
        *x.shape, *dy.shape[1:], g.groups, *g.kernel_size, *g.stride, *g.padding, *g.dilation,
        parts,
    ))]  # fmt: skip
    device.launch(
        stem,
        f"conv2d_weight_{tile.rows}x{tile.columns}_v{vectors[0]}{vectors[1]}",
        (tile.blocks(outputs, columns), g.groups, parts),
        32 * tile.warps(stem),
        arguments,
        shared=tile.shared(stem, 0),
    )
    return sums, bias_sums


def _weight_sums_of_halves(
    dy: Array, x: Array, g: ConvSizes, need_dbias: bool
) -> tuple[Array, Array | None]:
    """Return the same in two parts, those of either half of the batch summed at once."""
    _, inputs, _ = _of_a_group(g)
    sums = device.empty((2, g.outputs, *g.kernel_size, inputs))
    bias_sums = device.empty((2, g.outputs)) if need_dbias else None
    half = g.batch // 2
    for i, images in enumerate((slice(half), slice(half, None))):
        of_half = g._replace(batch=len(dy[images]))
        parts, bias_parts = _weight_sums(dy[images], x[images], of_half, need_dbias)
        sum_parts(parts, sums[i])
        if bias_sums is not None:
            sum_parts(bias_parts, bias_sums[i])
    return sums, bias_sums


def _of_a_group(g: ConvSizes) -> tuple[int, int, int]:
    """Return the outputs and inputs of a group, and the taps of a kernel."""
    return g.outputs // g.groups, g.inputs // g.groups, g.kernel_size[0] * g.kernel_size[1]


def _are_pairs(stem: str, channels: int) -> bool:
    """Return whether products gathered from a group of so many channels want weights in pairs."""
    return stem != FMA and channels % 4 == 0


def _vector(x: Array, groups: int) -> int:
    """Return how many channels of x (N, H, W, C) can be copied at a time, within a group."""
    return 4 if x.shape[3] % (4 * groups) == 0 else 1


def _stem(terms: int) -> str:
    """Return the source of the products for sums of so many terms."""
    if not device.supports_tensor_cores():
        return FMA
    if settings.tf32:
        return TF32
    return THREE_TERMS if settings.three_terms and terms > _FEW_TERMS else FMA


KERNELS = {
    "conv2d_forward": conv2d_forward,
    "conv2d_backward": conv2d_backward,
    "conv2d_backward_input": conv2d_backward_input,
    "conv2d_backward_weight": conv2d_backward_weight,
}
