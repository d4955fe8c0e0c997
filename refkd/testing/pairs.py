"""Every kernel pair with inputs to run it on: the data that drives the generic tests.

A :class:`PairCase` says what goes into a forward, which inputs its backward
differentiates, and nothing about how it is tested; ``cases/`` holds them, one file for
each file of ``refkd.ops`` and ``refkd.losses``.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refkd.dispatch import Array, Kernel, registered_kernels
from refkd.errors import check_choice
from refkd.testing.adapters.pair import by_name, from_pair
from refkd.testing.gradcheck import check_grad
from refkd.testing.report import GradReport, Verdict
from refkd.testing.tolerances import GRADIENT

__all__ = [
    "PairCase",
    "PairResult",
    "all_cases",
    "backward",
    "check_all",
    "check_pair",
    "escaped_kernels",
    "forward",
]


@dataclass(frozen=True)
class PairCase:
    """Inputs of one kernel pair.

    Attributes
    ----------
    pair : str
        ``"linear"`` for ``linear_forward`` and ``linear_backward``.
    label : str
        What is particular about the inputs; unique within the pair.
    inputs : callable
        From a Generator to the forward's array arguments by parameter name: float64,
        integers, booleans or None.
    gradients : tuple of str or None
        For each return of the backward the input it belongs to; None for one that
        belongs to none of ``inputs`` or is skipped.
    outputs : tuple of str
        Names of the forward's returns; the cotangent belongs to the first.
    options : mapping
        Keyword arguments of both directions.
    backward_only : mapping
        Keyword arguments of the backward alone.
    """

    pair: str
    label: str
    inputs: Callable[[np.random.Generator], dict[str, Any]]
    gradients: tuple[str | None, ...]
    outputs: tuple[str, ...] = ("y",)
    options: Mapping[str, Any] = field(default_factory=dict)
    backward_only: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """``linear: 3-D input, no bias``."""
        return f"{self.pair}: {self.label}"

    def generator(self, seed: int = 0) -> np.random.Generator:
        """Return the generator that ``seed`` gives this case, whatever else is run."""
        return np.random.default_rng((seed, zlib.crc32(str(self).encode())))


@dataclass(frozen=True)
class PairResult:
    """The checks of all cases of one pair.

    Attributes
    ----------
    name : str
        The pair.
    cases, entries : int
        Cases run and gradient entries compared.
    method : str
        Of the worst case.
    worst : float
        Largest scaled error of any case; infinite where a case compared nothing.
    verdict : str
        The verdict of the first case that is not accepted; else ``"KINK"`` where there is
        one, and ``"PASS"``; ``"NO_CASE"`` where there is nothing to check.
    message : str
        The failing case and what is wrong; empty where all pass.
    reports : tuple of (str, GradReport)
        What was found, by the label of the case.
    """

    name: str
    cases: int
    entries: int
    method: str
    worst: float
    verdict: str
    message: str
    reports: tuple[tuple[str, GradReport], ...] = field(default=(), repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there are cases and all pass."""
        return self.verdict in (Verdict.PASS, Verdict.KINK)


@functools.cache
def all_cases() -> tuple[PairCase, ...]:
    """Return the cases of every file in ``refkd.testing.cases``."""
    package = importlib.import_module("refkd.testing.cases")
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return tuple(
        case
        for module in modules
        if not module.startswith("_")
        for case in importlib.import_module(f"{package.__name__}.{module}").CASES
    )


def escaped_kernels(
    kernels: Mapping[str, Kernel] | None = None, cases: Iterable[PairCase] | None = None
) -> list[str]:
    """Say of every kernel or case that no gradient check reaches why not; empty is complete.

    Parameters
    ----------
    kernels : mapping of str to Kernel, optional
        By default those registered.
    cases : iterable of PairCase, optional
        By default :func:`all_cases`.
    """
    kernels = registered_kernels() if kernels is None else kernels
    covered = {case.pair for case in (all_cases() if cases is None else cases)}
    complaints = [
        f"{name} has no {kernel.pair} beside it"
        for name, kernel in kernels.items()
        if kernel.pair is not None and kernel.pair not in kernels
    ]
    pairs = _pairs(kernels)
    complaints += [f"pair {p} has no case in refkd/testing/cases" for p in pairs - covered]
    complaints += [f"cases for {p}, which is no registered pair" for p in covered - pairs]
    return sorted(complaints)


def forward(case: PairCase, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Call the forward kernel of ``case``, dispatch included; its returns as a tuple."""
    result = by_name(_kernel(case, "forward"))({**inputs, **case.options})
    return result if isinstance(result, tuple) else (result,)


def backward(
    case: PairCase, cotangent: Array, inputs: Mapping[str, Any], outputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Call the backward kernel of ``case``; every argument is found by its name.

    Raises
    ------
    ConfigError
        If the backward has a parameter that is no cotangent, input, output or option.
    """
    available = {
        **inputs,
        **dict(zip(case.outputs, outputs, strict=True)),
        **case.options,
        **case.backward_only,
        f"d{case.outputs[0]}": cotangent,
    }
    result = by_name(_kernel(case, "backward"))(available)
    return result if isinstance(result, tuple) else (result,)


def check_pair(
    case: PairCase, rng: int | np.random.Generator = 0, tolerance: float = GRADIENT
) -> GradReport:
    """Check the backward of ``case`` against its forward, with a random cotangent.

    Parameters
    ----------
    case : PairCase
    rng : int or numpy.random.Generator
        Draws inputs and cotangent; an integer seeds a generator of the case's own.
    tolerance : float
        As in :func:`~refkd.testing.check_grad`.
    """
    rng = rng if isinstance(rng, np.random.Generator) else case.generator(rng)
    subject = from_pair(
        _kernel(case, "forward"),
        _kernel(case, "backward"),
        case.inputs(rng),
        gradients=case.gradients,
        outputs=case.outputs,
        options=case.options,
        backward_only=case.backward_only,
        rng=rng,
    )
    return check_grad(*subject, rng=rng, tolerance=tolerance)


def check_all(
    names: Iterable[str] | None = None, *, seed: int = 0, tolerance: float = GRADIENT
) -> Iterator[PairResult]:
    """Check every registered pair on all its cases, one result per pair, by name.

    Parameters
    ----------
    names : iterable of str, optional
        Only these pairs.
    seed : int
        Two runs with one seed draw the same data, for all pairs or for some.
    tolerance : float
        As in :func:`~refkd.testing.check_grad`.

    Raises
    ------
    ConfigError
        If a name is no registered pair.
    """
    known = sorted(_pairs(registered_kernels()))
    chosen = known if names is None else list(names)
    for name in chosen:
        check_choice("gradcheck", "a pair", name, known)
    return (_check_cases(name, seed, tolerance) for name in chosen)


def _check_cases(name: str, seed: int, tolerance: float) -> PairResult:
    cases = [case for case in all_cases() if case.pair == name]
    if not cases:
        return PairResult(name, 0, 0, "none", 0.0, "NO_CASE", "no case in refkd/testing/cases")
    reports = tuple((case.label, check_pair(case, seed, tolerance)) for case in cases)
    worst = max((r for _, r in reports), key=_scaled_error)
    failed = [(label, report) for label, report in reports if not report.ok]
    return PairResult(
        name,
        len(cases),
        sum(report.entries for _, report in reports),
        worst.method,
        _scaled_error(worst),
        str(failed[0][1].verdict if failed else min(r.verdict for _, r in reports)),
        f"{failed[0][0]}: {failed[0][1].message}" if failed else "",
        reports,
    )


def _scaled_error(report: GradReport) -> float:
    if report.worst is None:
        return 0.0 if report.ok else math.inf
    error = report.worst.scaled_error
    return error if math.isfinite(error) else math.inf


def _pairs(kernels: Mapping[str, Kernel]) -> set[str]:
    return {
        name.removesuffix("_forward")
        for name, kernel in kernels.items()
        if kernel.pair is not None and kernel.pair in kernels and name.endswith("_forward")
    }


def _kernel(case: PairCase, direction: str) -> Callable[..., Any]:
    return registered_kernels()[f"{case.pair}_{direction}"].call
