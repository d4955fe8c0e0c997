"""Max-pooling that remembers the tap of each maximum in a byte, where the kernels take eight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import MaxPool2d
from refkd.nn.layer import Arrays, check_no_taps
from refkd.ops.taps import check_pooled
from refkd.ops.window import Pair, output_size
from refkd_numba import pool

__all__ = ["FusedMaxPool2d"]


class FusedMaxPool2dCache(NamedTuple):
    taps: Array
    input_shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class FusedMaxPool2d(MaxPool2d):
    """A MaxPool2d of at most 255 taps, on channels-last images."""

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, FusedMaxPool2dCache]:
        y, taps = pool.max_pool_compact_forward(x, *self._windows(), self._count(x))
        return y, FusedMaxPool2dCache(taps, x.shape)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        return pool.max_pool_infer(x, *self._windows(), self._count(x))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: FusedMaxPool2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        dx = pool.max_pool_compact_backward(dy, cache.taps, cache.input_shape, *self._windows())
        return dx, {}

    def _windows(self) -> tuple[Pair, Pair, Pair, Pair]:
        return self.kernel_size, self.stride, self.padding, self.dilation

    def _count(self, x: Array) -> Pair:
        plane = check_pooled("MaxPool2d", x)
        return output_size("MaxPool2d", plane, *self._windows(), ceil_mode=self.ceil_mode)
