"""The numeric derivatives as references to judge a gradient by: how far each is to be believed."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.exceptions import ComplexWarning
from numpy.typing import NDArray

from refkd.testing.derivatives import (
    STEP,
    Direction,
    Estimate,
    Point,
    complex_step,
    one_ulp_away,
    richardson,
)

__all__ = ["ComplexStep", "NotAnalyticError", "Problem", "Reference", "Richardson"]

_EPS = float(np.finfo(np.float64).eps)
_JITTERS = 3
# Smaller slopes lose digits once multiplied by the step.
_UNDERFLOW = float(np.finfo(np.float64).tiny) / STEP


@dataclass(frozen=True)
class Problem:
    """A function, its gradient and the point where they are compared.

    Attributes
    ----------
    f, grad : callable
        Of a mapping of arrays.
    point : mapping of float64 arrays
    value : float
        f at the point.
    gradients : mapping of float64 arrays
        grad at the point.
    """

    f: Callable[[Mapping[str, NDArray[Any]]], Any]
    grad: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[np.float64]]]
    point: Point
    value: float
    gradients: Point


class Reference(Protocol):
    """A way to take a numeric derivative."""

    method: str

    def derivative(self, direction: Direction) -> Estimate:
        """Return the derivative; its bar may be 0 where measuring it costs extra."""

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """Return the measured uncertainty of ``analytic − estimate.value``."""

    def negligible(self, direction: Direction) -> float:
        """Return the size of a derivative that f can hardly feel."""

    def confirm(self, direction: Direction, numeric: float) -> None:
        """Raise NotAnalyticError where ``numeric`` cannot be the derivative."""


class NotAnalyticError(Exception):
    """The complex step of this function is not its derivative; the message says why."""


class ComplexStep:
    """The complex step, exact to rounding; believed where real differences agree with it.

    Raises
    ------
    NotAnalyticError
        By :meth:`confirm`, and at construction if the function does not take complex
        arrays.
    """

    method = "complex"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        everywhere = {name: np.ones(x.shape) for name, x in problem.point.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error", ComplexWarning)
            try:
                self.derivative(everywhere)
            except (TypeError, ValueError, ComplexWarning) as error:
                raise NotAnalyticError(
                    f"f does not take complex arrays ({type(error).__name__}: {error})"
                ) from error

    def derivative(self, direction: Direction) -> Estimate:
        """Return the complex step along ``direction``; its bar is one rounding, not measured."""
        value = complex_step(self._problem.f, self._problem.point, direction)
        return Estimate(value, _EPS * abs(value))

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """Four times the change of both derivatives at points one rounding away.

        At least 64 roundings of the size of f and of its slopes: where 1 + 1e-20 is
        rounded to 1, as in a saturated softmax, the error is the same at all points nearby.
        """
        problem, largest = self._problem, 16 * _EPS * self._size(direction) + _UNDERFLOW
        for k in range(_JITTERS):
            nearby = one_ulp_away(problem.point, np.random.default_rng(k))
            # A step that is no power of two apart rounds the imaginary part otherwise.
            numeric = complex_step(problem.f, nearby, direction, step=STEP / (2 * k + 3))
            gradients = problem.grad(nearby)
            slope = sum(float(np.sum(gradients[n] * u)) for n, u in direction.items())
            largest = max(largest, abs(numeric - estimate.value) + abs(slope - analytic))
        return 4 * largest

    def negligible(self, direction: Direction) -> float:
        """1e-12 of the size of f and of its slopes, and what underflows in the step."""
        return 1e-12 * self._size(direction) + 4 * _UNDERFLOW

    def _size(self, direction: Direction) -> float:
        return max(
            float(np.max(np.abs(u))) * max(self._magnitudes[name], self._magnitudes[""])
            for name, u in direction.items()
        )

    @functools.cached_property
    def _magnitudes(self) -> dict[str, float]:
        # The largest finite |f|, under "", and |gradient| of each parameter, here and at
        # points as far away as x is large: f may cancel here, or be flat.
        problem = self._problem
        found = {"": abs(problem.value)}
        found.update((n, float(np.max(np.abs(g), initial=0))) for n, g in problem.gradients.items())
        for k in range(_JITTERS):
            rng = np.random.default_rng(k)
            far = {
                name: x + np.max(np.abs(x), initial=0) * rng.standard_normal(x.shape)
                for name, x in problem.point.items()
            }
            values = {"": problem.f(far), **problem.grad(far)}
            for name in found:
                size = float(np.max(np.abs(values[name]), initial=0))
                found[name] = max(found[name], size if math.isfinite(size) else 0.0)
        return found

    def confirm(self, direction: Direction, numeric: float) -> None:
        """Compare with the real difference along ``direction``."""
        real = richardson(self._problem.f, self._problem.point, direction)
        if abs(real.value - numeric) > 4 * real.error_bar + 1e-12 * abs(numeric) + _UNDERFLOW:
            raise NotAnalyticError(
                f"f is not analytic: along {', '.join(direction)} the complex step gives "
                f"{numeric:.6g}, real differences {real.value:.6g} ± {real.error_bar:.1e}; look "
                f"for abs, conj, .real, a cast to float, or a kink at this very point"
            )


class Richardson:
    """Extrapolated central differences, which carry their error bar with them."""

    method = "richardson"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def derivative(self, direction: Direction) -> Estimate:
        """Return the extrapolated difference and its bar."""
        return richardson(self._problem.f, self._problem.point, direction)

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """Return the bar that the estimate came with."""
        return estimate.error_bar

    def negligible(self, direction: Direction) -> float:
        """0: a difference of large values says nothing about what cancels in it."""
        return 0.0

    def confirm(self, direction: Direction, numeric: float) -> None:
        """Accept: a real difference needs no analytic function."""
