"""Cases for :mod:`refkd.losses.kl_without_log`."""

from __future__ import annotations

from refkd.testing.cases._draw import Inputs, normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(label: str, inputs: Inputs, **options: object) -> PairCase:
    return PairCase(
        "softmax_kl_without_log",
        label,
        inputs,
        ("student_logits",),
        outputs=("loss", "s", "t"),
        options=options,
    )


def _logits(*shape: int, scale: float = 2.0) -> Inputs:
    return normal_like(scale=scale, student_logits=shape, teacher_logits=shape)


CASES = (
    *(
        _case(f"{r}, temperature {t}", _logits(4, 5), reduction=r, temperature=t)
        for r in ("batchmean", "mean", "sum", "none")
        for t in (0.5, 1.0, 5.0, 20.0)
    ),
    _case("1-D", _logits(5)),
    _case("1-D, none", _logits(5), reduction="none"),
    _case("3-D", _logits(2, 3, 4)),
    _case("3-D, none", _logits(2, 3, 4), reduction="none"),
    _case("batch of one", _logits(1, 6)),
    _case("one class", _logits(4, 1)),
    _case("logits of 1e4, temperature 1e4", _logits(4, 5, scale=1e4), temperature=1e4),
)
