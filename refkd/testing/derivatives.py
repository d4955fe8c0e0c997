"""Steps along a direction, and the derivative by a complex one, exact to rounding.

Real differences are in :mod:`refkd.testing.differences`; which derivative is to be
believed is the business of :mod:`refkd.testing.references`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.testing.directions import Direction, Point, RandomDirection, fill, scaled

__all__ = [
    "STEP",
    "Function",
    "complex_entries",
    "complex_step",
    "moved",
    "one_ulp_away",
    "reach",
    "smallest",
]

Function = Callable[[Mapping[str, NDArray[Any]]], Any]

STEP = 1e-30
"""Of the complex step: its square vanishes beside 1, and slopes above 1e-278 survive it."""
_TINY = 1e-280  # steps that are a part of less would underflow


def complex_step(f: Function, point: Point, direction: Direction, *, step: float = STEP) -> float:
    """Return Im f(x + ih u)/h: the derivative of f at x along u.

    Parameters
    ----------
    f : callable
        Takes a dict of arrays, returns a scalar; analytic, and real for real arrays.
    point : mapping of float64 arrays
        x.
    direction : mapping of float64 arrays
        u; parameters that it does not name stay where they are.
    step : float
        h. No difference is taken, so it may be far below the rounding of x.

    Notes
    -----
    f(x + ihu) = f(x) + ih f'(x) − h² f''(x)/2 − ...: the imaginary part is h f' up to
    a relative h² (Squire, Trapp: SIAM Review 40 (1998); Martins et al.: ACM TOMS 29
    (2003)).
    """
    return float(np.imag(f(_complex(point, direction, step)))) / step


def complex_entries(f: Function, point: Point, name: str) -> NDArray[np.float64]:
    """Return the complex step along every entry of ``name``, flat.

    One array serves all entries: f must not write into it.
    """
    z = _complex(point, {}, STEP)
    imaginary = z[name].imag
    places = list(np.ndindex(imaginary.shape))
    found = np.empty(len(places))
    for flat, index in enumerate(places):
        imaginary[index] = STEP
        found[flat] = np.imag(f(z))
        imaginary[index] = 0
    return found / STEP


def one_ulp_away(
    point: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return ``point`` with every entry moved by a random amount of at most one rounding."""
    return {
        name: np.asarray(
            x
            + (np.finfo(x.dtype).eps * rng.uniform(-1, 1, size=x.shape) * np.abs(x)).astype(x.dtype)
        )
        for name, x in point.items()
    }


def moved(
    point: Point, direction: Direction, t: float, dtype: type[np.floating[Any]] = np.float64
) -> dict[str, NDArray[Any]]:
    """Return x + t u as fresh arrays: a function that writes into its arguments harms nobody."""
    there: dict[str, NDArray[Any]] = {}
    for name, x in point.items():
        if name in direction:
            there[name] = scaled(direction, name, dtype(t))
            there[name] += x
        else:
            there[name] = np.array(x, dtype, order="K")
    return there


def _complex(point: Point, direction: Direction, step: float) -> dict[str, NDArray[Any]]:
    # All parameters are complex, so that no dtype depends on the direction.
    there = {}
    for name, x in point.items():
        there[name] = z = np.empty(x.shape, dtype=np.complex128)
        z.real[...] = x
        if name in direction:
            fill(z.reshape(-1).imag, direction, name, step)
        else:
            z.imag[...] = 0
    return there


def reach(point: Point, direction: Direction) -> float:
    """The factor that makes a unit step along ``direction`` as large as the parameters moved."""
    if isinstance(direction, RandomDirection):
        return 1.0
    there, length = 0.0, 0.0
    for name, u in direction.items():
        there = max(there, float(np.max(np.abs(point[name]), initial=0)))
        length = max(length, float(np.max(np.abs(u), initial=0)))
    return (max(there, _TINY) if there else 1.0) / (length or 1.0)


def smallest(point: Point, direction: Direction) -> float:
    """The step along ``direction`` as large as the smallest entry moved that is not zero."""
    found = math.inf
    for name, u in direction.items():
        x = np.abs(point[name])
        moves = (x > _TINY) & (u != 0)
        found = min(found, float(np.min(x[moves] / np.abs(u[moves]), initial=math.inf)))
    return found if found < math.inf else reach(point, direction)
