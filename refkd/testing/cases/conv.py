"""Cases for :mod:`refkd.ops.conv`."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(
    label: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    bias: bool = True,
    need_dx: bool = True,
    **options: Any,
) -> PairCase:
    draw = normal_like(x=x, weight=weight, bias=weight[:1])

    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        drawn = draw(rng)
        return drawn if bias else {**drawn, "bias": None}

    gradients = ("x" if need_dx else None, "weight", "bias" if bias else None)
    backward_only = {} if need_dx else {"need_dx": False}
    return PairCase(
        "conv2d", label, inputs, gradients, options=options, backward_only=backward_only
    )


CASES = (
    _case("3x3", (2, 3, 5, 4), (4, 3, 3, 3)),
    _case("3x3, padding 1", (2, 3, 4, 5), (2, 3, 3, 3), padding=1),
    _case("no bias", (2, 3, 4, 4), (2, 3, 3, 3), bias=False),
    _case("dx not needed", (2, 3, 4, 4), (2, 3, 3, 3), need_dx=False),
    _case("1x1", (2, 3, 3, 4), (5, 3, 1, 1)),
    _case("1x1, stride 2", (2, 3, 5, 4), (2, 3, 1, 1), stride=2),
    _case("1x1, padding 1", (1, 2, 3, 3), (2, 2, 1, 1), padding=1),
    _case("7x7, stride 2, padding 3", (1, 3, 9, 8), (2, 3, 7, 7), stride=2, padding=3),
    _case("5x5, padding 2", (2, 2, 4, 4), (2, 2, 5, 5), padding=2),
    _case("stride 3 leaves a margin unseen", (2, 2, 6, 8), (2, 2, 2, 2), stride=3),
    _case("stride larger than the kernel", (2, 2, 7, 7), (2, 2, 2, 2), stride=3, padding=1),
    _case("dilation 2", (1, 2, 7, 6), (3, 2, 3, 2), dilation=2),
    _case("unequal pairs", (2, 2, 8, 6), (2, 2, 3, 2), stride=(2, 1), padding=(0, 2)),
    _case("dilation of one axis", (1, 2, 6, 7), (2, 2, 2, 3), dilation=(1, 3), padding=(1, 0)),
    _case("two groups", (2, 4, 4, 4), (6, 2, 3, 3), padding=1, groups=2),
    _case("depthwise", (2, 3, 4, 4), (3, 1, 3, 3), padding=1, groups=3),
    _case("depthwise, two outputs each", (2, 3, 4, 4), (6, 1, 2, 2), stride=2, groups=3),
    _case("all of it", (2, 4, 9, 8), (4, 2, 3, 2), stride=2, padding=2, dilation=2, groups=2),
    _case("kernel as large as the input", (2, 3, 4, 3), (2, 3, 4, 3)),
    _case("kernel larger than the input", (1, 2, 2, 2), (2, 2, 5, 5), padding=2),
    _case("batch of one, one channel, one pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    _case("empty batch", (0, 2, 4, 4), (3, 2, 3, 3)),
)
