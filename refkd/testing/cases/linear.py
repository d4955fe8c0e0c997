"""Cases for :mod:`refkd.ops.linear`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_LEADING = {
    "1-D input": (),
    "2-D input": (3,),
    "3-D input": (2, 3),
    "4-D input": (2, 2, 3),
    "batch of one": (1,),
    "empty batch": (0,),
}


def _case(
    label: str,
    leading: tuple[int, ...],
    *,
    features: tuple[int, int] = (4, 5),
    bias: bool = True,
    need_dx: bool = True,
) -> PairCase:
    n_in, n_out = features
    draw = normal_like(x=(*leading, n_in), weight=(n_out, n_in), bias=(n_out,))

    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        drawn = draw(rng)
        return drawn if bias else {**drawn, "bias": None}

    gradients = ("x" if need_dx else None, "weight", "bias" if bias else None)
    backward_only = {} if need_dx else {"need_dx": False}
    return PairCase("linear", label, inputs, gradients, backward_only=backward_only)


CASES = (
    *(_case(label, leading) for label, leading in _LEADING.items()),
    *(_case(f"{label}, no bias", leading, bias=False) for label, leading in _LEADING.items()),
    _case("square weight", (3,), features=(4, 4)),
    _case("one input feature", (3,), features=(1, 4)),
    _case("one output feature", (3,), features=(4, 1)),
    _case("dx not needed", (3,), need_dx=False),
)
