"""Max-pooling that remembers the tap of each maximum in a byte, where the kernels take eight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import MaxPool2d
from refkd.nn.layer import Arrays, check_no_taps
from refkd.ops.taps import check_pooled, pooling_windows
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled
from refkd_numba.layout import as_images, channels_last
from refkd_numba.team import share

__all__ = ["FusedMaxPool2d"]

_WORTH = 1 << 16
_NO_TAPS = np.empty((0, 0, 0, 0), np.uint8)


class FusedMaxPool2dCache(NamedTuple):
    taps: Array
    input_shape: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class FusedMaxPool2d(MaxPool2d):
    """A MaxPool2d of at most 256 taps, on channels-last images."""

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, FusedMaxPool2dCache]:
        y, taps, steps = self._pooled(x, keep_taps=True)
        return y, FusedMaxPool2dCache(taps, x.shape, steps)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        return self._pooled(x, keep_taps=False)[0]

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
        batch, channels, height, width = cache.input_shape
        dx = empty((batch, height, width, channels))
        share(
            _backward, channels_last(dy), cache.taps, dx, *cache.steps, worth=dx.size > _WORTH
        )
        return as_images(dx), {}

    def _pooled(self, x: Array, *, keep_taps: bool) -> tuple[Array, Array, tuple[int, ...]]:
        windows = pooling_windows(
            "MaxPool2d",
            check_pooled("MaxPool2d", x),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
        )
        rows, columns = windows
        steps = tuple(
            getattr(w, name) for name in ("kernel", "stride", "padding", "dilation") for w in windows
        )
        shape = (x.shape[0], rows.count, columns.count, x.shape[1])
        y, taps = empty(shape), empty(shape, np.uint8) if keep_taps else _NO_TAPS
        share(_forward, channels_last(x), y, taps, *steps, worth=x.size > _WORTH)
        return as_images(y), taps, steps


@compiled
def _forward(
    x, y, taps, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    thread, threads,
):  # fmt: skip
    """Write the maxima of x (N, H, W, C) into y (N, P, Q, C), and their taps, if there is room.

    Of equal values the first, and of a window with NaN the last NaN.
    """
    height, width = x.shape[1], x.shape[2]
    rows, columns = y.shape[1], y.shape[2]
    nowhere = np.empty(x.shape[3], np.uint8)
    for unit in range(thread, y.shape[0] * rows, threads):
        n = unit // rows
        p = unit - n * rows
        for q in range(columns):
            best = y[n, p, q]
            tap = taps[n, p, q] if taps.size else nowhere
            begun = False
            for i in range(kernel_h):
                h = p * stride_h + i * dilation_h - pad_h
                if h < 0 or h >= height:
                    continue
                for j in range(kernel_w):
                    w = q * stride_w + j * dilation_w - pad_w
                    if w < 0 or w >= width:
                        continue
                    values, number = x[n, h, w], np.uint8(i * kernel_w + j)
                    if not begun:
                        for c in range(best.size):
                            best[c] = values[c]
                        for c in range(best.size):
                            tap[c] = number
                        begun = True
                    elif taps.size:
                        for c in range(best.size):
                            value, least = values[c], best[c]
                            better = (value > least) | (value != value)
                            best[c] = value if better else least
                            tap[c] = number if better else tap[c]
                    else:
                        for c in range(best.size):
                            value, least = values[c], best[c]
                            best[c] = value if (value > least) | (value != value) else least


@compiled
def _backward(
    dy, taps, dx, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    thread, threads,
):  # fmt: skip
    """Write dx (N, H, W, C), an image at a time: dy where the tap of the maximum is."""
    height, width = dx.shape[1], dx.shape[2]
    for n in range(thread, dx.shape[0], threads):
        dx[n] = np.float32(0)
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                gradient, tap = dy[n, p, q], taps[n, p, q]
                for i in range(kernel_h):
                    h = p * stride_h + i * dilation_h - pad_h
                    if h < 0 or h >= height:
                        continue
                    for j in range(kernel_w):
                        w = q * stride_w + j * dilation_w - pad_w
                        if w < 0 or w >= width:
                            continue
                        target, number = dx[n, h, w], np.uint8(i * kernel_w + j)
                        for c in range(target.size):
                            target[c] += gradient[c] if tap[c] == number else np.float32(0)
