"""Cases for :mod:`refkd.ops.group_norm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _inputs(*shape: int, mean: float = 0.5) -> Inputs:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        channels = shape[1]
        return {
            "x": mean + 2 * rng.standard_normal(shape),
            "weight": rng.uniform(0.5, 2, size=channels) * rng.choice([-1.0, 1.0], size=channels),
            "bias": rng.standard_normal(channels),
        }

    return inputs


def _one_group_constant(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _inputs(2, 4, 3)(rng)
    drawn["x"][1, :2] = -0.7
    return drawn


def _case(label: str, inputs: Inputs, num_groups: int, eps: float = 1e-5) -> PairCase:
    return PairCase(
        "group_norm",
        label,
        inputs,
        ("x", "weight", "bias"),
        outputs=("y", "mean", "rstd"),
        options={"num_groups": num_groups, "eps": eps},
    )


CASES = (
    *(_case(f"4-D, {g} groups", _inputs(2, 6, 2, 3), g) for g in (1, 2, 3, 6)),
    _case("2-D", _inputs(3, 8), 2),
    _case("3-D", _inputs(2, 4, 3), 2),
    _case("5-D", _inputs(2, 4, 2, 1, 2), 2),
    _case("batch of one", _inputs(1, 4, 3, 2), 2),
    _case("empty batch", _inputs(0, 4, 3), 2),
    _case("one channel", _inputs(3, 1, 4), 1),
    # With two values the gradient is nearly a multiple of eps: else it cancels to rounding.
    _case("two values", _inputs(3, 4), 2, eps=0.5),
    _case("large eps", _inputs(2, 4, 3), 2, eps=10.0),
    _case("mean of 1e3", _inputs(2, 4, 5, mean=1e3), 2),
    _case("one group constant", _one_group_constant, 2),
)
