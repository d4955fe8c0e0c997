"""The comparisons that make up a check: of every entry, or along directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.testing.compare import Comparer, Finding, gravest
from refkd.testing.differences import Estimate
from refkd.testing.directions import RandomDirection, Slope, total
from refkd.testing.explain import explain
from refkd.testing.kinks import FarSlopes, far_from_slopes
from refkd.testing.problem import Problem
from refkd.testing.references import Reference
from refkd.testing.report import Comparison, GradReport, ParameterReport, Verdict

__all__ = ["Limits", "along_directions", "every_entry"]

_SMALL = 4.0  # digits, by which a parameter's terms are less than all
_HALF = 0.5  # a scaled error that passes only where both derivatives are zero
_SAMPLED = 16  # entries for a guess where not all are compared
_MESSAGES = {
    Verdict.PASS: "",
    Verdict.KINK: "f has a kink here, at {place}; the gradient is a slope between those beside it",
    Verdict.WRONG_GRADIENT: "the gradient of {place} is not the derivative of f",
    Verdict.NOISY_REFERENCE: (
        "cannot tell at {place}: the numeric derivative's error bar, or the rounding of f, covers "
        "the gap or exceeds the tolerance"
    ),
    Verdict.NONFINITE: "the numeric derivative at {place} is not finite",
}


class Limits(NamedTuple):
    """The scaled error of a right gradient, and the error bar that still proves something."""

    tolerance: float
    precision: float


def every_entry(problem: Problem, reference: Reference, limits: Limits, seed: int) -> GradReport:
    """Compare all entries of all parameters."""
    comparer = Comparer(problem.gradients(problem.point), reference, *limits)
    findings: list[Finding] = []
    numeric: dict[str, NDArray[np.float64]] = {}
    parameters, notes, unfit = [], [], []
    for name, x in problem.point.items():
        if x.size == 0:
            parameters.append(_parameter(problem, name, Verdict.PASS, None, 0, np.zeros(x.shape)))
            continue
        kink = reference.verify(RandomDirection(problem.point, [name], seed), quick=False)
        if kink.jump:
            notes.append(_kink_note(name, kink))
        every = comparer.entries(name)
        findings.append(every.finding)
        numeric[name] = every.numeric
        verdict, comparison, _ = every.finding
        if verdict is Verdict.KINK or (kink.jump and verdict is Verdict.PASS):
            far = far_from_slopes(problem, reference, name, comparer.gradients[name], seed)
            if far is not None:
                notes.append(_far_note(name, far))
                unfit.append(name)
            verdict = Verdict.KINK if far is None else Verdict.WRONG_GRADIENT
            findings[-1] = every.finding._replace(verdict=verdict)
        if verdict is Verdict.PASS and comparison.scaled_error > _HALF:
            notes.append(f"the gradient of {name} is zero to within {comparison.error_bar:.1e}")
        parameters.append(_parameter(problem, name, verdict, comparison, every.wrong, every.errors))
    report = _concluded(problem, reference, "full", limits.tolerance, findings, parameters, notes)
    if unfit and report.worst is not None and report.worst.name in unfit:
        return replace(
            report, message=f"at a kink the gradient of {report.worst.name} fits no slope"
        )
    if report.verdict is not Verdict.WRONG_GRADIENT or report.worst is None:
        return report
    if gravest(findings).estimate.jump:  # no factor explains a slope beside a kink
        return report
    name = report.worst.name
    guess = explain(comparer.gradients[name], numeric[name].ravel(), None, problem.leaves)
    return replace(report, explanation=guess)


def along_directions(
    problem: Problem,
    reference: Reference,
    limits: Limits,
    joint: RandomDirection,
    along: Mapping[str, Slope],
) -> tuple[GradReport, bool]:
    """Compare along one direction of all parameters; where that fails, along one for each.

    Parameters whose terms are small beside those of the others are compared once more,
    along with those about as small: in the joint slope they may be lost.

    Returns
    -------
    report : GradReport
    kinked : bool
        Whether f has a kink along the direction.
    """
    comparer = Comparer({}, reference, *limits)
    notes: list[str] = []
    findings: list[Finding] = []
    suspects: list[str] = []
    verdicts = dict.fromkeys(problem.point, Verdict.PASS)
    kinked = False
    for names in (list(joint), *_small(along)):
        direction = joint.along(names)
        # The gradient along it is known from the first calls, and need not be kept.
        terms = total([along[name] for name in names])
        finding = comparer.along(direction, terms, reference.verify(direction, quick=True))
        verdicts.update(dict.fromkeys(names, finding.verdict))
        if finding.estimate.jump:
            kinked = True
            notes.append(_kink_note("a random direction", finding.estimate))
        if reference.unseen:
            notes.append(_unseen_note(reference.unseen))
        if finding.verdict in (Verdict.PASS, Verdict.KINK):
            findings.append(finding)
            continue
        coarse = reference.method != "complex" and finding.verdict is Verdict.NOISY_REFERENCE
        if findings and coarse:
            notes.append(_lost_note(names))
        else:
            suspects += names
        if not findings:
            break
    parameters = [_parameter(problem, name, verdict) for name, verdict in verdicts.items()]
    if suspects:
        comparer = Comparer(problem.gradients(problem.point), reference, *limits)
        found = {
            name: comparer.parameter(name, RandomDirection(problem.point, [name], 0))
            for name in suspects
            if problem.point[name].size > 0
        }
        findings += found.values()
        parameters = [
            _parameter(problem, p.name, *found[p.name][:2]) if p.name in found else p
            for p in parameters
        ]
    report = _concluded(
        problem, reference, "directional", limits.tolerance, findings, parameters, notes
    )
    if report.verdict is Verdict.WRONG_GRADIENT and report.worst is not None:
        report = replace(report, explanation=_sampled(problem, comparer, report.worst))
    return report, kinked


def _small(along: Mapping[str, Slope]) -> list[list[str]]:
    """Return the parameters whose terms are small beside the others', about equal ones together."""
    whole = total(along.values()).size
    groups: dict[int, list[str]] = {}
    for name, part in along.items():
        smallness = -math.log10(max(part.size / whole, 1e-99)) if whole else 0.0
        if smallness > _SMALL:
            groups.setdefault(min(int((smallness - _SMALL) / 3), 3), []).append(name)
    return [groups[k] for k in sorted(groups)]


def _sampled(problem: Problem, comparer: Comparer, worst: Comparison) -> str:
    """Explain a wrong gradient from some of its entries."""
    gradient = comparer.gradients[worst.name]
    places = np.unique(np.linspace(0, gradient.size - 1, _SAMPLED).astype(np.intp))
    if worst.index is not None:
        places = np.union1d(places, np.ravel_multi_index(worst.index, gradient.shape))
    directions = (comparer.one(worst.name, int(flat)) for flat in places)
    numeric = np.array([comparer.reference.along(u).value for u in directions])
    everywhere = RandomDirection(problem.point, [worst.name], 0)
    along = everywhere[worst.name], comparer.reference.along(everywhere).value
    return explain(gradient, numeric, places, problem.leaves, along)


def _concluded(
    problem: Problem,
    reference: Reference,
    mode: str,
    tolerance: float,
    findings: list[Finding],
    parameters: list[ParameterReport],
    notes: list[str],
) -> GradReport:
    report = GradReport(
        Verdict.PASS,
        "",
        parameters=tuple(parameters),
        entries=problem.entries,
        method=reference.method,
        mode=mode,
        tolerance=tolerance,
        notes=tuple(notes),
    )
    if not findings:
        return report
    verdict, worst, estimate = gravest(findings)
    message = _MESSAGES[verdict].format(place=worst.place)
    if verdict is Verdict.WRONG_GRADIENT:
        message += _extent(worst.name, parameters)
    if estimate.jump:
        left, right = estimate.slopes
        message += (
            f"; the slope is {left:.6g} on the left and {right:.6g} on the right, the gradient "
            f"says {worst.analytic:.6g}"
        )
    return replace(report, verdict=verdict, message=message, worst=worst)


def _extent(name: str, parameters: list[ParameterReport]) -> str:
    """Say how much of a parameter is wrong, and what else is."""
    wrong = [p for p in parameters if p.verdict is Verdict.WRONG_GRADIENT]
    said = ""
    for p in wrong:
        if p.name == name and p.wrong is not None:
            size = int(np.prod(p.shape))
            said = f"; {p.wrong} of its {size} {'entry is' if size == 1 else 'entries are'} wrong"
    others = [p.name for p in wrong if p.name != name]
    return said + (f"; wrong as well: {', '.join(others)}" if others else "")


def _parameter(
    problem: Problem,
    name: str,
    verdict: Verdict,
    worst: Comparison | None = None,
    wrong: int | None = None,
    errors: NDArray[np.float64] | None = None,
) -> ParameterReport:
    shape, dtype = problem.point[name].shape, problem.dtypes[name]
    return ParameterReport(name, shape, dtype, verdict, worst, wrong, errors)


def _far_note(name: str, far: FarSlopes) -> str:
    return (
        f"{name}: each entry lies between its one-sided slopes, but their sum is "
        f"{far.analytic:.6g}, and at points on all sides it is {far.lowest:.6g} to "
        f"{far.highest:.6g}: of tied values, does more than one pass the whole gradient, or none?"
    )


def _kink_note(place: str, estimate: Estimate) -> str:
    left, right = estimate.slopes
    return f"along {place} the slope jumps from {left:.6g} to {right:.6g} at the point itself"


def _unseen_note(share: float) -> str:
    return (
        f"a term of f that the complex step loses (abs, conj, .real, a cast) would show if it were "
        f"more than {share:.0e} of the slope"
    )


def _lost_note(names: list[str]) -> str:
    return (
        f"next to nothing of the slope comes from {', '.join(names[:3])}"
        f"{' ...' if len(names) > 3 else ''}: too little for differences to tell"
    )
