"""The shortcut without parameters of residual networks, as a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn.checks import check_counts
from refkd.nn.layer import Arrays, Layer, check_no_taps
from refkd.ops.shortcut import padded_shortcut_backward, padded_shortcut_forward
from refkd.ops.window import as_pair

__all__ = ["PaddedShortcut"]


class PaddedShortcutCache(NamedTuple):
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class PaddedShortcut(Layer):
    """Every ``stride``-th row and column, between channels of zeros: option A of He et al.

    Attributes
    ----------
    stride : int
    zeros : (int, int)
        How many channels of zeros come before and after those of x.

    Raises
    ------
    ConfigError
        On construction, for a number out of range.

    See Also
    --------
    refkd.ops.padded_shortcut_forward
    """

    stride: int
    zeros: tuple[int, int]

    def __post_init__(self) -> None:
        check_counts("PaddedShortcut", stride=self.stride)
        zeros = as_pair("PaddedShortcut", "zeros", self.zeros, 0)
        object.__setattr__(self, "zeros", zeros)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, PaddedShortcutCache]:
        y = padded_shortcut_forward(x, stride=self.stride, zeros=self.zeros)
        return y, PaddedShortcutCache(tuple(x.shape))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: PaddedShortcutCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        dx = padded_shortcut_backward(
            dy, input_shape=cache.input_shape, stride=self.stride, zeros=self.zeros
        )
        return dx, {}
