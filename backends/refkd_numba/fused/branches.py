"""Branches joined and taken apart, without leaving channels-last memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.nn import Concat, Parallel
from refkd.nn.layer import Arrays, add_prefix, check_no_taps, split_by_prefix
from refkd.nn.parallel import ConcatCache, ParallelCache
from refkd_numba.join import add, concatenate_channels, split_channels

__all__ = ["FusedConcat", "FusedParallel"]


@dataclass(frozen=True)
class FusedParallel(Parallel):
    """A Parallel whose branches' cotangents of x are added by kernels."""

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ParallelCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        check_no_taps(self, taps)
        params_of, grads, total = split_by_prefix(params), {}, None
        for (name, layer), branch_cache, branch_dy in zip(
            self.branches, cache.children, dy, strict=True
        ):
            dx, branch_grads = layer.backward(
                params_of.get(name, {}), branch_cache, branch_dy, need_dx=need_dx
            )
            grads |= add_prefix(name, branch_grads)
            total = dx if total is None else add(total, dx)
        return total, grads


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
        if not isinstance(x, tuple) or any(part.ndim != 4 for part in x) or self.axis != 1:
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
        if dy.ndim != 4 or self.axis != 1 or not need_dx:
            return super().backward(params, cache, dy, need_dx=need_dx, taps=taps)
        return split_channels(dy, cache.sizes), {}
