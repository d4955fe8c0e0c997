"""Cases for :mod:`refkd.ops.max_pool`."""

from __future__ import annotations

from typing import Any

from refkd.testing.cases._draw import normal
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(label: str, shape: tuple[int, int, int, int], **options: Any) -> PairCase:
    draw = normal(*shape)
    return PairCase(
        "max_pool2d",
        label,
        lambda rng: {"x": draw(rng)},
        ("x",),
        outputs=("y", "indices"),
        options=options,
        backward_only={"input_shape": shape},
    )


CASES = (
    _case("2x2", (2, 3, 4, 6), kernel_size=2),
    _case("2x2 leaves a margin unseen", (2, 2, 5, 7), kernel_size=2),
    _case("3x3, stride 2, windows overlap", (2, 2, 7, 7), kernel_size=3, stride=2),
    _case("3x3, stride 2, ceil mode", (2, 2, 6, 8), kernel_size=3, stride=2, ceil_mode=True),
    _case("3x3, stride 1, padding 1", (2, 2, 4, 5), kernel_size=3, stride=1, padding=1),
    _case("stride larger than the kernel", (2, 2, 7, 8), kernel_size=2, stride=3),
    _case("dilation 2", (1, 2, 7, 8), kernel_size=3, stride=1, dilation=2),
    _case(
        "unequal pairs, ceil mode",
        (2, 2, 8, 7),
        kernel_size=(2, 4),
        stride=(3, 2),
        padding=(1, 2),
        dilation=(3, 1),
        ceil_mode=True,
    ),
    _case("one window", (2, 3, 3, 4), kernel_size=(3, 4)),
    _case("1x1", (1, 2, 3, 3), kernel_size=1),
    _case("rows of 130", (1, 1, 3, 130), kernel_size=(3, 2)),
    _case("one pixel", (1, 1, 1, 1), kernel_size=2, padding=1),
    _case("empty batch", (0, 2, 4, 4), kernel_size=2),
)
