"""The numeric derivatives as references to judge a gradient by: how far each is to be believed."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.exceptions import ComplexWarning
from numpy.typing import NDArray

from refkd.testing.derivatives import (
    STEP,
    Function,
    complex_entries,
    complex_step,
    moved,
    reach,
    smallest,
)
from refkd.testing.differences import Estimate, Noise, central, measure_noise, ridders
from refkd.testing.directions import Direction, Point, RandomDirection, unit
from refkd.testing.problem import Problem
from refkd.testing.rounding import UNDERFLOW, Rounding

__all__ = [
    "ComplexStep",
    "Differences",
    "Entries",
    "Reference",
    "UnsuitableError",
    "widest_float",
]

_EPS = float(np.finfo(np.float64).eps)
# A complex step and a central difference that differ by less are not looked at again.
_AGREES = 1e-6
_QUICK_STEPS = (1e-7, 1e-8)  # of x: a large network has a kink within any larger one
_LARGE = 100_000
_ROUNDED = 1e-9  # relative, of a complex step
_KINK_WITHIN = 1e-3  # of the size of the parameters, where a kink may hide beneath the noise
_WIDE_ENTRIES = 2000  # products of longdouble matrices are slow


class UnsuitableError(Exception):
    """A function has no such numeric derivative; the message says why."""


class Entries(NamedTuple):
    """The numeric derivatives along every entry of a parameter, flat."""

    values: NDArray[np.float64]
    error_bars: NDArray[np.float64]
    jumps: NDArray[np.float64]


class Reference(Protocol):
    """A way to take a numeric derivative.

    Attributes
    ----------
    method : str
    unseen : float
        As a part of the slope, what the last verification cannot have noticed, if it was
        a quick one.
    """

    method: str
    unseen: float

    def at(self, problem: Problem) -> Reference:
        """Return the same way for the same problem at another point."""

    def verify(self, direction: Direction, *, quick: bool) -> Estimate:
        """Return the derivative; UnsuitableError if f has none of this kind."""

    def along(self, direction: Direction) -> Estimate:
        """Return the derivative; its bar may be one rounding where measuring it costs extra."""

    def entries(self, name: str, enough: float, tolerable: float) -> Entries:
        """Return the derivatives along all entries.

        An error bar below ``enough`` is small enough to stop at; only one above
        ``tolerable`` is worth the effort of measuring the noise along its own entry.
        """

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """Return the measured uncertainty of ``analytic − estimate.value``."""

    def size(self, direction: Direction) -> float:
        """Return the size of f and of its slopes along ``direction``."""

    def confirm(self, direction: Direction, estimate: Estimate, analytic: float) -> Estimate:
        """Return the estimate with the kink it may have; UnsuitableError if it cannot be true."""


class ComplexStep:
    """The complex step, exact to rounding; believed where real differences agree with it.

    Raises
    ------
    UnsuitableError
        By :meth:`confirm` and :meth:`verify`, and at construction if the function does
        not take complex arrays.
    """

    method = "complex"

    def __init__(self, problem: Problem, value: float) -> None:
        self._problem, self._rounding = problem, Rounding(problem, value)
        self.unseen = 0.0

    def at(self, problem: Problem) -> ComplexStep:
        """Return the complex step of the same problem at another point."""
        return ComplexStep(problem, math.nan)

    def verify(self, direction: Direction, *, quick: bool) -> Estimate:
        """Return the derivative along ``direction`` once real differences have confirmed it.

        Parameters
        ----------
        direction : mapping of float64 arrays
        quick : bool
            If f is large, take two or four values of it where they agree to 1e-6, and only
            otherwise some fifty.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("error", ComplexWarning)
            try:
                numeric = self.along(direction)
            except Exception as error:
                raise UnsuitableError(
                    f"f does not take complex arrays ({type(error).__name__}: {error})"
                ) from error
        self.unseen = 0.0
        if quick and self._problem.entries >= _LARGE:
            f, point = self._problem.f, self._problem.point
            # Beside a kink the second step is 50 calls cheaper, and ten times less precise.
            for step in _QUICK_STEPS:
                real = central(f, point, direction, step)
                gap = abs(real.value - numeric.value)
                if gap <= real.error_bar + _AGREES * abs(numeric.value):
                    self.unseen = (gap + real.error_bar) / (abs(numeric.value) or math.inf)
                    return numeric
        found = self.confirm(direction, numeric, numeric.value)
        if math.isfinite(found.error_bar):
            return found
        # A step as large as the largest entry may leave the domain of the smallest.
        signs = {name: np.sign(direction[name]) for name in direction}
        own = {name: sign * np.abs(self._problem.point[name]) for name, sign in signs.items()}
        self.confirm(own, self.along(own), 0.0)
        return found._replace(error_bar=numeric.error_bar)

    def along(self, direction: Direction) -> Estimate:
        """Return the complex step along ``direction``; its bar is one rounding, not measured."""
        value = complex_step(self._problem.f, self._problem.point, direction)
        return Estimate(value, _EPS * abs(value))

    def entries(self, name: str, enough: float, tolerable: float) -> Entries:
        """Return the complex step along all entries; their bars are one rounding, not measured."""
        f = self._problem.f
        if self._problem.writes:
            point = self._problem.point
            x = point[name]
            values = np.array(
                [complex_step(f, point, {name: unit(x.shape, flat)}) for flat in range(x.size)]
            )
        else:
            values = complex_entries(f, self._problem.point, name)
        return Entries(values, _EPS * np.abs(values), np.zeros(values.shape))

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """Four times the change of both derivatives at points one rounding away."""
        f, largest = self._problem.f, UNDERFLOW
        for k, (nearby, there) in enumerate(self._rounding.nearby(direction)):
            # A step that is no power of two apart rounds the imaginary part otherwise.
            numeric = complex_step(f, nearby, direction, step=STEP / (2 * k + 3))
            largest = max(largest, abs(numeric - estimate.value) + abs(there - analytic))
        return 4 * largest

    def size(self, direction: Direction) -> float:
        """Return the size of f and of its slopes along ``direction``, here and far away."""
        return self._rounding.size(direction)

    def confirm(self, direction: Direction, estimate: Estimate, analytic: float) -> Estimate:
        """Compare with real differences along ``direction``; return these where f has a kink.

        There the complex step is that of one branch, and is compared at a point nearby.
        """
        point = self._problem.point
        numeric = estimate.value
        needed = 0.1 * abs(numeric - analytic) or 1e-6 * abs(numeric)
        real = there = self._differences(point, direction, needed)
        if real.jump:
            nearby = moved(point, RandomDirection(point, point, 0), 1e-3)
            numeric = complex_step(self._problem.f, nearby, direction)
            there = self._differences(nearby, direction, needed)
        gap = abs(there.value - numeric) - there.error_bar
        refuted = gap > _ROUNDED * abs(numeric) and gap > 1e-12 * self._rounding.size(direction)
        nearer = abs(there.value - analytic) < abs(there.value - numeric)
        if refuted or (gap > 0 and nearer and not real.jump):
            place = next(iter(direction)) if len(direction) == 1 else "a random direction"
            raise UnsuitableError(
                f"f is not analytic: along {place} the complex step gives {numeric:.6g}, real "
                f"differences {there.value:.6g} ± {there.error_bar:.1e}; look for abs, conj, "
                f".real or a cast to float"
            )
        # What real differences cannot resolve they cannot confirm.
        sizes = abs(there.value), abs(real.jump), abs(analytic)
        unresolved = not there.error_bar <= 0.1 * max(sizes)
        # The complex step was verified to _ROUNDED only: real differences must exclude the rest.
        if not real.jump and 0 < abs(numeric - analytic) <= _ROUNDED * abs(numeric):
            unresolved |= abs(there.value - analytic) <= there.error_bar
        found = real if real.jump else estimate
        return found._replace(error_bar=math.inf) if unresolved else found

    def _differences(self, point: Point, direction: Direction, needed: float) -> Estimate:
        """Return real differences, in longdouble where float64 is less precise than needed."""
        f, wide = self._problem.f, widest_float()
        real = ridders(f, point, direction)
        if real.value == 0 and real.error_bar <= needed:
            noise = self._rounding.noise(direction)
            real = real if noise is None else ridders(f, point, direction, noise=noise)
        if real.error_bar <= needed or self._problem.entries > _WIDE_ENTRIES:
            return real
        if wide is None or not computes_in(wide, f, point):
            return real
        return ridders(f, point, direction, dtype=wide)


class Differences:
    """Ridders' extrapolated central differences, which carry their error bar with them.

    Parameters
    ----------
    problem : Problem
    value : float
        f at the point.
    dtype : floating type
        Of the arithmetic: float64, or longdouble where that is wider and f computes in it.

    Raises
    ------
    UnsuitableError
        If f does not compute in ``dtype``.
    """

    def __init__(self, problem: Problem, value: float, dtype: type[np.floating[Any]]) -> None:
        self.method = "ridders" if dtype is np.float64 else "longdouble"
        self._problem, self._dtype = problem, dtype
        self._rounding = Rounding(problem, value)
        self.unseen = 0.0  # here there is no verification
        self._noise: dict[str, Noise] = {}
        if not computes_in(dtype, problem.f, problem.point):
            raise UnsuitableError(f"f does not compute in {np.dtype(dtype).name}")

    def at(self, problem: Problem) -> Differences:
        """Return the differences of the same problem at another point."""
        return Differences(problem, math.nan, self._dtype)

    def verify(self, direction: Direction, *, quick: bool) -> Estimate:
        """Return the extrapolated difference: it needs no verification."""
        return self._ridders(direction)

    def along(self, direction: Direction) -> Estimate:
        """Return the extrapolated difference and its bar."""
        return self._ridders(direction)

    def entries(self, name: str, enough: float, tolerable: float) -> Entries:
        """Return the differences along all entries."""
        shape = self._problem.point[name].shape
        found = []
        for flat in range(self._problem.point[name].size):
            direction = {name: unit(shape, flat)}
            estimate = self._ridders(direction, self._noise_of(name), enough)
            if estimate.error_bar > tolerable:
                # What all entries together are rounded by may be more than one alone is.
                estimate = self._ridders(direction)
            found.append(estimate)
        return Entries(*(np.array(column) for column in zip(*found, strict=True)))

    def error_bar(self, direction: Direction, analytic: float, estimate: Estimate) -> float:
        """The bar that the estimate came with, and four times the gradient's own rounding."""
        largest = 0.0
        for _, there in self._rounding.nearby(direction):
            largest = max(largest, abs(there - analytic))
        return estimate.error_bar + 4 * largest

    def size(self, direction: Direction) -> float:
        """Return the size of f and of its slopes along ``direction``, here and far away."""
        return self._rounding.size(direction)

    def confirm(self, direction: Direction, estimate: Estimate, analytic: float) -> Estimate:
        """Take it again with all the noise there may be, and allow for a kink beneath it.

        Here f may be too flat for its noise to show. And a kink so near that f bends by
        less than its noise is not to be seen at all, whatever the slopes beside it; nor
        is a singularity as near as the smallest entry is to zero.
        """
        f, point = self._problem.f, self._problem.point
        noises = [measure_noise(f, point, direction, dtype=self._dtype)]
        noises += [self._noise_of(name) for name in direction]
        elsewhere = self._rounding.noise(direction)
        if elsewhere is not None:
            noises.append(elsewhere)
        fine, coarse, size = (max(column) for column in zip(*noises, strict=True))
        again = self._ridders(direction, Noise(fine, coarse, size))
        alone = self._ridders(direction, noises[0])
        near = min(_KINK_WITHIN * reach(point, direction), smallest(point, direction))
        hidden = 8 * max(fine, coarse) / near
        bar = max(e.error_bar + abs(e.value - estimate.value) for e in (estimate, again, alone))
        bar += hidden
        return estimate._replace(error_bar=bar, jump=again.jump or estimate.jump)

    def _ridders(
        self, direction: Direction, noise: Noise | None = None, enough: float = 0.0
    ) -> Estimate:
        f, point = self._problem.f, self._problem.point
        return ridders(f, point, direction, dtype=self._dtype, noise=noise, enough=enough)

    def _noise_of(self, name: str) -> Noise:
        if name not in self._noise:
            everywhere = RandomDirection(self._problem.point, [name], 0)
            self._noise[name] = measure_noise(
                self._problem.f, self._problem.point, everywhere, dtype=self._dtype
            )
        return self._noise[name]


def computes_in(dtype: type[np.floating[Any]], f: Function, point: Point) -> bool:
    """Return whether f takes arrays of ``dtype``, and what it returns is no narrower."""
    if dtype is np.float64:
        return True
    try:
        return getattr(f(moved(point, {}, 0.0, dtype)), "dtype", None) == dtype
    except Exception:
        return False


def widest_float() -> type[np.floating[Any]] | None:
    """Return longdouble where it is wider than float64 on this machine, else None."""
    return np.longdouble if np.finfo(np.longdouble).eps < _EPS else None
