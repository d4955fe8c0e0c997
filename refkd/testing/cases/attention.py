"""Cases for :mod:`refkd.ops.attention`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs, normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _normal(
    batch: int, heads: int, queries: int, keys: int, width: int, value_width: int
) -> Inputs:
    return normal_like(
        q=(batch, heads, queries, width),
        k=(batch, heads, keys, width),
        v=(batch, heads, keys, value_width),
    )


def _certain_and_tied(rng: np.random.Generator) -> dict[str, Any]:
    """Draw scores of 0 and ±1e4, exact in float32: certain of a key, of two, of none."""
    q = np.array([[100.0, 0.0], [0.0, 100.0], [-100.0, 0.0], [0.0, 0.0]])
    k = np.array([[100.0, 100.0], [0.0, 100.0], [-100.0, 0.0]])
    return {"q": q[None, None], "k": k[None, None], "v": rng.standard_normal((1, 1, 3, 2))}


def _one_row_certain(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _normal(1, 2, 3, 4, 2, 3)(rng)
    drawn["q"][:, :, 1] *= 30
    return drawn


def _two_equal_keys(rng: np.random.Generator) -> dict[str, Any]:
    drawn = _normal(2, 1, 3, 4, 3, 2)(rng)
    drawn["k"][:, :, 1] = drawn["k"][:, :, 2]
    return drawn


def _case(label: str, inputs: Inputs, scale: float = 1.0) -> PairCase:
    return PairCase(
        "attention",
        label,
        inputs,
        ("q", "k", "v"),
        outputs=("y", "probabilities"),
        options={"scale": scale},
    )


CASES = (
    _case("self", _normal(2, 2, 4, 4, 3, 3), 1 / math.sqrt(3)),
    _case("more queries than keys", _normal(1, 2, 5, 2, 4, 4), 0.5),
    _case("more keys than queries", _normal(2, 1, 2, 5, 3, 3)),
    _case("values wider than keys", _normal(2, 3, 2, 3, 1, 4)),
    _case("values narrower than keys", _normal(1, 2, 3, 4, 5, 1), 1 / math.sqrt(5)),
    _case("one head of one example", _normal(1, 1, 3, 4, 2, 3)),
    _case("one key", _normal(2, 2, 3, 1, 4, 2)),
    _case("one query", _normal(2, 2, 1, 3, 4, 2)),
    _case("small scale", _normal(1, 2, 3, 4, 3, 2), 1e-3),
    _case("large scale", _normal(1, 2, 3, 4, 3, 2), 5.0),
    _case("scores of 1e4", _certain_and_tied),
    _case("one row certain", _one_row_certain),
    _case("two equal keys", _two_equal_keys),
    _case("empty batch", _normal(0, 2, 3, 4, 2, 2)),
    _case("no query", _normal(2, 1, 0, 3, 2, 2)),
)
