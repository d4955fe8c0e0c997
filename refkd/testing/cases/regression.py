"""Cases for :mod:`refkd.losses.regression`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs, batched_shapes, normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_REDUCTIONS = ("mean", "sum", "none")


def _case(pair: str, label: str, inputs: Inputs, **options: object) -> PairCase:
    return PairCase(pair, label, inputs, ("input", "target"), outputs=("loss",), options=options)


def _both(*shape: int) -> Inputs:
    return normal_like(scale=2.0, input=shape, target=shape)


def _off_the_joint(delta: float, *shape: int) -> Inputs:
    """Draw differences of either sign inside δ and beyond, none within δ/10 of it."""

    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        target = np.asarray(rng.standard_normal(shape))
        inside = rng.uniform(-0.9, 0.9, size=shape)
        beyond = rng.uniform(1.1, 3, size=shape) * rng.choice([-1.0, 1.0], size=shape)
        difference = np.where(rng.random(shape) < 0.5, inside, beyond)
        return {"input": np.asarray(target + delta * difference), "target": target}

    return inputs


CASES = (
    *(
        _case("mse", f"{label}, {r}", _both(*shape), reduction=r)
        for label, shape in batched_shapes.items()
        for r in _REDUCTIONS
    ),
    *(
        _case("huber", f"{label}, {r}", _off_the_joint(1.0, *shape), reduction=r)
        for label, shape in batched_shapes.items()
        for r in _REDUCTIONS
    ),
    *(_case("huber", f"delta {d}", _off_the_joint(d, 4, 5), delta=d) for d in (1e-3, 0.5, 100.0)),
)
