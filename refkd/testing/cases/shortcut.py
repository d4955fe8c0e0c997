"""Cases for :mod:`refkd.ops.shortcut`."""

from __future__ import annotations

from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(
    label: str, shape: tuple[int, ...], *, stride: int = 2, zeros: tuple[int, int] = (1, 1)
) -> PairCase:
    options = {"stride": stride, "zeros": zeros}
    return PairCase(
        "padded_shortcut",
        label,
        normal_like(x=shape),
        ("x",),
        options=options,
        backward_only={"input_shape": shape},
    )


CASES = (
    _case("even sides", (2, 3, 4, 6)),
    _case("odd sides", (2, 3, 5, 3)),
    _case("stride 1", (2, 3, 4, 2), stride=1),
    _case("stride past the image", (2, 3, 2, 3), stride=5),
    _case("zeros before", (2, 2, 4, 4), zeros=(3, 0)),
    _case("zeros after", (2, 2, 4, 4), zeros=(0, 3)),
    _case("no zeros", (2, 2, 4, 4), zeros=(0, 0)),
    _case("one pixel", (1, 1, 1, 1)),
    _case("empty batch", (0, 2, 4, 4)),
)
