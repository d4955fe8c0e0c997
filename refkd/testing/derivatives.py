"""Numeric derivatives along a direction, each with an honest error bar.

The complex step is exact to rounding but needs an analytic function; Ridders'
extrapolated central differences need nothing but a real one. Which of them is to be
believed is the business of :mod:`refkd.testing.references`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.testing.directions import Direction, Point, RandomDirection, scaled

__all__ = [
    "STEP",
    "Estimate",
    "Function",
    "Noise",
    "central",
    "complex_entries",
    "complex_step",
    "measure_noise",
    "moved",
    "one_ulp_away",
    "reach",
    "ridders",
]

Function = Callable[[Mapping[str, NDArray[Any]]], Any]

STEP = 1e-30
"""Of the complex step: its square vanishes beside 1, and slopes above 1e-278 survive it."""

_EPS = float(np.finfo(np.float64).eps)
# Neither the first step nor the ratio is a simple fraction: a periodic function sampled at
# its period looks constant.
_RATIO = 3.7
_STEPS = 0.06 * _RATIO ** -np.arange(10.0)
# Noise is what a cubic does not explain. The samples are irregular, since rounding at regular
# ones can repeat itself and look smooth; all on one side, since a kink at the point itself is
# no noise; there are two spacings, since a large constant quantises f more coarsely than the
# first can see.
_FINE, _COARSE = 3e-9, 2e-6
_ROUGH = 1e-4  # of the changes of f: noise beyond it is no rounding, not even float32's
_SAMPLES = 2 + np.cos(np.arange(8.0))
_CUBICS = np.vander(_SAMPLES, 4)
_RESIDUAL = np.eye(_SAMPLES.size) - _CUBICS @ np.linalg.pinv(_CUBICS)


class Estimate(NamedTuple):
    """A numeric derivative, its uncertainty, and how far apart the one-sided slopes are."""

    value: float
    error_bar: float
    jump: float = 0.0

    @property
    def slopes(self) -> tuple[float, float]:
        """The slopes to the left and to the right; equal where there is no kink."""
        return self.value - self.jump / 2, self.value + self.jump / 2


class Noise(NamedTuple):
    """The rounding of f at points very near each other, and farther apart; the size of f."""

    fine: float
    coarse: float
    size: float


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


def ridders(
    f: Function,
    point: Point,
    direction: Direction,
    *,
    dtype: type[np.floating[Any]] = np.float64,
    noise: Noise | None = None,
    enough: float = 0.0,
) -> Estimate:
    """Return the derivative along ``direction`` by extrapolated central differences.

    Parameters
    ----------
    f, point, direction
        As in :func:`complex_step`; f need be neither analytic nor smooth.
    dtype : floating type
        Of the arrays that f is called with.
    noise : Noise, optional
        That of f, measured along ``direction`` by default.
    enough : float
        An error bar that is small enough to stop at.

    Returns
    -------
    Estimate
        Of all extrapolations the one with the smallest error bar. NaN ± infinity where
        none is finite.

    Notes
    -----
    The central difference D(h) = [f(x + hu) − f(x − hu)]/2h is f' + c₂h² + c₄h⁴ + ....
    Neville's scheme removes one power after the other (Ridders: Advances in
    Engineering Software 4 (1982); Numerical Recipes, dfridr): with h_k = h₀ r⁻ᵏ and
    T_k0 = D(h_k), T_km = T_k,m−1 + [T_k,m−1 − T_k−1,m−1]/(r²ᵐ − 1). The distance of
    T_km from the two it was made of estimates its error, and is right nine times of
    ten. So the error bar is four times that, plus 8 noise/h where the noise of f is
    measured and not assumed, plus twice what differences with smaller steps deny. A
    structure of f finer than about 1e-6 of x is taken for noise; where its amplitude is
    more than 1e-4 of how f changes over x, the bar is infinite.

    At a kink the central difference is the mean of the one-sided slopes; they show as
    [f(x + hu) − 2f(x) + f(x − hu)]/h not shrinking with h, and their distance is the
    ``jump``.
    """
    scale = reach(point, direction)

    def along(t: float) -> Any:
        return dtype(f(moved(point, direction, t, dtype)))

    if noise is None:
        noise = measure_noise(f, point, direction, dtype=dtype)
    rounding = max(noise.fine, noise.coarse)
    steps = scale * _STEPS
    middle = along(0.0)
    sampled: dict[int, tuple[Any, Any]] = {}

    def two_sided(k: int) -> tuple[Any, Any]:
        if k not in sampled:
            right, left, h = along(steps[k]), along(-steps[k]), steps[k]
            sampled[k] = (right - left) / (2 * h), (right - 2 * middle + left) / h
        return sampled[k]

    def denied(value: Any, row: int) -> Any:
        """Return by how much more than they may differ finer steps differ from ``value``."""
        found = 0.0
        for k in sampled:
            if k > row and k - 1 in sampled:
                here, before = sampled[k][0], sampled[k - 1][0]
                # Truncation is a fourteenth of the change before it, and the rest is noise.
                allowed = abs(here - before) / 5 + 8 * noise.fine / steps[k]
                found = max(found, abs(value - here) - allowed)
        return found

    # Two small steps that show what a larger one steps over, no smaller than noise lets them.
    quiet = [k for k, h in enumerate(steps) if k > 0 and 8 * noise.fine / h <= enough]
    last = quiet[-1] if quiet else len(steps) - 1
    two_sided(last - 1), two_sided(last)
    candidates: list[tuple[Any, Any, int]] = []
    row: list[Any] = []
    for k, h in enumerate(steps):
        above, row = row, [two_sided(k)[0]]
        factor, good = 1.0, math.inf
        for m, earlier in enumerate(above):
            factor *= _RATIO**2
            row.append(row[m] + (row[m] - earlier) / (factor - 1))
            spread = max(abs(row[m + 1] - row[m]), abs(row[m + 1] - earlier))
            candidates.append((row[m + 1], 4 * spread + 8 * rounding / h, k))
            good = min(good, candidates[-1][1] + 2 * denied(row[m + 1], k))
        if good <= enough:
            break
    bars = [float(bar + 2 * denied(value, k)) for value, bar, k in candidates]
    best = Estimate(math.nan, math.inf)
    for (value, _, _), bar in zip(candidates, bars, strict=True):
        if bar < best.error_bar:
            best = Estimate(float(value), bar)
    best = best._replace(jump=_jump(two_sided, sorted(sampled), steps, rounding))
    # Where f is rough at the finest scale that is looked at, slopes there may be anything.
    largest = max(abs(float(d)) * h for (d, _), h in ((sampled[k], steps[k]) for k in sampled))
    expected = 64 * float(np.finfo(dtype).eps) * noise.size
    rough = math.inf if rounding > max(_ROUGH * largest, expected) else 0.0
    bar = best.error_bar + _EPS * abs(best.value) + rough
    return best._replace(error_bar=math.inf if math.isnan(bar) else bar)


def central(f: Function, point: Point, direction: Direction) -> float:
    """Return the central difference with one step: two calls of f.

    The step, 1e-7 of x, is small, since a large network has kinks within any larger one;
    rounding is some 1e-9 for a function of moderate size.
    """
    h = 1e-7 * reach(point, direction)
    right, left = (float(f(moved(point, direction, t))) for t in (h, -h))
    return (right - left) / (2 * h)


def measure_noise(
    f: Function,
    point: Point,
    direction: Direction,
    *,
    dtype: type[np.floating[Any]] = np.float64,
) -> Noise:
    """Return the rounding of f along ``direction``: what a cubic through 8 values leaves over.

    At least one rounding of the largest value.
    """
    scale, found, size = reach(point, direction), [], 0.0
    for spacing in (_FINE, _COARSE):
        values = np.array(
            [dtype(f(moved(point, direction, scale * spacing * t, dtype))) for t in _SAMPLES]
        )
        residual = np.asarray(_RESIDUAL @ (values - values[0]), dtype=np.float64)
        # hypot and not a sum of squares, which underflow.
        deviation = math.hypot(*residual) / math.sqrt(_SAMPLES.size - 4)
        largest = float(np.max(np.abs(values)))
        floor = float(np.finfo(dtype).eps) * largest
        found.append(max(deviation, floor) if math.isfinite(floor) else math.inf)
        size = max(size, largest)
    return Noise(found[0], found[1], size)


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
        there[name] = z = np.empty_like(x, dtype=np.complex128)
        z.real[...] = x
        z.imag[...] = scaled(direction, name, step) if name in direction else 0
    return there


def _jump(
    two_sided: Callable[[int], tuple[Any, Any]],
    sampled: list[int],
    steps: NDArray[np.float64],
    rounding: float,
) -> float:
    """Return the right slope less the left one where they differ in the limit, else 0.

    Larger rather than smaller, by what the limit is uncertain. The limit is looked for at
    the smallest of the sampled steps at which the difference of both is not all noise.
    """
    for k in reversed(sampled[1:]):
        gap, before = (two_sided(n)[1] for n in (k, k - 1))
        if abs(gap) * steps[k] <= 64 * rounding:
            continue
        limit = gap + (gap - before) / (_RATIO - 1)
        if not abs(limit) > 0.5 * abs(gap) or k < 2:
            return 0.0
        earlier = before + (before - two_sided(k - 2)[1]) / (_RATIO - 1)
        if not abs(limit - earlier) <= 0.25 * abs(limit):
            return 0.0
        uncertain = abs(limit - earlier) + 16 * rounding / steps[k]
        return float(limit + np.copysign(uncertain, limit))
    return 0.0


def reach(point: Point, direction: Direction) -> float:
    """The factor that makes a unit step along ``direction`` as large as the parameters moved."""
    if isinstance(direction, RandomDirection):
        return 1.0
    there, length = 0.0, 0.0
    for name, u in direction.items():
        there = max(there, float(np.max(np.abs(point[name]), initial=0)))
        length = max(length, float(np.max(np.abs(u), initial=0)))
    return (there or 1.0) / (length or 1.0)
