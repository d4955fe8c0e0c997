"""The first calls of a function and its gradient: whether there is anything to compare.

Shapes, dtypes, finiteness, determinism, and what the calls do to memory. Each complaint
says what was expected and what to write instead.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from refkd.testing.complaints import (
    Complaint,
    gradient_complaint,
    point_complaint,
    value_complaint,
)
from refkd.testing.derivatives import moved
from refkd.testing.directions import Direction, Slope, slopes, total
from refkd.testing.problem import Problem
from refkd.testing.report import Verdict
from refkd.testing.structure import flatten

__all__ = ["Examination", "examine"]

Owner: TypeAlias = "weakref.ReferenceType[NDArray[Any]]"
Slopes: TypeAlias = Mapping[str, Slope]

_SAME = 1e-9  # relative difference of two calls that is no rounding error
_ELSEWHERE = 1e-3  # of the parameters' size
_REPLAY = (
    "a generator among the params, such as rng=numpy.random.default_rng(0), is replayed at every "
    "call"
)


class Examination(NamedTuple):
    """What the first calls showed.

    Attributes
    ----------
    complaint : Complaint or None
        Why there is nothing to compare.
    habit : Complaint or None
        What is wrong with the functions even where the gradient is right.
    value : float
        f at the point.
    slopes : dict of str to Slope
        The gradient along the direction that was given, by parameter.
    notes : tuple of str
    """

    complaint: Complaint | None
    habit: Complaint | None = None
    value: float = math.nan
    slopes: Mapping[str, Slope] = {}
    notes: tuple[str, ...] = ()


def examine(problem: Problem, direction: Direction) -> Examination:
    """Call f and grad on the arrays as given and in float64, and each a second time.

    Parameters
    ----------
    problem : Problem
    direction : mapping of float64 arrays
        Two gradients are compared along it.
    """
    complaint = point_complaint(problem)
    if complaint is not None:
        return Examination(complaint)
    value = problem.watched("f", problem.given)[0]
    complaint = value_complaint(value)
    if complaint is not None:
        return Examination(complaint)
    habit, gradients, unchecked = None, {}, []
    for leaves in (problem.given,) if problem.plain else (problem.given, problem.point):
        returned, arguments = problem.watched("grad", leaves)
        complaint = gradient_complaint(returned, leaves, problem)
        if complaint is not None:
            return Examination(complaint)
        gradients = problem.flat(returned)
        unchecked = [n for n, g in flatten(returned, problem.leaves).items() if g is not None]
        unchecked = [name for name in unchecked if name not in problem.given]
        before = [(f"the argument {name}", x) for name, x in arguments.items()]
        habit = habit or _shared(before, gradients)
        del returned, arguments, before
    if problem.writes:
        message = f"{problem.writes}, in place: let it work on a copy"
        habit = Complaint(Verdict.MUTATED_INPUT, message)
    if not problem.plain:
        value = problem.f(_copies(problem))
    # Two gradients of a large model at once are more memory than the check may take.
    first: Slopes = slopes(gradients, direction)
    owners = _owners(gradients)
    del gradients
    value, complaint = _second_value(problem, float(value))
    if complaint is not None:
        return Examination(complaint)
    first, complaint, recycled = _second_gradient(problem, direction, first, owners)
    notes = ["f or grad draws random numbers; the same seed was replayed at every call"]
    notes = notes * problem.replayed + [
        f"{name} is {_kind(problem.leaves[name])}, and so a constant: what grad returns for it was "
        f"not checked"
        for name in unchecked
    ]
    return Examination(complaint, habit or recycled, value, first, tuple(notes))


def _second_value(problem: Problem, value: float) -> tuple[float, Complaint | None]:
    """Compare with a second call of f; where it differs, with replayed seeds."""
    second = problem.f(_copies(problem))
    complaint = value_complaint(second)
    if complaint is not None:
        return value, complaint._replace(message=f"at its second call {complaint.message}")
    again = float(second)
    if _same(value, again, abs(value)):
        return value, None
    problem.replayed = True
    value, again = (float(problem.f(_copies(problem))) for _ in range(2))
    if _same(value, again, abs(value)):
        return value, None
    message = f"f gives {value:.17g} and {again:.17g} at one point; {_REPLAY}"
    return value, Complaint(Verdict.NONDETERMINISTIC, message)


def _second_gradient(
    problem: Problem, direction: Direction, first: Slopes, owners: list[tuple[str, Owner]]
) -> tuple[Slopes, Complaint | None, Complaint | None]:
    """Compare with the gradient that is returned after f was called at another point.

    Returns
    -------
    slopes : dict of str to Slope
        The gradient along ``direction``.
    complaint, habit : Complaint or None
    """
    # What f stores there must not be what grad uses; whether it has a value does not matter.
    with contextlib.suppress(Exception), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        problem.f(moved(problem.point, direction, _ELSEWHERE))
    gradients = problem.gradients(problem.point)
    second = slopes(gradients, direction)
    habit = _recycled(problem, direction, owners, gradients)
    del gradients
    if problem.replayed or _agree(first, second):
        third = slopes(problem.gradients(problem.point), direction) if problem.replayed else second
        if _agree(second, third):
            return second, None, habit
    else:
        problem.f(_copies(problem))
        third = slopes(problem.gradients(problem.point), direction)
        if _agree(first, third):
            reason = (
                "it seems to use what the last call of f stored: let it compute all it needs "
                "from its arguments"
            )
            return first, _differ("grad", first, second, reason), habit
        problem.replayed = True
        second, third = (slopes(problem.gradients(problem.point), direction) for _ in range(2))
        if _agree(second, third):
            return second, None, habit
    return first, _differ("grad", second, third, _REPLAY), habit


def _agree(a: Slopes, b: Slopes) -> bool:
    first, second = total(a.values()), total(b.values())
    return _same(first.value, second.value, first.size)


def _differ(name: str, a: Slopes, b: Slopes, reason: str) -> Complaint:
    return Complaint(
        Verdict.NONDETERMINISTIC,
        f"two calls of {name} at one point differ: along a random direction they give "
        f"{total(a.values()).value:.17g} and {total(b.values()).value:.17g}; {reason}",
    )


def _owners(gradients: Mapping[str, NDArray[Any]]) -> list[tuple[str, Owner]]:
    """Return weak references to the arrays that own the memory of ``gradients``."""
    owners = []
    for name, owner in gradients.items():
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        owners.append((name, weakref.ref(owner)))
    return owners


def _recycled(
    problem: Problem,
    direction: Direction,
    owners: list[tuple[str, Owner]],
    gradients: Mapping[str, NDArray[Any]],
) -> Complaint | None:
    """Complain of gradients in memory of the call before, if a further call overwrites them."""
    alive = [(name, owner()) for name, owner in owners]
    before = [(f"what grad returned before for {n}", x) for n, x in alive if x is not None]
    complaint = _shared(before, gradients) if before else None
    if complaint is None:
        return None
    # One and the same array each time, such as a gradient known beforehand, is no hazard.
    kept = {name: g.copy() for name, g in gradients.items()}
    problem.gradients(moved(problem.point, direction, _ELSEWHERE))
    changed = any(not np.array_equal(g, kept[name]) for name, g in gradients.items())
    return complaint if changed else None


def _kind(leaf: Any) -> str:
    return f"of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"a Python {type(leaf).__name__}"


def _copies(problem: Problem) -> dict[str, NDArray[Any]]:
    return moved(problem.point, {}, 0.0)


def _same(a: float, b: float, size: float) -> bool:
    return abs(a - b) <= _SAME * max(size, abs(a), abs(b))


def _shared(
    others: list[tuple[str, NDArray[Any]]], gradients: Mapping[str, NDArray[Any]]
) -> Complaint | None:
    """Complain of a gradient that shares memory with another one, or with ``others``."""
    labelled = [*others, *((f"the gradient of {n}", g) for n, g in gradients.items())]
    bounds = sorted((byte_bounds(x), k) for k, (_, x) in enumerate(labelled) if x.size > 0)
    open_until: list[tuple[int, int]] = []
    for (begin, end), k in bounds:
        open_until = [(until, i) for until, i in open_until if until > begin]
        for _, i in open_until:
            (first, a), (second, b) = labelled[min(i, k)], labelled[max(i, k)]
            if max(i, k) >= len(others) and np.shares_memory(a, b):
                return Complaint(
                    Verdict.ALIASED,
                    f"{second} shares memory with {first}: changing one in place changes the "
                    f"other; return copies",
                )
        open_until.append((end, k))
    return None
