"""Cases for :mod:`refkd.ops.adaptive_pool`."""

from __future__ import annotations

from refkd.testing.cases._draw import normal
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(
    label: str, shape: tuple[int, int, int, int], output_size: int | tuple[int, int]
) -> PairCase:
    draw = normal(*shape)
    return PairCase(
        "adaptive_avg_pool2d",
        label,
        lambda rng: {"x": draw(rng)},
        ("x",),
        options={"output_size": output_size},
        backward_only={"input_shape": shape},
    )


CASES = (
    _case("global", (2, 3, 4, 5), 1),
    _case("global, one pixel", (2, 3, 1, 1), 1),
    _case("parts side by side", (2, 2, 6, 4), 2),
    _case("parts that share rows", (2, 2, 5, 7), (3, 4)),
    _case("one row", (2, 2, 5, 4), (1, 3)),
    _case("as large as the input", (1, 2, 3, 4), (3, 4)),
    _case("larger than the input", (1, 2, 2, 3), (5, 4)),
    _case("empty batch", (0, 2, 4, 4), 2),
    _case("empty batch, global", (0, 2, 4, 4), 1),
)
