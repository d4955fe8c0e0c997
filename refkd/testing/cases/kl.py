"""Cases for :mod:`refkd.losses.kl`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs, normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(
    label: str,
    inputs: Inputs,
    *,
    gradients: tuple[str | None, str | None] = ("p_logits", "q_logits"),
    backward_only: dict[str, bool] | None = None,
    **options: object,
) -> PairCase:
    return PairCase(
        "softmax_kl",
        label,
        inputs,
        gradients,
        outputs=("loss", "log_p", "log_q"),
        options=options,
        backward_only=backward_only or {},
    )


def _logits(*shape: int, scale: float = 2.0) -> Inputs:
    return normal_like(scale=scale, p_logits=shape, q_logits=shape)


def _far_apart(rng: np.random.Generator) -> dict[str, Any]:
    # One moderate row beside them: gradients of certain rows underflow.
    return {
        "p_logits": np.array([[1e4, -1e4, 0.0], [-1e4, 9e3, 1e4], [3.0, 1.0, 2.0]]),
        "q_logits": np.array([[1e4, 0.0, -1e4], [1e4, 9e3, -1e4], [1.0, 1.0, -1.0]]),
    }


CASES = (
    *(
        _case(f"{r}, temperature {t}", _logits(4, 5), reduction=r, temperature=t)
        for r in ("batchmean", "mean", "sum", "none")
        for t in (1.0, 4.0)
    ),
    _case("temperature 0.5", _logits(4, 5), temperature=0.5),
    _case("temperature 20", _logits(4, 5), temperature=20.0),
    _case("1-D", _logits(5)),
    _case("1-D, none", _logits(5), reduction="none"),
    _case("3-D", _logits(2, 3, 4)),
    _case("3-D, none", _logits(2, 3, 4), reduction="none"),
    _case("4-D, mean", _logits(2, 2, 2, 3), reduction="mean"),
    _case("batch of one", _logits(1, 6)),
    _case("one class", _logits(4, 1)),
    _case("logits of 1e4", _far_apart),
    _case("logits of 1e4, temperature 4", _far_apart, temperature=4.0),
    _case(
        "p detached",
        _logits(4, 5),
        gradients=(None, "q_logits"),
        backward_only={"need_dp": False},
    ),
    _case(
        "q detached",
        _logits(4, 5),
        gradients=("p_logits", None),
        backward_only={"need_dq": False},
    ),
)
