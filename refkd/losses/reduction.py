"""How a loss's per-example or per-element values become one number, and back.

Every reduction is a division by a count, so its backward divides the cotangent by
the same count.
"""

from __future__ import annotations

import math

from refkd.dispatch import Array
from refkd.errors import ShapeError, check_choice

__all__ = ["REDUCTIONS", "check_reduction", "divisor"]

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(
    where: str, reduction: str, shape: tuple[int, ...], choices: tuple[str, ...] = REDUCTIONS
) -> None:
    """Raise ConfigError for an unknown reduction, ShapeError for a mean over nothing."""
    check_choice(where, "reduction", reduction, choices)
    if reduction in ("mean", "batchmean") and math.prod(shape) == 0:
        raise ShapeError(f"{where}: the {reduction} of an empty batch (shape {shape}) is undefined")


def divisor(reduction: str, *, examples: int, elements: int) -> int:
    """Return R, by which the sum is divided: 1, the number of examples or of elements."""
    return {"sum": 1, "none": 1, "batchmean": examples, "mean": elements}[reduction]


def expand(dloss: Array | float, reduction: str) -> Array | float:
    """Append an axis to a per-example cotangent so that it multiplies (..., C) arrays."""
    return dloss[..., None] if reduction == "none" else dloss  # type: ignore[index]
