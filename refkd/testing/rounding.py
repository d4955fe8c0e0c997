"""How far a function and its gradient are rounded, and how large they are, here and far away."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refkd.testing.derivatives import STEP, one_ulp_away
from refkd.testing.differences import FIRST_STEP, Noise, measure_noise
from refkd.testing.directions import Direction, Point, RandomDirection, slope
from refkd.testing.problem import Leaves, Problem

__all__ = ["UNDERFLOW", "Rounding", "far_away"]

_EPS = float(np.finfo(np.float64).eps)
_JITTERS = 3
_GROWTH = 1e3  # that f may show far away
UNDERFLOW = float(np.finfo(np.float64).tiny) / STEP
"""Slopes that are smaller lose digits in a complex step."""


class Rounding:
    """How far f and its gradient are rounded in float64, and how large they are.

    Parameters
    ----------
    problem : Problem
    value : float
        f at the point.
    """

    def __init__(self, problem: Problem, value: float) -> None:
        self._problem, self._value = problem, value

    def nearby(self, direction: Direction) -> Iterator[tuple[Leaves, float]]:
        """Yield points one rounding away, with the gradient along ``direction`` there."""
        for k in range(_JITTERS):
            there = one_ulp_away(self._problem.point, np.random.default_rng(k))
            yield there, slope(self._problem.gradients(there), direction).value

    def noise(self, direction: Direction) -> Noise | None:
        """Return the noise that f has elsewhere, if that is far more than rounding.

        A function that is rounded to float32 inside is constant around a point where its
        slope is small, and looks as if it were exact.
        """
        if self._roughness <= 1e5 * _EPS:
            return None
        elsewhere = self._roughness * abs(self._value)
        here = measure_noise(self._problem.f, self._problem.point, direction)
        return here._replace(fine=max(here.fine, elsewhere), coarse=max(here.coarse, elsewhere))

    @functools.cached_property
    def _roughness(self) -> float:
        # The noise of f as a part of its size, the largest of points as far away as x is large.
        found = [0.0]
        for far in far_away(self._problem.point):
            noise = measure_noise(self._problem.f, far, RandomDirection(far, far, 0))
            if math.isfinite(noise.size) and noise.size > 0:
                found.append(max(noise.fine, noise.coarse) / noise.size)
        return max(found)

    def size(self, direction: Direction) -> float:
        """Return the size of f and of its slopes along ``direction``, here and far away.

        f counts as a slope: where a parameter is large, over the largest step that
        differences take. Where it is so small that its product with a complex step
        underflows, slopes are lost as well.
        """
        found = []
        for name, u in direction.items():
            size = float(np.max(np.abs(self._problem.point[name]), initial=0))
            slope = max(self._magnitudes[name], self._magnitudes[""] / max(1.0, FIRST_STEP * size))
            lost = UNDERFLOW / _EPS if 0 < size <= UNDERFLOW else 0.0
            found.append(float(np.max(np.abs(u), initial=0)) * max(slope, lost))
        return max(found)

    @functools.cached_property
    def _magnitudes(self) -> dict[str, float]:
        # The largest finite |f|, under "", and |gradient| of each parameter, here and at
        # points as far away as x is large: f may cancel here, or be flat. But of a function
        # that grows as fast as exp(x) what it is far away says nothing.
        problem = self._problem
        here = {"": abs(self._value), **_largest(problem.gradients(problem.point))}
        inputs = max(float(np.max(np.abs(x), initial=0)) for x in problem.point.values()) or 1.0
        most = _GROWTH * max(*here.values(), inputs)
        found = dict(here)
        for far in far_away(problem.point):
            sizes = {**_largest(problem.gradients(far)), "": abs(float(problem.f(far)))}
            for name, size in sizes.items():
                found[name] = max(found[name], min(size, most) if math.isfinite(size) else 0.0)
        return found


def far_away(point: Point) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Yield points as far from ``point`` as its entries are large."""
    for k in range(_JITTERS):
        rng = np.random.default_rng(k)
        yield {
            name: np.asarray(
                x + (np.max(np.abs(x), initial=0) or 1.0) * rng.standard_normal(x.shape)
            )
            for name, x in point.items()
        }


def _largest(gradients: Leaves) -> dict[str, float]:
    return {name: float(np.max(np.abs(g), initial=0)) for name, g in gradients.items()}
