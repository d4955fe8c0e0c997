"""Cases for :mod:`refkd.ops.dropout`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import batched_shapes
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(label: str, shape: tuple[int, ...], p: float) -> PairCase:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        x = np.asarray(rng.standard_normal(shape))
        return {"x": x, "mask": np.asarray(rng.random(shape) >= p)}

    return PairCase("dropout", label, inputs, ("x",), options={"p": p})


def _constant_mask(label: str, *, kept: bool) -> PairCase:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.standard_normal((2, 3)), "mask": np.full((2, 3), kept)}

    return PairCase("dropout", label, inputs, ("x",), options={"p": 0.3})


CASES = (
    *(_case(label, shape, 0.4) for label, shape in batched_shapes.items()),
    _case("p 0 is the identity", (3, 4), 0.0),
    _case("p 1 is zero", (3, 4), 1.0),
    _constant_mask("all kept", kept=True),
    _constant_mask("all dropped", kept=False),
)
