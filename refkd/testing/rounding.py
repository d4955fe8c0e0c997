"""How far a function and its gradient are rounded, and how large they are, here and far away."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refkd.testing.derivatives import STEP, one_ulp_away
from refkd.testing.differences import Noise, measure_noise
from refkd.testing.directions import Direction, Point, RandomDirection, slope
from refkd.testing.problem import Leaves, Problem

__all__ = ["Rounding", "far_away"]

_EPS = float(np.finfo(np.float64).eps)
_JITTERS = 3
# Smaller slopes lose digits once multiplied by the step.
_UNDERFLOW = float(np.finfo(np.float64).tiny) / STEP


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

    def least(self, direction: Direction) -> float:
        """Return 16 roundings of the size of f and its slopes, and what underflows in a step."""
        return 16 * _EPS * self._size(direction) + _UNDERFLOW

    def negligible(self, direction: Direction) -> float:
        """Return the size of a slope that f can hardly feel."""
        return 1e-12 * self._size(direction) + 4 * _UNDERFLOW

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

    def _size(self, direction: Direction) -> float:
        return max(
            float(np.max(np.abs(u), initial=0)) * max(self._magnitudes[name], self._magnitudes[""])
            for name, u in direction.items()
        )

    @functools.cached_property
    def _magnitudes(self) -> dict[str, float]:
        # The largest finite |f|, under "", and |gradient| of each parameter, here and at
        # points as far away as x is large: f may cancel here, or be flat.
        problem = self._problem
        found = {"": abs(self._value), **_largest(problem.gradients(problem.point))}
        for far in far_away(problem.point):
            sizes = {**_largest(problem.gradients(far)), "": abs(float(problem.f(far)))}
            for name, size in sizes.items():
                found[name] = max(found[name], size if math.isfinite(size) else 0.0)
        return found


def far_away(point: Point) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Yield points as far from ``point`` as its entries are large."""
    for k in range(_JITTERS):
        rng = np.random.default_rng(k)
        yield {
            name: np.asarray(x + np.max(np.abs(x), initial=0) * rng.standard_normal(x.shape))
            for name, x in point.items()
        }


def _largest(gradients: Leaves) -> dict[str, float]:
    return {name: float(np.max(np.abs(g), initial=0)) for name, g in gradients.items()}
