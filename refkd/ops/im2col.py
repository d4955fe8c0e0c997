"""The patches of a convolution (im2col): sizes, windows and their adjoint. No kernel is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from refkd.dispatch import Array
from refkd.errors import ConfigError, ShapeError
from refkd.ops.window import Pair, Size, as_pair, output_size
from refkd.threads import side_by_side

__all__ = [
    "ConvSizes",
    "add_windows",
    "check_groups",
    "check_output",
    "conv_sizes",
    "in_chunks",
    "windows",
]

_WORTH_A_THREAD, _PIECES = 1 << 18, 4
_PATCH_BYTES = 1 << 22  # of patches at a time: read again while they are in the cache


class ConvSizes(NamedTuple):
    """Sizes of a convolution, checked; pairs are (vertical, horizontal)."""

    batch: int
    inputs: int
    outputs: int
    groups: int
    input_size: Pair
    kernel_size: Pair
    output_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def taps(self) -> int:
        """How many values of x each output is a sum over."""
        return self.inputs // self.groups * math.prod(self.kernel_size)

    @property
    def positions(self) -> int:
        """How many outputs an image has in each channel."""
        return math.prod(self.output_size)


def conv_sizes(
    where: str,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> ConvSizes:
    """Return the sizes of a convolution.

    Raises
    ------
    ShapeError
        If a shape has not four axes, the channels do not match, or there is no output.
    ConfigError
        If an option is no integer or out of range, or the groups do not divide the channels.
    """
    if len(x_shape) != 4 or len(weight_shape) != 4:
        raise ShapeError(
            f"{where}: expected x (N, C, H, W) and weight (K, C / groups, kH, kW), got "
            f"{tuple(x_shape)} and {tuple(weight_shape)}"
        )
    batch, inputs, *input_size = map(int, x_shape)
    outputs, inputs_per_group, *kernel_size = map(int, weight_shape)
    check_groups(where, groups, x=inputs, y=outputs)
    if inputs_per_group * groups != inputs:
        raise ShapeError(
            f"{where}: weight has {inputs_per_group} input channels, x has {inputs} "
            f"(groups={groups})"
        )
    pairs = (
        as_pair(where, "stride", stride, 1),
        as_pair(where, "padding", padding, 0),
        as_pair(where, "dilation", dilation, 1),
    )
    size, taps = (input_size[0], input_size[1]), (kernel_size[0], kernel_size[1])
    if 0 in taps or not inputs:
        raise ShapeError(f"{where}: weight {tuple(weight_shape)} holds no value")
    out = output_size(where, size, taps, *pairs)
    return ConvSizes(batch, inputs, outputs, groups, size, taps, out, *pairs)


def check_groups(where: str, groups: int, **channels: int) -> None:
    """Raise ConfigError unless ``groups`` is a positive integer that divides the channels."""
    is_count = isinstance(groups, int) and not isinstance(groups, bool) and groups >= 1
    if not is_count or any(count % groups for count in channels.values()):
        given = " and ".join(f"{count} of {name}" for name, count in channels.items())
        raise ConfigError(
            f"{where}: groups must be an integer that divides the channels, {given}, got {groups!r}"
        )


def check_output(where: str, dy: Array, g: ConvSizes) -> None:
    """Raise ShapeError unless ``dy`` has the shape of the output."""
    expected = (g.batch, g.outputs, *g.output_size)
    if tuple(dy.shape) != expected:
        raise ShapeError(f"{where}: dy must have shape {expected}, got {tuple(dy.shape)}")


def in_chunks(
    xp: Any, function: Callable[[slice], Array], g: ConvSizes, itemsize: int
) -> Iterator[Array]:
    """Yield ``function(rows)`` for slices of the batch whose patches take about _PATCH_BYTES.

    On the host several are at work at a time, so there are a few of them where the work is
    worth a thread; a device has its own ways.
    """
    per_image = g.groups * g.taps * g.positions * itemsize
    step = max(1, _PATCH_BYTES // per_image)
    if g.batch * per_image > _WORTH_A_THREAD:
        step = min(step, -(-g.batch // _PIECES))
    slices = [slice(start, start + step) for start in range(0, g.batch, step)]
    on_host = getattr(xp, "__name__", "") == "numpy"
    return side_by_side(function, slices) if on_host else map(function, slices)


def windows(xp: Any, x: Array, g: ConvSizes) -> Array:
    """Return what the kernel sees, (n, C, P, Q, kH, kW): a view of x with its padding."""
    (top, left), (height, width) = g.padding, g.input_size
    if top or left:
        padded = xp.zeros((*x.shape[:2], height + 2 * top, width + 2 * left), x.dtype)
        padded[:, :, top : top + height, left : left + width] = x
        x = padded
    spans = tuple(d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True))
    views = xp.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    (sv, sh), (dv, dh) = g.stride, g.dilation
    return views[:, :, ::sv, ::sh, ::dv, ::dh]


def add_windows(xp: Any, columns: Array, g: ConvSizes) -> Array:
    """Return the adjoint of :func:`windows` for columns (n, C, kH, kW, P, Q)."""
    (top, left), (height, width) = g.padding, g.input_size
    (sv, sh), (dv, dh), (rows, cols) = g.stride, g.dilation, g.output_size
    dx = xp.zeros((*columns.shape[:2], height + 2 * top, width + 2 * left), columns.dtype)
    for i in range(g.kernel_size[0]):
        for j in range(g.kernel_size[1]):
            u, v = i * dv, j * dh
            dx[:, :, u : u + sv * rows : sv, v : v + sh * cols : sh] += columns[:, :, i, j]
    return dx[:, :, top : top + height, left : left + width]
