"""Evaluation some images at a time, so that what lies between two layers stays in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.nn.layer import Layer

__all__ = ["InParts"]

_BYTES = 1 << 22  # of images at a time; what the first layers make of them is some times that
_LEAST = 8  # images


@dataclass(frozen=True)
class InParts(Layer):
    """A network that is evaluated for a few images at a time; it does not learn.

    Attributes
    ----------
    network : Layer
        Says the same of an image whatever the images beside it.
    """

    network: Layer

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Any:
        step = max(_LEAST, _BYTES * len(x) // max(1, x.nbytes))
        if step >= len(x):
            return self.network.infer(params, state, x)
        outputs = [
            self.network.infer(params, state, x[first : first + step])
            for first in range(0, len(x), step)
        ]
        if isinstance(outputs[0], tuple):
            return tuple(map(np.concatenate, zip(*outputs, strict=True)))
        return np.concatenate(outputs)
