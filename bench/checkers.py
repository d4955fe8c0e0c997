"""``python -m bench checkers``: gradient checkers side by side on the same planted errors.

refkd's ``check_grad``, ``torch.autograd.gradcheck`` (full and fast) and
``jax.test_util.check_grads``, each with its defaults: which errors are caught, in how many
of those in one entry the entry is named, how many right gradients are called wrong, and
how long a check takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.subjects import Entry, Gradient, Subject, one_entry_off, random_entry
from bench.subjects.distillation import kd_loss
from bench.subjects.large import mlp_loss, pointwise
from bench.subjects.layers import linear
from bench.subjects.normalisation import layer_norm
from bench.subjects.peers import CHECKERS, Checker, installed

__all__ = ["Row", "compare", "register", "run", "table"]

SUBJECTS: dict[str, Callable[[np.random.Generator], Subject]] = {
    "distillation loss, 8×10": kd_loss,
    "linear and softmax": linear,
    "layer norm": layer_norm,
    "MLP loss, 992 parameters": lambda rng: mlp_loss(rng, (16, 24, 20, 4), batch=32),
    "pointwise, 100,000 entries": lambda rng: pointwise(rng, 100_000),
}


@dataclass(frozen=True)
class Row:
    """What one checker found in one function.

    Attributes
    ----------
    function, checker : str
    note : str
        Why there are no figures; empty where there are.
    planted, caught : int
        Wrong gradients, and those called wrong.
    single, located : int
        Gradients with one wrong entry, and those where the entry is named.
    right, alarms : int
        Right gradients, and those called wrong.
    seconds : float
        Median of a check.
    """

    function: str
    checker: str
    note: str = ""
    planted: int = 0
    caught: int = 0
    single: int = 0
    located: int = 0
    right: int = 0
    alarms: int = 0
    seconds: float = 0.0


def compare(function: str, checker: Checker, seed: int, rounds: int) -> Row:
    """Let one checker judge the right and the wrong gradients of one function.

    Parameters
    ----------
    function : str
        A key of ``SUBJECTS``.
    checker : Checker
    seed, rounds : int
        The function's data are drawn ``rounds`` times.
    """
    if not installed(checker):
        return Row(function, checker.name, "not installed")
    planted = caught = single = located = right = alarms = 0
    seconds = []
    for k in range(rounds):
        rng = np.random.default_rng((seed, k))
        subject = SUBJECTS[function](rng)
        entries = sum(value.size for value in subject.params.values())
        if checker.most_entries is not None and entries > checker.most_entries:
            return Row(function, checker.name, f"skipped: {2 * entries:,} calls")
        for grad, entry, is_right in _gradients(subject, rng):
            begin = time.perf_counter()
            finding = checker.check(subject, grad, k)
            seconds.append(time.perf_counter() - begin)
            if is_right:
                right += 1
                alarms += finding.wrong
                continue
            planted += 1
            caught += finding.wrong
            if entry is not None:
                single += 1
                located += finding.wrong and _names(finding.says, entry)
    return Row(
        function,
        checker.name,
        "",
        planted,
        caught,
        single,
        located,
        right,
        alarms,
        statistics.median(seconds),
    )


def _gradients(
    subject: Subject, rng: np.random.Generator
) -> list[tuple[Gradient, Entry | None, bool]]:
    """Return gradients with the wrong entry, where there is one alone, and whether all is right."""
    entry = random_entry(subject.grad(**subject.params), rng)
    wrong = [(grad, None, False) for grad in subject.errors.values()]
    single = [] if entry is None else [(one_entry_off(subject.grad, entry), entry, False)]
    return [(subject.grad, None, True), *wrong, *single]


def _names(says: str, entry: Entry) -> bool:
    index = ", ".join(map(str, entry.index))
    return any(f"{a}{index}{b}" in says for a, b in ("[]", "()")) or f"index {index}" in says


def register(subparsers: Any) -> None:
    """Add the command ``checkers`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("checkers", help="gradient checkers on the same errors")
    parser.add_argument("--rounds", type=int, default=5, help="draws per function (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; return the exit code, 0."""
    rows = []
    for function in SUBJECTS:
        for checker in CHECKERS:
            print(f"{function}: {checker.name} ...", file=sys.stderr, flush=True)
            rows.append(compare(function, checker, arguments.seed, arguments.rounds))
    if arguments.json:
        print(json.dumps({"benchmark": "checkers", "rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows))
    return 0


def table(rows: list[Row]) -> str:
    """Return the rows and, per checker, their sums as a Markdown table."""
    lines = [
        "| function | checker | caught | entry named | false alarms | ms per check |",
        "|---|---|--:|--:|--:|--:|",
        *(_line(row) for row in rows),
    ]
    for checker in dict.fromkeys(row.checker for row in rows):
        own = [row for row in rows if row.checker == checker and not row.note]
        if own:
            sums = {n: sum(getattr(row, n) for row in own) for n in _COUNTS}
            lines.append(_line(Row("**all tried**", checker, **sums), timed=False))
    return "\n".join(lines)


_COUNTS = ("planted", "caught", "single", "located", "right", "alarms")


def _line(row: Row, *, timed: bool = True) -> str:
    if row.note:
        return f"| {row.function} | {row.checker} | {row.note} | | | |"
    cells = [
        f"{row.caught} of {row.planted}",
        f"{row.located} of {row.single}",
        f"{row.alarms} of {row.right}",
        f"{1e3 * row.seconds:.1f}" if timed else "",
    ]
    return f"| {row.function} | {row.checker} | {' | '.join(cells)} |"
