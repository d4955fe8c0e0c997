"""The two-dimensional convolution layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError
from refkd.nn.checks import check_counts, check_switch, set_pairs
from refkd.nn.init import Initializer, Uniform, draw_as
from refkd.nn.layer import Arrays, Layer, Shapes, check_no_taps
from refkd.ops.conv import conv2d_backward, conv2d_forward
from refkd.ops.window import Size, as_pair

__all__ = ["Conv2d"]


class Conv2dCache(NamedTuple):
    x: Array


@dataclass(frozen=True)
class Conv2d(Layer):
    """Cross-correlate images (N, in, H, W) with a bank of filters; see the kernel.

    Attributes
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or (int, int)
        One number for both axes, or (vertical, horizontal); kept as pairs.
    groups : int
        Input and output channels are cut into as many groups that do not see each other.
    bias : bool
        Whether a number is added to each output channel.
    initializer : Initializer
        Default: as ``torch.nn.Conv2d``.

    Raises
    ------
    ConfigError
        On construction, for a number out of range, channels that do not divide into the
        groups, or a bias that is neither true nor false.

    See Also
    --------
    refkd.ops.conv2d_forward
    """

    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    initializer: Initializer = field(default=Uniform())

    def __post_init__(self) -> None:
        check_counts(
            "Conv2d",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            groups=self.groups,
        )
        set_pairs(self, kernel_size=1, stride=1, padding=0, dilation=1)
        check_switch("Conv2d", "bias", self.bias)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigError(
                f"Conv2d: groups must divide both channel numbers, got groups={self.groups} "
                f"for {self.in_channels} and {self.out_channels} channels"
            )

    def shapes(self) -> tuple[Shapes, Shapes]:
        kernel = as_pair("Conv2d", "kernel_size", self.kernel_size, 1)
        shapes: Shapes = {"weight": (self.out_channels, self.in_channels // self.groups, *kernel)}
        if self.bias:
            shapes["bias"] = (self.out_channels,)
        return shapes, {}

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return draw_as(dtype, self.initializer, rng, self.shapes()[0]), {}

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of both kernels."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, Conv2dCache]:
        bias = params["bias"] if self.bias else None
        return conv2d_forward(x, params["weight"], bias, **self.options()), Conv2dCache(x)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: Conv2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        dx, dweight, dbias = conv2d_backward(
            dy, cache.x, params["weight"], need_dx=need_dx, **self.options()
        )
        return dx, {"weight": dweight, "bias": dbias} if self.bias else {"weight": dweight}
