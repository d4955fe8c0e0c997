"""Dropout as a layer: it draws the mask that the kernel applies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refkd.dispatch import Array, namespace
from refkd.errors import ConfigError, check_unit_interval
from refkd.nn.layer import Arrays, Layer, check_no_taps
from refkd.ops.dropout import dropout_backward, dropout_forward

__all__ = ["Dropout"]


class DropoutCache(NamedTuple):
    mask: Array | None  # None where nothing was dropped


@dataclass(frozen=True)
class Dropout(Layer):
    """Zero entries with probability p in training and scale the rest by 1/(1 − p).

    Attributes
    ----------
    p : float, in [0, 1]
        Drop probability. In evaluation the layer is the identity.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_unit_interval("Dropout", "p", self.p)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, DropoutCache]:
        if not train or self.p == 0:
            return x, DropoutCache(None)
        if rng is None:
            raise ConfigError(
                "Dropout.forward: train=True needs rng, a numpy.random.Generator; got None"
            )
        # Always float32 draws: the mask depends on the seed, not on the precision of x.
        mask = namespace(x).asarray(rng.random(x.shape, dtype=np.float32) >= self.p)
        return dropout_forward(x, mask, p=self.p), DropoutCache(mask)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: DropoutCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        return dy if cache.mask is None else dropout_backward(dy, cache.mask, p=self.p), {}
