"""Max-pooling that remembers the tap of each maximum in a byte, where the kernels take eight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import MaxPool2d
from refkd.nn.layer import Arrays, check_no_taps
from refkd.nn.pool import MaxPool2dCache
from refkd.ops.window import Pair
from refkd_numba import pool
from refkd_numba.operands import are_float32

__all__ = ["FusedMaxPool2d"]


class FusedMaxPool2dCache(NamedTuple):
    taps: Array
    input_shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class FusedMaxPool2d(MaxPool2d):
    """A MaxPool2d of at most ``pool.MOST_TAPS`` taps, on channels-last images."""

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, FusedMaxPool2dCache | MaxPool2dCache]:
        count = self._count(x)
        if count is None:
            return super().forward(params, state, x, train=train, rng=rng)
        y, taps = pool.max_pool_compact_forward(x, *self._windows(), count)
        return y, FusedMaxPool2dCache(taps, x.shape)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        count = self._count(x)
        if count is None:
            return super().infer(params, state, x)
        return pool.max_pool_infer(x, *self._windows(), count)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: FusedMaxPool2dCache | MaxPool2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        if isinstance(cache, FusedMaxPool2dCache):
            if are_float32(dy) and dy.shape == cache.taps.shape:
                return pool.max_pool_compact_backward(dy, *cache, *self._windows()), {}
            cache = MaxPool2dCache(self._indices(cache), cache.input_shape)
        return super().backward(params, cache, dy)

    def _windows(self) -> tuple[Pair, Pair, Pair, Pair]:
        return self.kernel_size, self.stride, self.padding, self.dilation

    def _count(self, x: Array) -> Pair | None:
        """Return how many windows there are; None where the reference must judge."""
        plane = x.shape[2:] if are_float32(x) and x.ndim == 4 else None
        windows = pool.windows_of(plane, *self._windows(), self.ceil_mode)
        return None if windows is None else (windows[0].count, windows[1].count)

    def _indices(self, cache: FusedMaxPool2dCache) -> Array:
        """Return the positions of the maxima in their planes, as the reference has them."""
        kernel, stride, padding, dilation = self._windows()
        rows, columns = (
            np.arange(n) * s - p
            for n, s, p in zip(cache.taps.shape[2:], stride, padding, strict=True)
        )
        down, right = np.divmod(cache.taps.astype(np.int64), kernel[1])
        width = cache.input_shape[3]
        return (rows[:, None] + down * dilation[0]) * width + columns + right * dilation[1]
