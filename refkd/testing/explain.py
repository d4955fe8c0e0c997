"""Guesses at what went wrong in a gradient, from its numbers and the numeric ones alone.

A guess must leave over no more than a hundred thousandth of the gap, and must explain
more numbers than it is free to choose: a false one is worse than none. Nothing here is
needed for a verdict.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["explain"]

Floats = NDArray[np.float64]

_LEFT_OVER = 1e-5  # of the gap, by a hypothesis that explains it
_NOTHING = 1e-8  # of the other gradient, by one that is zero but for rounding
_EXACT = 1e-6  # relative, of a factor that has a name
_HOTTEST = 100  # far above, every number is near the square of a half-integer
_DERIVATIVE_ZERO = (
    "the derivative is zero: f does not depend on it, or holds it constant (detach, "
    "stop-gradient), and grad does not"
)
_GRADIENT_ZERO = "the gradient is zero: held constant (detached) where f is not"


def explain(
    analytic: Floats,
    numeric: Floats,
    places: NDArray[np.intp] | None,
    leaves: Mapping[str, Any],
    along: tuple[Floats, float] | None = None,
) -> str:
    """Return what ``analytic`` looks like beside ``numeric``, or an empty string.

    Parameters
    ----------
    analytic : array
        The gradient of one parameter.
    numeric : array
        Its numeric derivative, flat: at ``places``, or everywhere.
    places : array of int, or None
        Flat positions at which ``numeric`` is known; None for all, in order. Sums that
        are wrong, and errors along an axis, only show where all are known.
    leaves : mapping
        All parameters; the lengths of their axes, and their scalars, explain factors.
    along : (array, float), optional
        A direction of the parameter's shape and the numeric derivative along it, by which
        what holds at ``places`` is shown to hold everywhere.
    """
    shown = _at(analytic, places)
    gap, of_shown, of_numeric = (_largest(x) for x in (shown - numeric, shown, numeric))
    if not math.isfinite(gap) or gap == 0:
        return ""

    def is_derivative(candidate: Floats) -> bool:
        """Whether it equals the numeric one, at the places and along the direction."""
        left_over = _largest(_at(candidate, places) - numeric)
        return left_over <= _LEFT_OVER * min(gap, of_numeric) and _agrees(candidate, along)

    if of_shown and of_numeric:
        factor = _best_factor(shown / of_shown, numeric / of_numeric) * (of_shown / of_numeric)
        if factor and is_derivative(analytic / factor):
            text = _named(factor, leaves)
            # One number is always some multiple of another.
            if text or _several(numeric):
                return text or f"the derivative times {_digits(factor)}"
    if of_numeric <= _NOTHING * of_shown:
        return _DERIVATIVE_ZERO if _agrees(np.zeros_like(analytic), along, analytic) else ""
    if _largest(analytic) <= _NOTHING * of_numeric:
        return _GRADIENT_ZERO
    if not _several(numeric):
        return ""
    for text, candidate in _rearranged(analytic):
        if is_derivative(candidate):
            return text
    if places is not None:
        return _some_entries(shown, numeric, " compared")
    full = numeric.reshape(analytic.shape)
    for text, candidate in _reduced(full):
        if _largest(candidate - analytic) <= _LEFT_OVER * min(gap, of_shown):
            return text
    for axis, length in enumerate(analytic.shape):
        error = analytic - full
        mean = np.mean(error, axis=axis, keepdims=True)
        if length > 1 and _largest(error - mean) <= _LEFT_OVER * gap:
            return (
                f"all errors along axis {axis} are equal: a mean, sum or maximum over it is "
                f"held constant (detached), or should be"
            )
    return _some_entries(shown, numeric, "")


def _at(x: Floats, places: NDArray[np.intp] | None) -> Floats:
    return x.ravel() if places is None else x.ravel()[places]


def _largest(x: Floats) -> float:
    return float(np.max(np.abs(x), initial=0))


def _several(numeric: Floats) -> bool:
    return int(np.sum(np.abs(numeric) > _NOTHING * _largest(numeric))) > 1


def _agrees(
    candidate: Floats, along: tuple[Floats, float] | None, beside: Floats | None = None
) -> bool:
    """Whether the slope of ``candidate`` is the numeric one, as a part of its terms' size."""
    if along is None:
        return True
    direction, slope = along
    terms = candidate * direction
    sizes = terms if beside is None else beside * direction
    return abs(float(np.sum(terms)) - slope) <= _LEFT_OVER * float(np.sum(np.abs(sizes)))


def _best_factor(shown: Floats, numeric: Floats) -> float:
    return float(np.sum(shown * numeric) / np.sum(numeric * numeric))


def _digits(factor: float) -> str:
    if abs(factor - 1) > 1e-5:
        return f"{factor:.6g}"
    return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.3g}"


def _named(factor: float, leaves: Mapping[str, Any]) -> str:
    """Return the factor with its possible origins, or an empty string if none is known."""
    if _is(factor, -1):
        return "the derivative with the wrong sign"
    if _is(factor, 1):
        return ""
    names = [
        sign + name
        for value, name in (*_scalars(leaves), *_squares(abs(factor)), *_counts(leaves))
        for sign, signed in (("", value), ("-", -value))
        if _is(factor, signed)
    ]
    return f"the derivative times {_digits(factor)}: {' or '.join(names[:3])}?" if names else ""


def _scalars(leaves: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    for path, leaf in leaves.items():
        number = isinstance(leaf, (int, float, np.number, np.ndarray)) and np.ndim(leaf) == 0
        if number and np.asarray(leaf).dtype.kind in "fiu":
            value = float(leaf)
            # Beyond, a square or an inverse has no float.
            if 1e-100 < abs(value) < 1e100 and abs(value) != 1:
                yield value, path
                yield 1 / value, f"1/{path}"
                yield value**2, f"{path}²"
                yield value**-2, f"1/{path}²"


def _squares(size: float) -> Iterator[tuple[float, str]]:
    for value, name, sign in ((size, "T²", 1), (1 / size, "1/T²", -1)):
        if 1 < value < _HOTTEST**2:
            temperature = round(2 * math.sqrt(value)) / 2
            yield temperature ** (2 * sign), f"{name} with T = {temperature:g}"


def _counts(leaves: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    for path, leaf in leaves.items():
        lengths = leaf.shape if isinstance(leaf, np.ndarray) else ()
        counts = [(n, f"the length of axis {axis} of {path}") for axis, n in enumerate(lengths)]
        if len(lengths) > 1:
            counts.append((math.prod(lengths), f"the number of entries of {path}"))
        for count, meaning in counts:
            if count > 1:
                yield float(count), f"{count} ({meaning})"
                yield 1 / count, f"1/{count} ({meaning})"


def _rearranged(analytic: Floats) -> Iterator[tuple[str, Floats]]:
    if analytic.ndim >= 2 and analytic.shape[-1] == analytic.shape[-2]:
        yield "the derivative, transposed", np.swapaxes(analytic, -1, -2)
    for count in range(1, analytic.ndim + 1):
        for axes in itertools.combinations(range(analytic.ndim), count):
            which = f"ax{'i' if count == 1 else 'e'}s {', '.join(map(str, axes))}"
            yield f"the derivative, reversed along {which}", np.flip(analytic, axes)


def _reduced(numeric: Floats) -> Iterator[tuple[str, Floats]]:
    for axis, length in enumerate(numeric.shape):
        if length > 1:
            total = np.sum(numeric, axis=axis, keepdims=True)
            for text, value in (("sum", total), ("mean", total / length)):
                yield (
                    f"the derivative's {text} over axis {axis} in the place of each entry: a "
                    f"{text} too many",
                    np.broadcast_to(value, numeric.shape),
                )


def _some_entries(shown: Floats, numeric: Floats, which: str) -> str:
    """Say by which one factor some entries are off, if all others are right."""
    gap = np.abs(shown - numeric)
    wrong = gap > _LEFT_OVER * np.max(gap)
    if np.all(wrong) or np.any(numeric[wrong] == 0):
        return ""
    ratios = shown[wrong] / numeric[wrong]
    if np.ptp(ratios) > _LEFT_OVER * np.max(np.abs(ratios - 1)):
        return ""
    count = int(np.sum(wrong))
    if count > 1:
        return f"the {count} wrong entries{which} are {_digits(ratios[0])} times the derivative"
    return "" if which else f"the wrong entry is {_digits(ratios[0])} times the derivative"


def _is(a: float, b: float) -> bool:
    return abs(a - b) <= _EXACT * abs(b)
