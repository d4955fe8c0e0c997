"""Real differences: derivatives of any function of real numbers, with an honest error bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refkd.testing.derivatives import Function, moved, reach, smallest
from refkd.testing.directions import Direction, Point

__all__ = ["FIRST_STEP", "Estimate", "Noise", "central", "measure_noise", "ridders"]

_EPS = float(np.finfo(np.float64).eps)
# Neither the first step nor the ratio is a simple fraction: a periodic function sampled at
# its period looks constant.
_RATIO = 3.7
FIRST_STEP = 0.06
"""The largest step, as a part of what moves."""
_LADDER, _FINER = range(10), range(10, 25)  # of steps, down to 5e-7 and to 1e-15 of x
_PROBES = (13, 17, 21)
_SMALL = 1e-3  # of the largest entry
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


def ridders(
    f: Function,
    point: Point,
    direction: Direction,
    *,
    dtype: type[np.floating[Any]] = np.float64,
    noise: Noise | None = None,
    enough: float = 0.0,
    scale: float | None = None,
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
    scale : float, optional
        What steps are a part of, by default what :func:`reach` says.

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

    A singularity nearer than the smallest step, as that of log|x_i| at an x_i a
    millionth of the largest entry, is stepped over on both sides: its odd part cancels
    and the extrapolations agree on a wrong number. Hence single differences with steps
    far smaller, down to the smallest entry that moves. Where they deny what the
    extrapolations say by more than the noise, these are taken from such steps too; and
    along a single small entry, from steps in proportion to its own size.

    At a kink the central difference is the mean of the one-sided slopes; they show as
    [f(x + hu) − 2f(x) + f(x − hu)]/h not shrinking with h, and their distance is the
    ``jump``. Where it vanishes at the far smaller steps, the kink is not at the point
    but beside it, and there is none.
    """
    scale = scale or reach(point, direction)
    noise = noise or measure_noise(f, point, direction, dtype=dtype, scale=scale)
    line = _Line(lambda t: dtype(f(moved(point, direction, t, dtype))), scale, noise)
    own = smallest(point, direction)
    # A tenth of the smallest entry and less: two, lest the noise of one hide what they see.
    last = math.ceil(math.log(10 * FIRST_STEP * scale / own, _RATIO))
    for k in (*_PROBES, *([last, last + 2] if last > _LADDER[-1] else [])):
        line.two_sided(k)
    best = _best(line, _LADDER, enough)
    if not 4 * line.denied(best) <= best.error_bar < math.inf:
        best = min(best, _best(line, _FINER, enough), key=lambda found: found.error_bar)
    # Where f is rough at the finest scale that is looked at, slopes there may be anything.
    rough = math.inf if line.is_rough(float(np.finfo(dtype).eps)) else 0.0
    bar = float(best.error_bar) + _EPS * abs(float(best.value)) + rough
    found = Estimate(float(best.value), math.inf if math.isnan(bar) else bar, line.jump())
    alone = sum(map(np.count_nonzero, direction.values())) == 1
    if found.error_bar <= enough or own > _SMALL * scale or not alone:
        return found
    # One entry, far smaller than others: here its own size is the measure, of noise as well.
    closer = ridders(f, point, direction, dtype=dtype, enough=enough, scale=own)
    # A slope of nothing may be that of a rounded f, constant nearby.
    return closer if closer.value and closer.error_bar < found.error_bar else found


def central(f: Function, point: Point, direction: Direction, step: float) -> Estimate:
    """Return the central difference with one step, a part of x: two calls of f.

    The bar is four roundings of f; truncation and kinks nearby are not in it.
    """
    h = step * reach(point, direction)
    right, left = (float(f(moved(point, direction, t))) for t in (h, -h))
    return Estimate((right - left) / (2 * h), 4 * _EPS * max(abs(right), abs(left)) / h)


def measure_noise(
    f: Function,
    point: Point,
    direction: Direction,
    *,
    dtype: type[np.floating[Any]] = np.float64,
    scale: float | None = None,
) -> Noise:
    """Return the rounding of f along ``direction``: what a cubic through 8 values leaves over.

    At least one rounding of the largest value.
    """
    scale, found, size = scale or reach(point, direction), [], 0.0
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


class _Candidate(NamedTuple):
    """An extrapolation, its own error bar, and the number of its smallest step."""

    value: Any
    error_bar: Any
    smallest: int


@dataclass
class _Line:
    """f along a line: its differences at steps that get smaller, taken when asked for."""

    f: Callable[[float], Any]
    scale: float
    noise: Noise
    sampled: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.middle = self.f(0.0)
        self.rounding = max(self.noise.fine, self.noise.coarse)

    def step(self, k: int) -> float:
        """Return step k."""
        return self.scale * FIRST_STEP * _RATIO**-k

    def two_sided(self, k: int) -> tuple[Any, Any]:
        """Return the central difference with step k, and the right slope less the left one."""
        if k not in self.sampled:
            h = self.step(k)
            right, left = self.f(h), self.f(-h)
            self.sampled[k] = (right - left) / (2 * h), (right - 2 * self.middle + left) / h
        return self.sampled[k]

    def denied(self, candidate: _Candidate) -> Any:
        """Return by how much more than they may differ smaller steps differ from a candidate."""
        found = 0.0
        for k in self.sampled:
            if k > candidate.smallest:
                here = self.sampled[k][0]
                # Truncation is a fourteenth of the change before it, and the rest is noise.
                before = self.sampled[k - 1][0] if k - 1 in self.sampled else here
                allowed = abs(here - before) / 5 + self.uncertain(k)
                found = max(found, abs(candidate.value - here) - allowed)
        return found

    def uncertain(self, k: int) -> Any:
        """Return by how much noise may change the difference with step k.

        What was measured as noise may be structure; noise of two steps does not agree.
        """
        allowed, here = 8 * self.noise.fine / self.step(k), self.sampled[k][0]
        finer = [n for n in self.sampled if n > k]
        change = abs(here - self.sampled[min(finer)][0]) if finer and here else math.inf
        return min(allowed, 0.1 * abs(here)) if change <= 0.1 * abs(here) else allowed

    def is_rough(self, eps: float) -> bool:
        """Whether the noise is more than rounding, and much beside all changes of f."""
        change = max(
            max(abs(float(slope)), abs(float(gap))) * self.step(k)
            for k, (slope, gap) in self.sampled.items()
        )
        return bool(self.rounding > max(_ROUGH * change, 64 * eps * self.noise.size))

    def jump(self) -> float:
        """Return the right slope less the left one where they differ in the limit, else 0.

        Larger rather than smaller, by what the limit is uncertain. The limit is looked for
        at the smallest sampled step at which the difference of both is not all noise.
        """
        ladder = [k for k in sorted(self.sampled, reverse=True) if k in _LADDER]
        for k in ladder[:-1]:
            gap, before = (self.two_sided(n)[1] for n in (k, k - 1))
            if abs(gap) * self.step(k) <= 64 * self.rounding:
                continue
            limit = gap + (gap - before) / (_RATIO - 1)
            if not abs(limit) > 0.5 * abs(gap) or k < 2:
                return 0.0
            earlier = before + (before - self.two_sided(k - 2)[1]) / (_RATIO - 1)
            if not abs(limit - earlier) <= 0.25 * abs(limit) or self.vanishes(limit, k):
                return 0.0
            uncertain = abs(limit - earlier) + 16 * self.rounding / self.step(k)
            return float(limit + np.copysign(uncertain, limit))
        return 0.0

    def vanishes(self, jump: Any, smallest: int) -> bool:
        """Whether smaller steps show that a kink is not at the point but beside it."""
        return any(
            abs(gap - jump)
            > 0.5 * abs(jump) + min(64 * self.rounding / self.step(k), 4 * self.uncertain(k))
            for k, (_, gap) in self.sampled.items()
            if k > smallest
        )


def _best(line: _Line, ladder: range, enough: float) -> _Candidate:
    """Return the extrapolation with the smallest error bar, what smaller steps deny included."""
    best = _Candidate(math.nan, math.inf, ladder[0])
    for candidate in _neville(line, ladder, enough):
        bar = candidate.error_bar + 2 * line.denied(candidate)
        if bar < best.error_bar:
            best = candidate._replace(error_bar=bar)
    return best


def _neville(line: _Line, ladder: range, enough: float) -> list[_Candidate]:
    """Extrapolate from ever smaller steps, until an error bar is ``enough``."""
    # Two small steps that show what a larger one steps over, no smaller than noise lets them.
    quiet = [k for k in ladder[1:] if 8 * line.noise.fine / line.step(k) <= enough]
    # A kink takes three to see.
    last = max(ladder[2], quiet[-1]) if quiet else ladder[-1]
    line.two_sided(last - 1), line.two_sided(last)
    candidates: list[_Candidate] = []
    row: list[Any] = []
    for k in ladder:
        h, above, row = line.step(k), row, [line.two_sided(k)[0]]
        factor, good = 1.0, math.inf
        for m, earlier in enumerate(above):
            factor *= _RATIO**2
            row.append(row[m] + (row[m] - earlier) / (factor - 1))
            spread = max(abs(row[m + 1] - row[m]), abs(row[m + 1] - earlier))
            candidates.append(_Candidate(row[m + 1], 4 * spread + 8 * line.rounding / h, k))
            good = min(good, candidates[-1].error_bar + 2 * line.denied(candidates[-1]))
        if good <= enough:
            break
    return candidates
