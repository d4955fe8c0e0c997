"""At a kink a gradient is any slope between the one-sided ones: whether it is near any at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.testing.derivatives import moved
from refkd.testing.directions import Direction, RandomDirection, slope
from refkd.testing.problem import Problem
from refkd.testing.references import Reference

__all__ = ["FarSlopes", "far_from_slopes"]

_EPS = float(np.finfo(np.float64).eps)
_POINTS = 16
_STEP = 1e-5  # of the parameter's size
_SMOOTH = 1e-3  # what slopes may change over that step, as a part of their terms


class FarSlopes(NamedTuple):
    """The sum of a gradient's entries, and the range of slopes that it is far from."""

    analytic: float
    lowest: float
    highest: float


def far_from_slopes(
    problem: Problem,
    reference: Reference,
    name: str,
    gradient: NDArray[np.float64],
    seed: int,
) -> FarSlopes | None:
    """Compare the gradient of ``name`` with the slopes on all sides of a kink.

    Parameters
    ----------
    problem : Problem
        At the kink.
    reference : Reference
        Of the slopes.
    name : str
        A parameter.
    gradient : array
        Its gradient, each entry of which lies between its own one-sided slopes.
    seed : int
        Draws the points.

    Returns
    -------
    FarSlopes or None
        None where the gradient is near the slopes.

    Notes
    -----
    Entry by entry is not enough: of two tied maxima each has slopes 0 and 1, but a
    gradient of 1 for both is none of the maximum. Generalised gradients are the convex
    hull of the gradients at points nearby (Clarke: Optimization and Nonsmooth Analysis
    (1983), theorem 2.5.1), so along any direction the gradient must lie within the
    range of theirs. The direction taken is that of all entries together, along which a
    maximum has no kink. Of the range 16 random points show a part, and the two where all
    entries have moved up or down, where all units that were at zero are on or off; the
    gradient may be as far beyond it as it is wide.
    """
    direction = {name: np.ones(gradient.shape)}
    analytic = slope({name: gradient}, direction)
    # Of numbers as large as f the sum of all entries may be rounding.
    estimates, uncertain = [], gradient.size * 64 * _EPS * reference.size(direction)
    size = float(np.max(np.abs(problem.point[name]), initial=0)) or 1.0
    if size * _STEP < np.finfo(np.float64).tiny:
        return None  # no step is that small
    sides: list[Direction] = [{name: np.full(gradient.shape, sign * size)} for sign in (1, -1)]
    sides += [RandomDirection(problem.point, [name], seed + k) for k in range(_POINTS)]
    for away in sides:
        there = problem.at(moved(problem.point, away, _STEP))
        estimate = reference.at(there).along(direction)
        estimates.append(estimate)
        uncertain = max(uncertain, estimate.error_bar + abs(estimate.jump))
    lowest, highest = (pick(e.value for e in estimates) for pick in (min, max))
    slack = highest - lowest + uncertain + _SMOOTH * analytic.size
    if lowest - slack <= analytic.value <= highest + slack:
        return None
    return FarSlopes(analytic.value, lowest, highest)
