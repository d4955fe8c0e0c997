"""Errors planted in every kernel pair, in functions of the literature and in single entries.

Each is judged by the checker and becomes an :class:`Outcome`; the command that counts
them is :mod:`bench.mutations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.subjects import Entry, Subject, one_entry_off, random_entry
from bench.subjects.distillation import kd_loss, self_distillation
from bench.subjects.gradient_mutants import spoiled
from bench.subjects.large import OF_SIZE
from bench.subjects.layers import conv2d, linear
from bench.subjects.normalisation import attention, batch_norm, layer_norm
from bench.subjects.pairs import (
    Mutant,
    cases_by_pair,
    checked,
    distance,
    gradients_of,
    mutants_of,
    reference_of,
)
from bench.subjects.pooling import max_pool, max_pool_of_copies
from refkd.testing import GradReport, Verdict, check_grad
from refkd.testing.pairs import PairCase

__all__ = [
    "LITERATURE",
    "SIZES",
    "Outcome",
    "in_literature",
    "in_one_entry",
    "in_one_entry_of_pairs",
    "in_pairs",
    "right_gradients",
]

LITERATURE = (
    kd_loss,
    self_distillation,
    linear,
    conv2d,
    max_pool,
    max_pool_of_copies,
    batch_norm,
    layer_norm,
    attention,
)
SIZES = (1_000, 10_000, 100_000, 1_000_000)

_ROUNDING = 1e-13


@dataclass(frozen=True)
class Outcome:
    """What became of one planted error.

    Attributes
    ----------
    kind : str
        The kind of error, one row of the table.
    where : str
        Pair or subject, and the change.
    result : {"caught", "missed", "raised", "equivalent", "tolerated"}
        ``"raised"``: the function with the error does not run, nothing is needed to see
        it. ``"equivalent"``: its gradients are the right ones at all points tried, up
        to 1e-13 of the largest entry. ``"tolerated"``: not found, and nowhere farther off
        than the tolerance of the check allows.
    located : bool or None
        Whether the report names the entry; None where more than one entry is wrong.
    detail : str
        Of a miss: what the checks said.
    """

    kind: str
    where: str
    result: str
    located: bool | None = None
    detail: str = ""


def in_pairs(seed: int) -> Iterator[Outcome]:
    """Plant every mutant in every registered pair."""
    for pair, cases in sorted(cases_by_pair().items()):
        own = [gradients_of(case, reference_of(pair), seed) for case in cases]
        for mutant in mutants_of(pair, cases):
            yield _outcome(mutant, cases, own, seed)


def _outcome(
    mutant: Mutant, cases: list[PairCase], own: list[dict[str, Any]], seed: int
) -> Outcome:
    where = f"{mutant.pair}: {mutant.change}"
    try:
        apart = [
            distance(right, gradients_of(case, mutant.function, seed))
            for case, right in zip(cases, own, strict=True)
        ]
    except Exception:  # whatever a nonsensical program raises
        return Outcome(mutant.kind, where, "raised")
    if max(apart) <= _ROUNDING:
        return Outcome(mutant.kind, where, "equivalent")
    said, tolerated = [], True
    for case, gap in zip(cases, apart, strict=True):
        if gap > _ROUNDING:
            report = checked(case, mutant.function, seed)
            if _found(report):
                return Outcome(mutant.kind, where, "caught")
            tolerated = tolerated and gap <= report.tolerance
            said.append(f"{case.label}: {report.verdict}, off by {gap:.1e}")
    return Outcome(
        mutant.kind, where, "tolerated" if tolerated else "missed", detail="; ".join(said)
    )


def in_one_entry_of_pairs(seed: int, rounds: int) -> Iterator[Outcome]:
    """Multiply a random entry of each gradient of each case by 1.01, ``rounds`` times."""
    kind = "one entry off by 1%: registered pairs"
    for pair, cases in sorted(cases_by_pair().items()):
        own = reference_of(pair)
        for case in cases:
            gradients = gradients_of(case, own, seed)
            rng = np.random.default_rng((seed, len(gradients)))
            for position, name in enumerate(case.gradients):
                for _ in range(rounds):
                    entry = name and random_entry({name: gradients[name]}, rng)
                    if not entry:
                        continue
                    wrong = spoiled(own, position, _off(entry))
                    report = checked(case, wrong, seed)
                    where = f"{case}: {entry.name}{list(entry.index)}"
                    gap = distance(gradients, gradients_of(case, wrong, seed))
                    if not _found(report) and gap <= report.tolerance:
                        yield Outcome(kind, where, "tolerated")
                    else:
                        yield _located(kind, where, entry, report)


def _off(entry: Entry) -> Any:
    def change(g: Any) -> Any:
        changed = np.array(g)
        changed[entry.index] *= 1.01
        return changed

    return change


def in_literature(seed: int) -> Iterator[Outcome]:
    """Try the errors planted by hand in functions of the literature."""
    for make in LITERATURE:
        subject = make(np.random.default_rng(seed))
        for error, wrong in subject.errors.items():
            report = _check(subject, wrong, seed)
            yield Outcome(
                f"by hand: {subject.name}",
                f"{subject.name}: {error}",
                "caught" if _found(report) else "missed",
                detail="" if _found(report) else str(report),
            )


def right_gradients(seed: int) -> list[tuple[str, GradReport]]:
    """Check what is right there: the functions' gradients, and those of other conventions."""
    return [
        (f"{subject.name}: {name}", _check(subject, grad, seed))
        for subject in (make(np.random.default_rng(seed)) for make in LITERATURE)
        for name, grad in {"its gradient": subject.grad, **subject.conventions}.items()
    ]


def in_one_entry(seed: int, rounds: int, sizes: Iterable[int]) -> Iterator[Outcome]:
    """Multiply one random entry among many by 1.01."""
    for size in sizes:
        for make in OF_SIZE:
            for k in range(rounds):
                rng = np.random.default_rng((seed, size, k))
                subject = make(rng, size)
                entry = random_entry(subject.grad(**subject.params), rng)
                if entry is None:
                    raise RuntimeError(f"{subject.name}: its gradient is zero")
                report = _check(subject, one_entry_off(subject.grad, entry), k)
                where = f"{subject.name}: {entry.name}{list(entry.index)}"
                yield _located(f"one entry off by 1%: among {size:,}", where, entry, report)


def _found(report: GradReport) -> bool:
    """Whether the report says that something is wrong, and not merely that nothing is known."""
    return not report.ok and report.verdict is not Verdict.NOISY_REFERENCE


def _check(subject: Subject, grad: Any, seed: int) -> GradReport:
    return check_grad(subject.f, subject.params, grad, rng=seed)


def _located(kind: str, where: str, entry: Entry, report: GradReport) -> Outcome:
    worst = report.worst
    located = worst is not None and (worst.name, worst.index) == (entry.name, entry.index)
    if not _found(report):
        return Outcome(kind, where, "missed", False, str(report))
    return Outcome(kind, where, "caught", located, "" if located else str(report))
