"""Cases for :mod:`refkd.ops.avg_pool`."""

from __future__ import annotations

from typing import Any

from refkd.testing.cases._draw import normal
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(label: str, shape: tuple[int, int, int, int], **options: Any) -> PairCase:
    draw = normal(*shape)
    return PairCase(
        "avg_pool2d",
        label,
        lambda rng: {"x": draw(rng)},
        ("x",),
        options=options,
        backward_only={"input_shape": shape},
    )


def _padded(label: str, **options: Any) -> tuple[PairCase, ...]:
    """Return two cases: where the padding is counted, and where it is not."""
    return (
        _case(label, (2, 2, 5, 6), **options),
        _case(f"{label}, not counted", (2, 2, 5, 6), count_include_pad=False, **options),
    )


CASES = (
    _case("2x2", (2, 3, 4, 6), kernel_size=2),
    _case("2x2 leaves a margin unseen", (2, 2, 5, 7), kernel_size=2),
    _case("5x5, stride 3, windows overlap", (1, 2, 11, 8), kernel_size=5, stride=3),
    _case("stride larger than the kernel", (2, 2, 7, 8), kernel_size=2, stride=3),
    *_padded("3x3, stride 1, padding 1", kernel_size=3, stride=1, padding=1),
    *_padded("ceil mode", kernel_size=2, ceil_mode=True),
    *_padded("padding 1, ceil mode", kernel_size=3, stride=2, padding=1, ceil_mode=True),
    *_padded("unequal pairs", kernel_size=(2, 4), stride=(1, 3), padding=(1, 2)),
    _case("one window", (2, 3, 3, 4), kernel_size=(3, 4)),
    _case("1x1", (1, 2, 3, 3), kernel_size=1),
    _case("one pixel", (1, 1, 1, 1), kernel_size=2, padding=1),
    _case("empty batch", (0, 2, 4, 4), kernel_size=2),
)
