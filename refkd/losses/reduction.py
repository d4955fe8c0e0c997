"""How a loss's per-example or per-element values become one number, and back.

Every reduction is a division by a count, so its backward divides the cotangent by
the same count.
"""

from __future__ import annotations

import math

from refkd.dispatch import Array
from refkd.errors import ShapeError, check_choice, check_float_dtypes

__all__ = [
    "REDUCTIONS",
    "check_reduction",
    "cotangent",
    "divisor",
    "example_cotangent",
    "logits_divisor",
]

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


def logits_divisor(reduction: str, logits: Array) -> int:
    """Return R for logits or distributions (..., C), whose rows are the examples."""
    shape = tuple(map(int, logits.shape))
    return divisor(reduction, examples=math.prod(shape[:-1]), elements=math.prod(shape))


def cotangent(
    where: str, dloss: Array | float, values: Array, shape: tuple[int, ...]
) -> Array | float:
    """Return ``dloss`` checked: a Python number for a scalar loss, or an array of ``shape``.

    Parameters
    ----------
    where : str
        The calling function, for the message.
    dloss : float or array
    values : array
        What it will multiply, whose dtype it must have.
    shape : tuple of int
        Of the loss.

    Raises
    ------
    ShapeError, DtypeError
        If the cotangent does not fit the loss.
    """
    if isinstance(dloss, (int, float)) and not shape:
        return float(dloss)  # numpy.float64 is a float, and would promote float32
    given = tuple(getattr(dloss, "shape", ()))
    if given != shape:
        raise ShapeError(f"{where}: dloss must have the loss's shape {shape}, got {given}")
    check_float_dtypes(where, dloss=dloss, values=values)
    return dloss


def example_cotangent(
    where: str, dloss: Array | float, values: Array, reduction: str
) -> Array | float:
    """Return :func:`cotangent` of a loss over examples, ready to multiply (..., C) ``values``."""
    if reduction == "none":
        shape = tuple(values.shape[:-1])
        return cotangent(where, dloss, values, shape)[..., None]  # type: ignore[index]
    return cotangent(where, dloss, values, ())
