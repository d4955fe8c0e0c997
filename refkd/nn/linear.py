"""The fully connected layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn.checks import check_counts, check_switch
from refkd.nn.init import Initializer, Uniform, draw_as
from refkd.nn.layer import Arrays, Layer, Shapes, check_no_taps
from refkd.ops.linear import linear_backward, linear_forward

__all__ = ["Linear"]


class LinearCache(NamedTuple):
    x: Array


@dataclass(frozen=True)
class Linear(Layer):
    """y = x Wᵀ + b over the last axis.

    Attributes
    ----------
    in_features, out_features : int
    bias : bool
        Whether there is a b.
    initializer : Initializer
        Default: as ``torch.nn.Linear``, W and b uniform in ±1/√in_features.

    Raises
    ------
    ConfigError
        On construction, if a width is not a positive integer, or bias neither true nor false.
    """

    in_features: int
    out_features: int
    bias: bool = True
    initializer: Initializer = field(default=Uniform())

    def __post_init__(self) -> None:
        check_counts("Linear", in_features=self.in_features, out_features=self.out_features)
        check_switch("Linear", "bias", self.bias)

    def shapes(self) -> tuple[Shapes, Shapes]:
        shapes: Shapes = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        return shapes, {}

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return draw_as(dtype, self.initializer, rng, self.shapes()[0]), {}

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, LinearCache]:
        bias = params["bias"] if self.bias else None
        return linear_forward(x, params["weight"], bias), LinearCache(x)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: LinearCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        dx, dweight, dbias = linear_backward(dy, cache.x, params["weight"], need_dx=need_dx)
        return dx, {"weight": dweight, "bias": dbias} if self.bias else {"weight": dweight}
