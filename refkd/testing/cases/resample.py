"""Cases for :mod:`refkd.ops.resample`."""

from __future__ import annotations

from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]


def _case(
    label: str, shape: tuple[int, int, int, int], scale_factor: int | tuple[int, int]
) -> PairCase:
    options = {"scale_factor": scale_factor}
    return PairCase("upsample_nearest2d", label, normal_like(x=shape), ("x",), options=options)


CASES = (
    _case("twice", (2, 3, 3, 4), 2),
    _case("three times", (2, 2, 2, 3), 3),
    _case("taller", (2, 2, 3, 2), (3, 1)),
    _case("wider", (2, 2, 3, 2), (1, 4)),
    _case("unequal pair", (1, 3, 2, 3), (2, 5)),
    _case("factor 1 is the identity", (2, 2, 3, 4), 1),
    _case("one pixel", (1, 1, 1, 1), 3),
    _case("empty batch", (0, 2, 3, 4), 2),
)
