"""Cases for :mod:`refkd.ops.activation`."""

from __future__ import annotations

import numpy as np

from refkd.testing.cases._draw import Inputs, away_from_zero, batched_shapes
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

# Both tails to where the derivative underflows, and the centre.
_EXTREMES = (-1e4, -750.0, -40.0, -6.5, -1e-8, 0.0, 1e-300, 0.3, 5.9, 37.0, 710.0, 1e4)


def _pointwise(pair: str, **options: str) -> list[PairCase]:
    suffix = "".join(f", {name} {value}" for name, value in options.items())
    cases = [
        PairCase(pair, label + suffix, _moderate(*shape), ("x",), options=options)
        for label, shape in batched_shapes.items()
    ]
    extremes = PairCase(
        pair, f"extremes{suffix}", lambda rng: {"x": np.array(_EXTREMES)}, ("x",), options=options
    )
    return [*cases, extremes]


def _moderate(*shape: int) -> Inputs:
    # An entry alone in a tail has nothing but cancelled digits for a derivative.
    return lambda rng: {"x": np.asarray(rng.uniform(-2, 2, size=shape))}


def _relu(label: str, shape: tuple[int, ...]) -> PairCase:
    return PairCase("relu", label, lambda rng: {"x": away_from_zero(*shape)(rng)}, ("x",))


CASES = (
    *(_relu(label, shape) for label, shape in batched_shapes.items()),
    PairCase("relu", "empty", lambda rng: {"x": np.zeros((0, 3))}, ("x",)),
    *_pointwise("sigmoid"),
    *_pointwise("tanh"),
    *_pointwise("silu"),
    *_pointwise("gelu", approximate="none"),
    *_pointwise("gelu", approximate="tanh"),
)
