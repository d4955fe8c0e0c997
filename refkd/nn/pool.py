"""Pooling layers: maxima and means over windows of images, without parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn.checks import check_switch, set_pairs
from refkd.nn.layer import Arrays, Layer, check_no_taps
from refkd.ops.adaptive_pool import adaptive_avg_pool2d_backward, adaptive_avg_pool2d_forward
from refkd.ops.avg_pool import avg_pool2d_backward, avg_pool2d_forward
from refkd.ops.max_pool import max_pool2d_backward, max_pool2d_forward
from refkd.ops.taps import check_padding
from refkd.ops.window import Size

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d"]


class MaxPool2dCache(NamedTuple):
    indices: Array
    input_shape: tuple[int, int, int, int]


class AvgPool2dCache(NamedTuple):
    input_shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class MaxPool2d(Layer):
    """The largest value of each window of images (N, C, H, W).

    Attributes
    ----------
    kernel_size : int or (int, int)
    stride : int, (int, int) or None
        None: windows side by side, that is ``kernel_size``.
    padding, dilation : int or (int, int)
        Padding never is the maximum; it is at most half the kernel.
    ceil_mode : bool
        Whether a last window that reaches beyond the padded image counts.

    Raises
    ------
    ConfigError
        On construction, for a number out of range or a switch that is no bool.

    See Also
    --------
    refkd.ops.max_pool2d_forward
    """

    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0
    dilation: Size = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel_size)
        set_pairs(self, kernel_size=1, stride=1, padding=0, dilation=1)
        check_padding("MaxPool2d", self.kernel_size, self.padding)
        check_switch("MaxPool2d", "ceil_mode", self.ceil_mode)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, MaxPool2dCache]:
        y, indices = max_pool2d_forward(
            x,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )
        return y, MaxPool2dCache(indices, tuple(x.shape))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: MaxPool2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        return max_pool2d_backward(dy, cache.indices, input_shape=cache.input_shape), {}


@dataclass(frozen=True)
class AvgPool2d(Layer):
    """The mean of each window of images (N, C, H, W).

    Attributes
    ----------
    kernel_size : int or (int, int)
    stride : int, (int, int) or None
        None: windows side by side, that is ``kernel_size``.
    padding : int or (int, int)
        At most half the kernel.
    ceil_mode : bool
        Whether a last window that reaches beyond the padded image counts.
    count_include_pad : bool
        Whether the zeros of the padding count in the mean.

    Raises
    ------
    ConfigError
        On construction, for a number out of range or a switch that is no bool.

    See Also
    --------
    refkd.ops.avg_pool2d_forward
    """

    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel_size)
        set_pairs(self, kernel_size=1, stride=1, padding=0)
        check_padding("AvgPool2d", self.kernel_size, self.padding)
        check_switch("AvgPool2d", "ceil_mode", self.ceil_mode)
        check_switch("AvgPool2d", "count_include_pad", self.count_include_pad)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of both kernels."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
        }

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, AvgPool2dCache]:
        return avg_pool2d_forward(x, **self.options()), AvgPool2dCache(tuple(x.shape))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: AvgPool2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        shape = cache.input_shape
        return avg_pool2d_backward(dy, input_shape=shape, **self.options()), {}


@dataclass(frozen=True)
class AdaptiveAvgPool2d(Layer):
    """Means over windows chosen so that the output is of a given size.

    Attributes
    ----------
    output_size : int or (int, int)
        1 is the mean over the whole image.

    Raises
    ------
    ConfigError
        On construction, if it is below 1.

    See Also
    --------
    refkd.ops.adaptive_avg_pool2d_forward
    """

    output_size: Size

    def __post_init__(self) -> None:
        set_pairs(self, output_size=1)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, AvgPool2dCache]:
        y = adaptive_avg_pool2d_forward(x, output_size=self.output_size)
        return y, AvgPool2dCache(tuple(x.shape))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: AvgPool2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        return adaptive_avg_pool2d_backward(dy, input_shape=cache.input_shape), {}
