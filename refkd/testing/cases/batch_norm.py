"""Cases for :mod:`refkd.ops.batch_norm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_SHAPES = {
    "2-D": (5, 3),
    "3-D": (3, 2, 4),
    "4-D": (2, 3, 2, 3),
    "5-D": (2, 2, 1, 2, 3),
    "one channel": (4, 1, 2),
    "batch of one": (1, 2, 3, 2),
    "one pixel": (6, 3, 1, 1),
}


def _inputs(*shape: int, running: bool = False, mean: float = 0.5) -> Inputs:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        channels = shape[1]
        return {
            "x": mean + 2 * rng.standard_normal(shape),
            "weight": rng.uniform(0.5, 2, size=channels) * rng.choice([-1.0, 1.0], size=channels),
            "bias": rng.standard_normal(channels),
            "running_mean": rng.standard_normal(channels) if running else None,
            "running_var": rng.uniform(0.1, 3, size=channels) if running else None,
        }

    return inputs


def _one_channel_constant(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _inputs(4, 3, 2)(rng)
    drawn["x"][:, 1] = -0.7
    return drawn


def _one_weight_zero(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _inputs(4, 3)(rng)
    drawn["weight"][2] = 0.0
    return drawn


def _case(label: str, inputs: Inputs, *, running: bool = False, eps: float = 1e-5) -> PairCase:
    return PairCase(
        "batch_norm",
        label,
        inputs,
        ("x", "weight", "bias"),
        outputs=("y", "mean", "var", "rstd"),
        options={"eps": eps},
        backward_only={"batch_statistics": not running},
    )


CASES = (
    *(_case(label, _inputs(*shape)) for label, shape in _SHAPES.items()),
    *(
        _case(f"{label}, running statistics", _inputs(*shape, running=True), running=True)
        for label, shape in _SHAPES.items()
    ),
    # With two values the gradient is a multiple of eps, and else cancels to rounding.
    _case("two values", _inputs(2, 3), eps=0.5),
    _case("one value, running statistics", _inputs(1, 3, running=True), running=True),
    _case("empty batch, running statistics", _inputs(0, 3, running=True), running=True),
    _case("large eps", _inputs(4, 3, 2), eps=10.0),
    _case("mean of 1e3", _inputs(4, 3, 5, mean=1e3)),
    _case("one channel constant", _one_channel_constant),
    _case("one weight zero", _one_weight_zero),
)
