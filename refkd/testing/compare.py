"""The comparison itself: entry by entry, or along directions with bisection to the entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.testing.derivatives import Estimate
from refkd.testing.references import Problem, Reference
from refkd.testing.report import Comparison, Verdict

__all__ = ["Comparer", "Finding", "worst_finding"]

_TINY = 1e-300
_SEVERITY = (Verdict.PASS, Verdict.NOISY_REFERENCE, Verdict.NONFINITE, Verdict.WRONG_GRADIENT)

Floats = NDArray[np.float64]


class Finding(NamedTuple):
    """One comparison and what it shows."""

    verdict: Verdict
    comparison: Comparison


def worst_finding(findings: list[Finding]) -> Finding:
    """Return the gravest finding, of equally grave ones that with the largest scaled error."""
    return max(findings, key=lambda f: (_SEVERITY.index(f.verdict), f.comparison.scaled_error))


@dataclass(frozen=True)
class Comparer:
    """Compares one gradient with one numeric reference."""

    problem: Problem
    reference: Reference
    tolerance: float

    def entries(self) -> list[Finding]:
        """Compare every entry; return one finding per parameter, the worst of it."""
        return [self._entries_of(n) for n, x in self.problem.point.items() if x.size > 0]

    def directions(self, rng: np.random.Generator) -> list[Finding]:
        """Compare along one random direction per parameter; trace a wrong one to its entry."""
        findings = []
        for name, x in self.problem.point.items():
            if x.size == 0:
                continue
            u = rng.standard_normal(x.shape)
            finding = self._along(name, u)
            if finding.verdict is Verdict.WRONG_GRADIENT:
                entry = self._bisect(name, u)
                # An error spread so thinly that no entry shows it stays with the direction.
                finding = entry if entry.verdict is Verdict.WRONG_GRADIENT else finding
            findings.append(finding)
        return findings

    def _entries_of(self, name: str) -> Finding:
        analytic = self.problem.gradients[name]
        shape = analytic.shape
        estimates = [
            self.reference.derivative({name: _unit(shape, flat)}) for flat in range(analytic.size)
        ]
        numeric, bars = (np.array(column) for column in zip(*estimates, strict=True))
        gap = np.abs(analytic.ravel() - numeric)
        scale = float(np.max(np.abs(numeric), where=np.isfinite(numeric), initial=_TINY))
        by_gap = np.argsort(-gap, kind="stable")
        doubtful = ~(np.maximum(gap, bars) <= self.tolerance * scale)
        findings = []
        for flat in [by_gap[0], *by_gap[1:][doubtful[by_gap[1:]]]]:
            findings.append(self._judge_entry(name, int(flat), estimates[flat], scale))
            if findings[-1].verdict is Verdict.WRONG_GRADIENT:
                break
        return worst_finding(findings)

    def _along(self, name: str, u: Floats) -> Finding:
        terms = self.problem.gradients[name] * u
        estimate = self.reference.derivative({name: u})
        scale = max(_TINY, float(np.sum(np.abs(terms))), abs(estimate.value))
        # One entry's error is diluted by all the others, hence the smaller tolerance.
        return self._judge(
            name, None, u, float(np.sum(terms)), estimate, scale, self.tolerance / 100
        )

    def _bisect(self, name: str, u: Floats) -> Finding:
        """Halve the direction and follow the half that is off by more, down to an entry."""
        terms, direction = (self.problem.gradients[name] * u).ravel(), u.ravel()
        begin, end = 0, direction.size
        while end - begin > 1:
            middle = (begin + end) // 2
            gaps = []
            for half in (slice(begin, middle), slice(middle, end)):
                part = np.zeros(direction.size)
                part[half] = direction[half]
                numeric = self.reference.derivative({name: part.reshape(u.shape)}).value
                gaps.append(abs(float(np.sum(terms[half])) - numeric))
            begin, end = (begin, middle) if gaps[0] >= gaps[1] else (middle, end)
        estimate = self.reference.derivative({name: _unit(u.shape, begin)})
        return self._judge_entry(name, begin, estimate, max(_TINY, abs(estimate.value)))

    def _judge_entry(self, name: str, flat: int, estimate: Estimate, scale: float) -> Finding:
        analytic = self.problem.gradients[name]
        index = tuple(int(i) for i in np.unravel_index(flat, analytic.shape))
        u = _unit(analytic.shape, flat)
        return self._judge(name, index, u, float(analytic[index]), estimate, scale, self.tolerance)

    def _judge(
        self,
        name: str,
        index: tuple[int, ...] | None,
        u: Floats,
        analytic: float,
        estimate: Estimate,
        scale: float,
        tolerance: float,
    ) -> Finding:
        direction = {name: u}
        gap, allowed, bar = abs(analytic - estimate.value), tolerance * scale, estimate.error_bar
        within = gap <= allowed and bar <= allowed
        negligible = 0.0
        if not within or index is not None:
            # A direction within bounds is spared these: they take several passes.
            bar = self.reference.error_bar(direction, analytic, estimate)
            negligible = self.reference.negligible(direction)
        if within or gap <= bar <= max(self.tolerance * scale, negligible):
            verdict = Verdict.PASS
        elif not math.isfinite(gap):
            verdict = Verdict.NONFINITE
        elif gap <= max(allowed, bar, negligible):
            verdict = Verdict.NOISY_REFERENCE
        else:
            self.reference.confirm(direction, estimate.value)
            verdict = Verdict.WRONG_GRADIENT
        found = Comparison(name, index, analytic, estimate.value, bar, gap / scale)
        return Finding(verdict, found)


def _unit(shape: tuple[int, ...], flat: int) -> Floats:
    unit = np.zeros(shape)
    unit[np.unravel_index(flat, shape)] = 1
    return unit
