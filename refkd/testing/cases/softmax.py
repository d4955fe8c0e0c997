"""Cases for :mod:`refkd.ops.softmax`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _certain_rows(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": np.array([[1.0], [30.0], [30.0]]) * rng.standard_normal((3, 4))}


def _cases(pair: str) -> list[PairCase]:
    def case(label: str, shape: tuple[int, ...], scale: float = 2.0, **options: float) -> PairCase:
        return PairCase(pair, label, normal_like(scale=scale, x=shape), ("x",), options=options)

    ties = np.array([[1.0, 1.0, 1.0], [2.0, -1.0, 2.0]])
    far = np.array([[1e4, -1e4, 1e4 - 1, 0.0], [-1e4, -1e4, -1e4, -1e4]])
    return [
        case("1-D", (5,)),
        case("2-D", (3, 4)),
        case("3-D", (2, 3, 4)),
        case("4-D, channel axis", (2, 3, 2, 2), axis=1),
        case("4-D, last axis by a positive number", (2, 3, 2, 2), axis=3),
        case("over the batch", (3, 4), axis=0),
        case("batch of one", (1, 6)),
        case("one class", (4, 1)),
        case("temperature 0.5", (3, 4), temperature=0.5),
        case("temperature 7", (3, 4), temperature=7.0),
        case("temperature 20, first axis", (3, 4), axis=0, temperature=20.0),
        PairCase(pair, "one moderate and two certain rows", _certain_rows, ("x",)),
        PairCase(pair, "ties", lambda rng: {"x": ties.copy()}, ("x",)),
        PairCase(pair, "logits of 1e4", lambda rng: {"x": far.copy()}, ("x",)),
        PairCase(
            pair,
            "logits of 1e4, temperature 4",
            lambda rng: {"x": far.copy()},
            ("x",),
            options={"temperature": 4.0},
        ),
    ]


CASES = (*_cases("softmax"), *_cases("log_softmax"))
