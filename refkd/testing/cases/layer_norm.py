"""Cases for :mod:`refkd.ops.layer_norm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_SHAPES = {
    "1-D": (5,),
    "2-D": (3, 6),
    "3-D": (2, 3, 4),
    "4-D": (2, 2, 3, 5),
    "batch of one": (1, 6),
    "empty batch": (0, 4),
}


def _inputs(*shape: int, mean: float = 0.5) -> Inputs:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        width = shape[-1]
        return {
            "x": mean + 2 * rng.standard_normal(shape),
            "weight": rng.uniform(0.5, 2, size=width) * rng.choice([-1.0, 1.0], size=width),
            "bias": rng.standard_normal(width),
        }

    return inputs


def _one_row_constant(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _inputs(3, 5)(rng)
    drawn["x"][1] = -0.7
    return drawn


def _case(label: str, inputs: Inputs, eps: float = 1e-5) -> PairCase:
    return PairCase(
        "layer_norm",
        label,
        inputs,
        ("x", "weight", "bias"),
        outputs=("y", "mean", "rstd"),
        options={"eps": eps},
    )


CASES = (
    *(_case(label, _inputs(*shape)) for label, shape in _SHAPES.items()),
    _case("two features", _inputs(3, 2), eps=0.5),
    _case("large eps", _inputs(3, 6), eps=10.0),
    _case("mean of 1e3", _inputs(3, 8, mean=1e3)),
    _case("one row constant", _one_row_constant),
)
