"""Branches joined and taken apart, without leaving channels-last memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.nn import Concat, Parallel
from refkd.nn.layer import Arrays
from refkd.nn.parallel import ConcatCache
from refkd_numba.join import add, concatenate_channels, split_channels
from refkd_numba.operands import are_float32

__all__ = ["FusedConcat", "FusedParallel"]


@dataclass(frozen=True)
class FusedParallel(Parallel):
    """A Parallel whose branches' cotangents of x are added by a kernel."""

    def added(self, a: Any, b: Any) -> Any:
        return add(a, b) if are_float32(a, b) and a.ndim == 4 else super().added(a, b)


@dataclass(frozen=True)
class FusedConcat(Concat):
    """A Concat; one of images' channels stays channels-last."""

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: tuple[Array, ...],
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConcatCache]:
        if self.axis != 1 or not _fit_side_by_side(x):
            return super().forward(params, state, x, train=train, rng=rng)
        return concatenate_channels(x), ConcatCache(tuple(part.shape[1] for part in x))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ConcatCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[tuple[Array, ...] | None, Arrays]:
        served = self.axis == 1 and are_float32(dy) and dy.ndim == 4
        if not served or dy.shape[1] != sum(cache.sizes) or taps or not need_dx:
            return super().backward(params, cache, dy, need_dx=need_dx, taps=taps)
        return split_channels(dy, cache.sizes), {}


def _fit_side_by_side(x: Any) -> bool:
    """Return whether x is a tuple of float32 images that differ in their channels only."""
    if not isinstance(x, tuple) or not all(are_float32(part) and part.ndim == 4 for part in x):
        return False
    return len({(len(part), *part.shape[2:]) for part in x}) == 1
