"""The gradient of the arrays as given, float32 or strided, judged by that of float64 copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.testing.derivatives import moved
from refkd.testing.differences import FIRST_STEP
from refkd.testing.problem import Leaves, Problem, copy_in_layout
from refkd.testing.report import Comparison, GradReport, Verdict
from refkd.testing.rounding import far_away
from refkd.testing.tolerances import GRADIENT

__all__ = ["judge_as_given"]

_NEARBY = 4
_STEP = 0.01
_RIGHT = 0.05  # of the tolerance, for a gradient that is right at another point
_ROUNDINGS = 8  # of the size that gradients of the parameter have elsewhere
_EPS = float(np.finfo(np.float64).eps)


def judge_as_given(problem: Problem, report: GradReport) -> GradReport:
    """Return ``report``, or a failed one where the gradient of the arrays as given is another.

    Notes
    -----
    A tolerance τ for float64 becomes τ·ε/ε₆₄ for a dtype with rounding ε: the same
    number of roundings. A gap beyond it is called wrong only where it is steady (at
    points a hundredth away rounding errors are others, but a wrong formula is about as
    wrong as it was), not as inaccurate as f itself is in that dtype, and more than 64
    roundings of the size of f: between them nothing is shown, since numbers as large as
    f may have cancelled.
    """
    exact = problem.gradients(problem.point)
    gaps = _gaps(problem.gradients(problem.given), exact)
    for name, gap in gaps.items():
        if gap.size == 0:
            continue
        given = problem.given[name]
        eps = float(np.finfo(given.dtype).eps)
        scale = float(np.max(np.abs(exact[name])))
        flat = int(np.argmax(np.abs(gap)))
        largest = float(np.abs(gap.ravel()[flat]))
        allowed = _relative(report.tolerance, given) * scale
        if largest <= allowed:
            continue
        index = tuple(int(i) for i in np.unravel_index(flat, given.shape))
        numeric = float(exact[name][index])
        scatter = 4 * _scatter(problem, name, flat, float(gap[index]))
        size, slope = _sizes(problem, name)
        relative = max(_ROUNDINGS * eps, 4 * _value_error(problem))
        smallest = float(np.finfo(given.dtype).tiny)
        # A wrong formula may scatter too: beyond a thousand roundings it is not passed.
        bar = max(allowed, min(scatter, 1e3 * eps * size), relative * slope, smallest)
        worst = Comparison(
            name, index, numeric + float(gap[index]), numeric, bar, largest / max(scale, 1e-300)
        )
        where = f"the gradient of {worst.place} in {given.dtype} (strides {given.strides})"
        if largest <= bar:
            note = f"{where} is {worst.analytic:.6g} for {numeric:.6g}, as rounding has it"
            report = replace(report, notes=(*report.notes, note))
        elif largest <= max(64 * eps * size, scatter) or not _wrong_elsewhere(
            problem, name, report.tolerance
        ):
            message = (
                f"{where} is {worst.analytic:.6g}, in float64 {numeric:.6g}: rounding of numbers "
                f"as large as f, or beside a kink, may explain it, or it is wrong"
            )
            return replace(report, verdict=Verdict.NOISY_REFERENCE, worst=worst, message=message)
        else:
            message = (
                f"{where} is {worst.analytic:.6g}; that of contiguous float64 copies is right, "
                f"{numeric:.6g}"
            )
            return replace(report, verdict=Verdict.WRONG_GRADIENT, worst=worst, message=message)
    return report


def _wrong_elsewhere(problem: Problem, name: str, tolerance: float) -> bool:
    """Whether the gradient of the arrays as given is another one at most points far away too.

    Half of them are of size 1: of very small or large numbers all may be lost in float32.
    """
    right = []
    size_one = {n: x / (np.max(np.abs(x), initial=0) or 1.0) for n, x in problem.point.items()}
    for point in (*far_away(problem.point), *far_away(size_one)):
        there = {n: copy_in_layout(x) for n, x in problem.given.items()}
        for n, x in there.items():
            x[...] = point[n]
        exact = problem.gradients({n: x.astype(np.float64, order="C") for n, x in there.items()})
        gap = np.abs(_gaps(problem.gradients(there), exact)[name])
        scale = np.max(np.abs(exact[name]))
        right.append(bool(np.max(gap) <= _RIGHT * _relative(tolerance, there[name]) * scale))
    return 2 * sum(right) < len(right)


def _relative(tolerance: float, given: NDArray[Any]) -> float:
    return max(tolerance, GRADIENT) * float(np.finfo(given.dtype).eps) / _EPS


def _gaps(gradients: dict[str, NDArray[Any]], exact: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: gradients[name].astype(np.float64) - exact[name] for name in exact}


def _scatter(problem: Problem, name: str, flat: int, gap: float) -> float:
    """Return how much the gap changes at points one hundredth away."""
    found = 0.0
    for nearby, exact in _nearby(problem):
        there = _gaps(problem.gradients(nearby), problem.gradients(exact))[name].ravel()[flat]
        found = max(found, abs(float(there) - gap))
    return found


def _value_error(problem: Problem) -> float:
    """Return how much the error of f itself changes nearby, as a part of its size.

    A constant part of it is no rounding: f may be as wrong for these arrays as its gradient.
    """
    errors, sizes = [], []
    for nearby, exact in _nearby(problem):
        value = float(problem.f(exact))
        errors.append(float(problem.f(nearby)) - value)
        sizes.append(abs(value))
    return (max(errors) - min(errors)) / (max(sizes) or 1.0)


def _nearby(problem: Problem) -> Iterator[tuple[Leaves, Leaves]]:
    """Yield points one hundredth away in the dtypes as given, and in float64."""
    for k in range(_NEARBY):
        rng = np.random.default_rng(k)
        nearby = {name: copy_in_layout(x) for name, x in problem.given.items()}
        for x in nearby.values():
            x *= (1 + _STEP * rng.uniform(-1, 1, x.shape)).astype(x.dtype)
        yield nearby, {name: x.astype(np.float64, order="C") for name, x in nearby.items()}


def _sizes(problem: Problem, name: str) -> tuple[float, float]:
    """Return the largest of |f| and |gradient|, and of |gradient| alone, here and far away.

    f counts as a slope: where the parameter is large, over the largest step of differences.
    """
    unit = max(1.0, FIRST_STEP * float(np.max(np.abs(problem.point[name]))))
    values, slopes = [], []
    for point in (problem.point, *far_away(problem.point)):
        slopes.append(float(np.max(np.abs(problem.gradients(point)[name]))))
        values.append(abs(float(problem.f(moved(point, {}, 0.0)))) / unit)
    slope = max((x for x in slopes if np.isfinite(x)), default=0.0)
    return max((x for x in (*values, slope) if np.isfinite(x)), default=0.0), slope
