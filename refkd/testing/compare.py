"""The comparison itself: entry by entry, or along directions with bisection to the entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.testing.differences import Estimate
from refkd.testing.directions import Direction, Point, RandomDirection, Slope, slope, unit
from refkd.testing.references import Reference
from refkd.testing.report import Comparison, Verdict
from refkd.testing.rounding import UNDERFLOW

__all__ = ["Comparer", "Finding", "gravest"]

_TINY = 1e-300
_EPS = float(np.finfo(np.float64).eps)
_DOUBTFUL = 1e-12  # of the size of f and its slopes: a slope that f can hardly feel
_ZERO = 1e-11  # of the same: a slope that is zero, if its error bar covers it
_ROUNDED = 1e-6  # of the gradient, that 64 roundings of the size of f may pass for
_COARSEST = 1e-2  # of the gradient, an error bar with which it may still pass
_NOISY = 32  # entries of which nothing could be shown: enough to say so
_SEVERITY = (
    Verdict.PASS,
    Verdict.KINK,
    Verdict.NOISY_REFERENCE,
    Verdict.NONFINITE,
    Verdict.WRONG_GRADIENT,
)

Floats = NDArray[np.float64]


class Finding(NamedTuple):
    """One comparison, what it shows, and the numeric derivative with a kink that it may have."""

    verdict: Verdict
    comparison: Comparison
    estimate: Estimate


class EveryEntry(NamedTuple):
    """The comparison of all entries of one parameter.

    Attributes
    ----------
    finding : Finding
        The gravest.
    numeric : array
        The numeric derivative, in the parameter's shape.
    errors : array
        The scaled error of each entry.
    wrong : int
        Number of entries whose gap exceeds tolerance and error bar.
    """

    finding: Finding
    numeric: Floats
    errors: Floats
    wrong: int


def gravest(findings: list[Finding]) -> Finding:
    """Return the gravest finding, of equally grave ones that with the largest scaled error."""
    return max(findings, key=lambda f: (_SEVERITY.index(f.verdict), _rank(f.comparison)))


def _rank(comparison: Comparison) -> float:
    return -1.0 if math.isnan(comparison.scaled_error) else comparison.scaled_error


@dataclass(frozen=True)
class Comparer:
    """Compares one gradient with one numeric reference.

    Attributes
    ----------
    gradients : mapping of float64 arrays
        The analytic gradient at the point.
    reference : Reference
    tolerance : float
        Scaled error of a right gradient.
    precision : float
        Scaled error bar with which a numeric derivative still proves something.
    """

    gradients: Point
    reference: Reference
    tolerance: float
    precision: float

    def entries(self, name: str) -> EveryEntry:
        """Compare every entry of a parameter that has some."""
        analytic = self.gradients[name]
        flat_analytic = analytic.ravel()
        size = float(np.max(np.abs(analytic))) / 8
        numeric, bars, jumps = self.reference.entries(
            name, self.tolerance * size, self.precision * size
        )
        gap = np.abs(flat_analytic - numeric)
        scale = float(np.max(np.abs(numeric), where=np.isfinite(numeric), initial=0))
        scale = scale or max(_TINY, float(np.max(np.abs(analytic))))
        by_gap = np.argsort(-gap, kind="stable")
        plain = (gap <= self.tolerance * scale) & (bars <= self.precision * scale) & (jumps == 0)
        doubtful = ~plain
        findings = []
        for flat in [by_gap[0], *by_gap[1:][doubtful[by_gap[1:]]]]:
            estimate = Estimate(*(float(column[flat]) for column in (numeric, bars, jumps)))
            findings.append(self.entry(name, int(flat), estimate, scale))
            noisy = sum(f.verdict is Verdict.NOISY_REFERENCE for f in findings)
            if findings[-1].verdict is Verdict.WRONG_GRADIENT or noisy >= _NOISY:
                break
        worst = gravest(findings)
        wrong = 0
        if worst.verdict is Verdict.WRONG_GRADIENT:
            bar = worst.comparison.error_bar
            wrong = int(np.sum(gap - np.abs(jumps) / 2 > np.maximum(self.tolerance * scale, bar)))
        shape = analytic.shape
        return EveryEntry(worst, numeric.reshape(shape), (gap / scale).reshape(shape), wrong)

    def along(self, direction: Direction, analytic: Slope, estimate: Estimate) -> Finding:
        """Judge the gradient along a direction."""
        scale = max(_TINY, analytic.size, abs(estimate.value))
        name = _joined(list(direction))
        return self._judge(name, None, direction, analytic.value, estimate, scale)

    def parameter(self, name: str, direction: RandomDirection) -> Finding:
        """Compare along a direction of one parameter; trace a wrong one to its entry."""
        analytic, estimate = slope(self.gradients, direction), self.reference.along(direction)
        finding = self.along(direction, analytic, estimate)
        gap, wrong = analytic.value - estimate.value, finding.verdict is Verdict.WRONG_GRADIENT
        unclear = finding.verdict is Verdict.NOISY_REFERENCE and abs(gap) > estimate.error_bar
        if wrong or unclear:
            entry = self._bisect(name, direction[name], gap)
            # An error spread so thinly that no entry shows it stays with the direction. Kinks
            # of several entries may leave the gradient beside the slopes of a direction.
            if entry.verdict is Verdict.WRONG_GRADIENT or (wrong and entry.verdict is Verdict.KINK):
                finding = entry
        return finding

    def one(self, name: str, flat: int) -> Direction:
        """Return the direction of one entry."""
        return {name: unit(self.gradients[name].shape, flat)}

    def entry(self, name: str, flat: int, estimate: Estimate, scale: float) -> Finding:
        """Judge one entry, given its numeric derivative."""
        gradient = self.gradients[name]
        index = tuple(int(i) for i in np.unravel_index(flat, gradient.shape))
        analytic = float(gradient[index])
        return self._judge(name, index, self.one(name, flat), analytic, estimate, scale)

    def _bisect(self, name: str, u: Floats, gap: float) -> Finding:
        """Halve the direction and follow the half that is off by more, down to an entry."""
        gradient, direction = self.gradients[name].ravel(), u.ravel()
        part = np.zeros(direction.size)
        begin, end = 0, direction.size
        while end - begin > 1:
            middle = (begin + end) // 2
            half = slice(begin, middle)
            part[half] = direction[half]
            numeric = self.reference.along({name: part.reshape(u.shape)}).value
            part[half] = 0
            left = float(np.sum(gradient[half] * direction[half])) - numeric
            right = gap - left
            begin, end, gap = (
                (begin, middle, left) if abs(left) >= abs(right) else (middle, end, right)
            )
        del part
        estimate = self.reference.along(self.one(name, begin))
        scale = abs(estimate.value) or abs(float(self.gradients[name].flat[begin]))
        return self.entry(name, begin, estimate, max(_TINY, scale))

    def _judge(
        self,
        name: str,
        index: tuple[int, ...] | None,
        direction: Direction,
        analytic: float,
        estimate: Estimate,
        scale: float,
    ) -> Finding:
        # Along a direction one entry's error is diluted by all the others.
        part = scale if index is not None else scale / 100
        allowed, precise = self.tolerance * part, self.precision * part
        gap, bar = abs(analytic - estimate.value), estimate.error_bar
        within = gap <= allowed and bar <= precise
        resolved = vanishes = False
        if not within or index is not None:
            # A direction within bounds is spared these: they take several passes.
            bar = self.reference.error_bar(direction, analytic, estimate)
            size = self.reference.size(direction)
            bar = max(bar, min(64 * _EPS * size, _ROUNDED * scale))
            fine = max(self.precision * scale, min(_DOUBTFUL * size, _COARSEST * scale))
            resolved = gap <= max(bar, allowed) and bar <= fine
            largest = max(abs(analytic), abs(estimate.value))
            vanishes = largest <= max(min(bar, _ZERO * size), 4 * _EPS * size)
        if within or resolved or vanishes:
            verdict = Verdict.KINK if estimate.jump else Verdict.PASS
        elif not math.isfinite(gap):
            verdict = Verdict.NONFINITE
        else:
            estimate = self.reference.confirm(direction, estimate, analytic)
            size = self.reference.size(direction)
            doubtful = max(allowed, bar, estimate.error_bar, _DOUBTFUL * size, 4 * UNDERFLOW)
            if estimate.jump:
                # Points one rounding away lie on either side of a kink: no measure of rounding.
                bar = estimate.error_bar
                verdict = _beside_slopes(analytic, estimate, allowed)
            elif abs(analytic - estimate.value) <= doubtful:
                verdict = Verdict.NOISY_REFERENCE
            else:
                verdict = Verdict.WRONG_GRADIENT
        found = Comparison(name, index, analytic, estimate.value, bar, gap / scale)
        return Finding(verdict, found, estimate)


def _beside_slopes(analytic: float, estimate: Estimate, allowed: float) -> Verdict:
    """Judge a gradient at a kink by the slopes to both sides."""
    low, high = sorted(estimate.slopes)
    slack = estimate.error_bar + allowed
    if not low - slack <= analytic <= high + slack:
        return Verdict.WRONG_GRADIENT
    return Verdict.KINK if estimate.error_bar <= abs(estimate.jump) else Verdict.NOISY_REFERENCE


def _joined(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"
