"""Cases for :mod:`refkd.losses.kd`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_HINTON = {"temperature": 4.0, "hard_weight": 0.3, "soft_weight": 0.7 * 16}


def _inputs(
    batch: int, classes: int, *, labels: str | None = "int64", scale: float = 2.0
) -> Inputs:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        drawn = rng.integers(classes, size=batch)
        return {
            "student_logits": scale * rng.standard_normal((batch, classes)),
            "teacher_logits": scale * rng.standard_normal((batch, classes)),
            "labels": None if labels is None else drawn.astype(labels),
        }

    return inputs


def _case(label: str, inputs: Inputs, **options: object) -> PairCase:
    return PairCase(
        "softmax_kd",
        label,
        inputs,
        ("student_logits",),
        outputs=("loss", "hard", "soft", "q", "s", "t"),
        options={**_HINTON, **options},
    )


CASES = (
    *(
        _case(f"{r}, temperature {t}", _inputs(4, 5), reduction=r, temperature=t)
        for r in ("batchmean", "mean", "sum")
        for t in (0.5, 1.0, 7.0, 20.0)
    ),
    _case("hard term alone", _inputs(4, 5), soft_weight=0.0),
    _case("soft term alone, labels given", _inputs(4, 5), hard_weight=0.0),
    _case("soft term alone, no labels", _inputs(4, 5, labels=None), hard_weight=0.0),
    _case("both weights zero", _inputs(4, 5), hard_weight=0.0, soft_weight=0.0),
    _case("int32 labels", _inputs(4, 5, labels="int32")),
    _case("uint8 labels", _inputs(4, 5, labels="uint8")),
    _case("batch of one", _inputs(1, 6)),
    _case("one class", _inputs(4, 1)),
    _case("logits of 1e4", _inputs(4, 5, scale=1e4)),
)
