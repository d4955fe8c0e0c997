"""Numeric derivatives along a direction, each with an honest error bar.

The complex step is exact to rounding but needs an analytic function; Richardson's
extrapolated central difference needs nothing but a real one. Which of them is to be
believed is the business of :mod:`refkd.testing.gradcheck`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "STEP",
    "Direction",
    "Estimate",
    "Function",
    "Point",
    "complex_step",
    "one_ulp_away",
    "richardson",
]

Point = Mapping[str, NDArray[np.float64]]
Direction = Mapping[str, NDArray[np.float64]]
Function = Callable[[Mapping[str, NDArray[Any]]], Any]

_EPS = float(np.finfo(np.float64).eps)
STEP = 1e-30
"""Of the complex step: its square vanishes beside 1, and slopes above 1e-278 survive it."""

_STEPS = 4.0 ** -np.arange(2, 12)
# Noise is what a cubic does not explain. The samples are irregular, since rounding at regular
# ones can repeat itself and look smooth; there are two spacings, since a large constant
# quantises f more coarsely than the first can see.
_NOISE_SPACINGS = (3e-9, 2e-6)
_SAMPLES = np.cos(np.arange(8.0))
_CUBICS = np.vander(_SAMPLES, 4)
_RESIDUAL = np.eye(_SAMPLES.size) - _CUBICS @ np.linalg.pinv(_CUBICS)


class Estimate(NamedTuple):
    """A numeric derivative and its uncertainty."""

    value: float
    error_bar: float


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
    return float(np.imag(f(_moved(point, direction, step * 1j)))) / step


def richardson(f: Function, point: Point, direction: Direction) -> Estimate:
    """Return the derivative along ``direction`` by Richardson-extrapolated central differences.

    Parameters
    ----------
    f, point, direction
        As in :func:`complex_step`; f need be neither analytic nor smooth.

    Returns
    -------
    Estimate
        Of ten steps h, each a quarter of the one before, the estimate with the
        smallest error bar. NaN ± infinity where no step gives a finite one.

    Notes
    -----
    With D(h) = [f(x + hu) − f(x − hu)]/2h = f' + O(h²), R(h) = D(h) + [D(h) − D(4h)]/15
    has error O(h⁴). The bar of R(h) is its distance from R(4h), which bounds the error
    while truncation rules, or from R(h/4) where that is larger, plus 4 noise/h, where
    the noise of f is measured and not assumed. A kink at x shows as a difference of the
    one-sided slopes that does not shrink with h; half of it joins the bar. A structure
    of f finer than about 1e-5 of x is taken for noise.
    """

    def along(t: float) -> float:
        return float(f(_moved(point, direction, t)))

    scale = _scale(point, direction)
    h = scale * _STEPS
    with np.errstate(all="ignore"):
        center = along(0.0)
        right = np.array([along(t) for t in h])
        left = np.array([along(-t) for t in h])
        central = (right - left) / (2 * h)
        extrapolated = central[1:] + (central[1:] - central[:-1]) / 15
        slope_gap = (right - 2 * center + left) / h
        jump = abs(4 * slope_gap[1:] - slope_gap[:-1]) / 3
        kink = np.where(jump > 0.5 * abs(slope_gap[1:]), 0.5 * jump, 0)
        spread = abs(np.diff(extrapolated))
        spread[:-1] = np.maximum(spread[:-1], spread[1:])
        bars = spread + 4 * _noise(along, scale) / h[2:] + kink[1:]
    bars = np.where(np.isfinite(bars), bars, np.inf)
    best = int(np.argmin(bars))
    return Estimate(float(extrapolated[1 + best]), float(bars[best]))


def one_ulp_away(point: Point, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return ``point`` with every entry moved by a random amount of at most one rounding."""
    return {
        name: np.asarray(x + rng.uniform(-_EPS, _EPS, size=x.shape) * np.abs(x))
        for name, x in point.items()
    }


def _noise(along: Callable[[float], float], scale: float) -> float:
    noise = 0.0
    for spacing in _NOISE_SPACINGS:
        values = np.array([along(float(t)) for t in scale * spacing * _SAMPLES])
        residual = _RESIDUAL @ (values - values[0])
        # hypot and not a sum of squares, which underflow.
        deviation = math.hypot(*residual) / math.sqrt(_SAMPLES.size - 4)
        noise = max(noise, deviation, _EPS * float(np.max(np.abs(values))))
    return noise


def _scale(point: Point, direction: Direction) -> float:
    """The factor that makes a unit step along ``direction`` as large as the parameters moved."""
    moved = max((float(np.max(np.abs(point[n]), initial=0)) for n in direction), default=0.0)
    length = max((float(np.max(np.abs(u), initial=0)) for u in direction.values()), default=0.0)
    return (moved or 1.0) / (length or 1.0)


def _moved(point: Point, direction: Direction, t: complex) -> dict[str, NDArray[Any]]:
    # Fresh arrays every time: a function that writes into its arguments harms nobody. In a
    # complex step all parameters are complex, so that no dtype depends on the direction.
    dtype = np.complex128 if isinstance(t, complex) else np.float64
    return {
        name: np.asarray(x + t * direction[name] if name in direction else np.array(x, dtype))
        for name, x in point.items()
    }
