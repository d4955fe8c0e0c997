"""Geometries of convolutions: sizes, no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from refkd.errors import ConfigError, ShapeError
from refkd.testing.strategies._draw import check_sizes

__all__ = ["ConvGeometry", "conv_geometries"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of a two-dimensional convolution; pairs are (vertical, horizontal).

    Attributes
    ----------
    batch, in_channels, out_channels : int
    input_size, kernel_size, stride : (int, int)
    padding : (int, int)
        Zeros on either side.
    dilation : (int, int)
        Distance between taps of the kernel.
    groups : int
        Divides both channels; equal to ``in_channels`` for a depthwise convolution.

    Raises
    ------
    ConfigError
        If ``groups`` does not divide the channels.
    ShapeError
        If the dilated kernel does not fit into the padded input.
    """

    batch: int
    in_channels: int
    out_channels: int
    input_size: Pair
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigError(
                f"ConvGeometry: groups={self.groups} must divide in_channels="
                f"{self.in_channels} and out_channels={self.out_channels}"
            )
        if min(self.output_size) < 1:
            raise ShapeError(
                f"ConvGeometry: kernel_size={self.kernel_size} with dilation={self.dilation} "
                f"does not fit into input_size={self.input_size} with padding={self.padding}"
            )

    @property
    def output_size(self) -> Pair:
        """⌊(n + 2p − d(k − 1) − 1)/s⌋ + 1 along each axis."""
        vertical, horizontal = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.input_size,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return vertical, horizontal

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """(N, C_in, H, W)."""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(C_out, C_in / groups, kH, kW)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def bias_shape(self) -> tuple[int]:
        """(C_out,)."""
        return (self.out_channels,)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, H_out, W_out)."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments: stride, padding, dilation, groups."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def conv_geometries(
    *, max_batch: int = 3, max_channels: int = 6, max_size: int = 8, max_kernel: int = 3
) -> st.SearchStrategy[ConvGeometry]:
    """Return a strategy for convolutions with an output of at least 1x1.

    Grouped and depthwise ones, strides and dilations up to 3, paddings up to 2, kernels
    as large as the padded input, and pairs of unequal numbers are among them. The
    simplest is one pixel, one channel and a kernel of one.

    Parameters
    ----------
    max_batch, max_channels, max_size : int
        The largest N, C_in or C_out, and H or W.
    max_kernel : int
        The largest kH or kW.

    Raises
    ------
    ConfigError
        If a maximum is below 1.

    Examples
    --------
    >>> geometry = ConvGeometry(2, 4, 8, (5, 5), (3, 3), stride=(2, 2), groups=2)
    >>> geometry.weight_shape, geometry.y_shape
    ((8, 2, 3, 3), (2, 8, 2, 2))
    """
    check_sizes(
        "conv_geometries",
        max_batch=(1, max_batch),
        max_channels=(1, max_channels),
        max_size=(1, max_size),
        max_kernel=(1, max_kernel),
    )
    return _conv_geometry(max_batch, max_channels, max_size, max_kernel)


@st.composite
def _conv_geometry(
    draw: st.DrawFn, max_batch: int, max_channels: int, max_size: int, max_kernel: int
) -> ConvGeometry:
    groups = draw(st.integers(1, max_channels))
    in_each, out_each = (draw(st.integers(1, max_channels // groups)) for _ in range(2))
    axes = [draw(_conv_axis(max_size, max_kernel)) for _ in range(2)]
    size, kernel, stride, padding, dilation = zip(*axes, strict=True)
    return ConvGeometry(
        draw(st.integers(1, max_batch)),
        groups * in_each,
        groups * out_each,
        size,
        kernel,
        stride,
        padding,
        dilation,
        groups,
    )


@st.composite
def _conv_axis(draw: st.DrawFn, max_size: int, max_kernel: int) -> tuple[int, int, int, int, int]:
    padding = draw(st.integers(0, 2))
    room = max_size + 2 * padding
    kernel = draw(st.integers(1, min(max_kernel, room)))
    fits = 3 if kernel == 1 else min(3, (room - 1) // (kernel - 1))
    dilation = draw(st.integers(1, fits))
    smallest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return (
        draw(st.integers(smallest, max_size)),
        kernel,
        draw(st.integers(1, 3)),
        padding,
        dilation,
    )
