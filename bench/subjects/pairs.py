"""The registered kernel pairs with another backward in the place of their own.

Every pair takes part by being registered and having cases; nothing here names one.
"""

from __future__ import annotations

import contextvars
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.subjects.gradient_mutants import gradient_mutants
from bench.subjects.source_mutants import source_mutants
from refkd import dispatch
from refkd.dispatch import Backend, registered_kernels
from refkd.testing.pairs import PairCase, all_cases, backward, check_pair, forward
from refkd.testing.report import GradReport

__all__ = [
    "Mutant",
    "cases_by_pair",
    "checked",
    "distance",
    "gradients_of",
    "mutants_of",
    "reference_of",
]


class Mutant(NamedTuple):
    """A backward with an error.

    Attributes
    ----------
    pair, kind, change : str
        ``change`` says where and what.
    function : callable
    """

    pair: str
    kind: str
    change: str
    function: Callable[..., Any]


def cases_by_pair() -> dict[str, list[PairCase]]:
    """Return the cases of every registered pair that has any."""
    found: dict[str, list[PairCase]] = {}
    for case in all_cases():
        found.setdefault(case.pair, []).append(case)
    return found


def reference_of(pair: str) -> Callable[..., Any]:
    """Return the backward of ``pair`` itself."""
    return registered_kernels()[f"{pair}_backward"].reference


def mutants_of(pair: str, cases: list[PairCase]) -> list[Mutant]:
    """Return the mutants of what the backward returns, and those of its source."""
    own = reference_of(pair)
    names = max((case.gradients for case in cases), key=lambda g: sum(n is not None for n in g))
    returned = [
        Mutant(pair, f"returned: {m.kind}", m.where, m.function)
        for m in gradient_mutants(own, names)
    ]
    return returned + [
        Mutant(pair, f"source: {m.kind}", f"line {m.line}: {m.change}", m.function)
        for m in source_mutants(own)
    ]


def checked(case: PairCase, function: Callable[..., Any], seed: int) -> GradReport:
    """Return the gradient check of ``case`` with ``function`` as its backward."""
    with warnings.catch_warnings(action="ignore"):
        return _in_place(case.pair, function).run(check_pair, case, seed)


def gradients_of(case: PairCase, function: Callable[..., Any], seed: int) -> dict[str, Any]:
    """Return the gradients where the check of ``case`` takes them, with another backward."""

    def evaluate() -> dict[str, Any]:
        rng = case.generator(seed)
        inputs = case.inputs(rng)
        outputs = forward(case, inputs)
        cotangent = rng.standard_normal(np.shape(outputs[0]))
        returned = backward(case, cotangent, inputs, outputs)
        named = zip(case.gradients, returned, strict=True)
        return {name: value for name, value in named if name is not None}

    with warnings.catch_warnings(action="ignore"):
        return _in_place(case.pair, function).run(evaluate)


def distance(own: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest difference, in units of the largest entry of the same gradient.

    Infinite where shapes differ, an entry is not finite, or one is not zero where all
    should be.
    """
    largest = 0.0
    for name, right in own.items():
        if np.shape(other[name]) != np.shape(right):
            return math.inf
        gap = float(np.max(np.abs(other[name] - right), initial=0))
        scale = float(np.max(np.abs(right), initial=0))
        if gap != 0:
            largest = max(largest, gap / scale if scale > 0 and math.isfinite(gap) else math.inf)
    return largest


def _in_place(pair: str, function: Callable[..., Any]) -> contextvars.Context:
    """Return a context in which calls of the pair's backward reach ``function``."""
    kernels = {f"{pair}_backward": function}
    backend = Backend("mutant", np.ndarray, np.asarray, np.asarray, lambda: None, kernels)
    context = contextvars.copy_context()
    context.run(dispatch._scope.set, dispatch._Selection(backend, strict=False))
    return context
