"""From the first calls to the verdict: which reference, which entries, what else to say."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from refkd.testing.complaints import Complaint
from refkd.testing.derivatives import moved
from refkd.testing.directions import RandomDirection
from refkd.testing.examine import Examination, examine
from refkd.testing.precision import judge_as_given
from refkd.testing.problem import Problem
from refkd.testing.references import (
    ComplexStep,
    Differences,
    Reference,
    UnsuitableError,
    widest_float,
)
from refkd.testing.report import GradReport, Verdict
from refkd.testing.survey import Limits, along_directions, every_entry
from refkd.testing.tolerances import GRADIENT, GRADIENT_BY_DIFFERENCES

__all__ = ["Settings", "judge"]

_NEARBY = 0.03
_LONGDOUBLE_ENTRIES = 500


class Settings(NamedTuple):
    """The arguments of :func:`refkd.testing.check_grad`; the mode is decided."""

    method: str
    mode: str
    tolerance: float | None
    seed: int


def judge(problem: Problem, settings: Settings) -> GradReport:
    """Examine, compare, and look at what is left to say."""
    joint = RandomDirection(problem.point, problem.point, settings.seed)
    examination = examine(problem, joint)
    if examination.complaint is not None:
        return _stopped(examination.complaint, settings, examination.notes)
    problem.lenient = True
    with _silenced() as printed, _quiet():
        report, kinked = _compared(problem, settings, joint, examination)
        if kinked:
            report = _nearby(problem, settings, report)
        if report.ok and not problem.plain:
            report = judge_as_given(problem, report)
    notes = [*report.notes, *examination.notes]
    if printed():
        notes.append("f or grad prints; it was silenced after the first calls")
    habit = examination.habit
    if habit is not None and not report.ok:
        notes.append(habit.message)
    elif habit is not None:
        message = f"{habit.message}; the values of the gradient are right"
        report = replace(report, verdict=habit.verdict, message=message)
    return replace(report, notes=tuple(notes))


def _stopped(complaint: Complaint, settings: Settings, notes: tuple[str, ...]) -> GradReport:
    return GradReport(
        complaint.verdict,
        complaint.message,
        mode=settings.mode,
        tolerance=settings.tolerance or GRADIENT,
        explanation=complaint.explanation,
        notes=notes,
    )


def _compared(
    problem: Problem, settings: Settings, joint: RandomDirection, examination: Examination
) -> tuple[GradReport, bool]:
    """Compare with the first reference that suits the function; say if a direction has a kink."""
    reasons: list[str] = []
    for make in _references(problem, settings, examination.value):
        try:
            reference = make()
            limits = _limits(reference.method, settings.tolerance)
            if settings.mode == "full":
                report, kinked = every_entry(problem, reference, limits, settings.seed), False
            else:
                report, kinked = along_directions(
                    problem, reference, limits, joint, examination.slopes
                )
        except UnsuitableError as error:
            reasons.append(str(error))
        else:
            notes = [f"{reasons[0]}; judged by {reference.method} differences"] if reasons else []
            return replace(report, notes=(*report.notes, *notes)), kinked
    return _stopped(Complaint(Verdict.NOISY_REFERENCE, reasons[0]), settings, ()), False


def _references(
    problem: Problem, settings: Settings, value: float
) -> Iterator[Callable[[], Reference]]:
    method, wide = settings.method, widest_float()
    if method in ("auto", "complex"):
        yield lambda: ComplexStep(problem, value)
    few = settings.mode == "full" and problem.entries <= _LONGDOUBLE_ENTRIES
    if wide is not None and (method == "longdouble" or (method == "auto" and few)):
        yield lambda: Differences(problem, value, wide)
    if method in ("auto", "ridders"):
        yield lambda: Differences(problem, value, np.float64)


def _limits(method: str, tolerance: float | None) -> Limits:
    if tolerance is not None:
        return Limits(tolerance, tolerance)
    exact, coarse = GRADIENT, GRADIENT_BY_DIFFERENCES
    return {
        "complex": Limits(exact, exact),
        "longdouble": Limits(exact, coarse),
        "ridders": Limits(coarse, coarse),
    }[method]


def _nearby(problem: Problem, settings: Settings, report: GradReport) -> GradReport:
    """Judge again where there is no kink: between two slopes an error of an entry can hide."""
    direction = RandomDirection(problem.point, problem.point, settings.seed + 1)
    there = problem.at(moved(problem.point, direction, _NEARBY))
    joint = RandomDirection(there.point, there.point, settings.seed)
    examination = examine(there, joint)
    if examination.complaint is not None:
        return report
    again, _ = _compared(there, settings, joint, examination)
    if again.verdict is not Verdict.WRONG_GRADIENT:
        return report
    note = f"found at a point {_NEARBY:g} of the parameters' size away, where f has no kink"
    return replace(again, notes=(*again.notes, note))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing warn at points that the reader never gave."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silenced() -> Iterator[Callable[[], bool]]:
    """Swallow what is printed; the function that is yielded says whether anything was."""
    sink = _Sink()
    with contextlib.redirect_stdout(sink):
        yield lambda: sink.used


class _Sink(io.TextIOBase):
    used = False

    def write(self, text: str) -> int:
        self.used = True
        return len(text)
