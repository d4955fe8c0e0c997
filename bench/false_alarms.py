"""``python -m bench false-alarms``: right gradients of drawn functions, and what the checker says.

An alarm is any verdict but PASS, KINK and NOISY_REFERENCE, or an exception. The last of
the three shows nothing and is counted apart. The exit code is 1 where there is an alarm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.subjects.drawn import draw
from refkd.testing import Verdict, check_grad
from refkd.threads import usable_cores

__all__ = ["Checked", "check_drawn", "register", "run", "table"]

_QUIET = (Verdict.PASS, Verdict.KINK, Verdict.NOISY_REFERENCE)
_METHODS = ("auto", "auto", "auto", "auto", "auto", "auto", "longdouble", "ridders")
_MODES = ("auto", "auto", "auto", "directional")
_CHUNK = 50
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Checked:
    """What the checker said of one drawn function.

    Attributes
    ----------
    number : int
        Of the draw: with the seed it gives the function again.
    method, mode, verdict : str
        As reported; an exception has its name for a verdict.
    on_kink : bool
    report : str
        Of an alarm.
    """

    number: int
    method: str
    mode: str
    verdict: str
    on_kink: bool
    report: str = ""

    @property
    def alarm(self) -> bool:
        """Whether a right gradient was called wrong, or the check broke."""
        return self.verdict not in _QUIET


def check_drawn(seed: int, number: int) -> Checked:
    """Draw function ``number`` of ``seed``, and a way to check it; check its right gradient."""
    rng = np.random.default_rng((seed, number))
    drawn = draw(rng)
    subject = drawn.subject
    method = _METHODS[int(rng.integers(len(_METHODS)))]
    mode = _MODES[int(rng.integers(len(_MODES)))]
    try:
        with warnings.catch_warnings(action="ignore"):
            report = check_grad(
                subject.f, subject.params, subject.grad, method=method, mode=mode, rng=rng
            )
    except Exception as error:
        text = f"{subject.name}, method={method}, mode={mode}: {error}"
        return Checked(number, method, mode, type(error).__name__, drawn.on_kink, text)
    text = f"{subject.name}, method={method}, mode={mode}\n  {report}"
    checked = Checked(number, report.method, report.mode, str(report.verdict), drawn.on_kink, text)
    return checked if checked.alarm else replace(checked, report="")


def _check_range(given: tuple[int, int, int]) -> list[Checked]:
    seed, begin, end = given
    return [check_drawn(seed, number) for number in range(begin, end)]


def check_many(seed: int, count: int, processes: int) -> Iterator[Checked]:
    """Check draws 0 to ``count``, in ``processes`` processes; in order."""
    bounds = [*range(0, count, _CHUNK), count]
    chunks = [(seed, begin, end) for begin, end in itertools.pairwise(bounds)]
    if processes == 1:
        yield from itertools.chain.from_iterable(map(_check_range, chunks))
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from itertools.chain.from_iterable(pool.imap(_check_range, chunks))


def register(subparsers: Any) -> None:
    """Add the command ``false-alarms`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("false-alarms", help="right gradients, and what is said of them")
    parser.add_argument("--count", type=int, default=100_000, help="functions (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="default: cores")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check and print; return 1 where there is an alarm, else 0."""
    begin = time.perf_counter()
    checked = list(_watched(arguments, begin))
    seconds = time.perf_counter() - begin
    alarms = [c for c in checked if c.alarm]
    if arguments.json:
        rows = [
            {"method": method, "mode": mode, "verdicts": dict(verdicts)}
            for (method, mode), verdicts in _counts(checked).items()
        ]
        print(
            json.dumps(
                {
                    "benchmark": "false-alarms",
                    "count": len(checked),
                    "seed": arguments.seed,
                    "seconds": seconds,
                    "alarms": [{"number": c.number, "report": c.report} for c in alarms],
                    "rows": rows,
                }
            )
        )
    else:
        print(table(checked))
        print(f"\n{len(checked)} right gradients, {len(alarms)} alarms, {seconds:.0f} s")
        for c in alarms:
            print(f"- draw {c.number}: {c.verdict}: {c.report}")
    return 1 if alarms else 0


def _watched(arguments: argparse.Namespace, begin: float) -> Iterator[Checked]:
    shown, alarms = begin, 0
    for done, checked in enumerate(
        check_many(arguments.seed, arguments.count, arguments.processes), start=1
    ):
        alarms += checked.alarm
        now = time.perf_counter()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            print(
                f"{done} of {arguments.count}, {alarms} alarms, {done / (now - begin):.0f}/s",
                file=sys.stderr,
                flush=True,
            )
        yield checked


def _counts(checked: Iterable[Checked]) -> dict[tuple[str, str], Counter[str]]:
    found: dict[tuple[str, str], Counter[str]] = {}
    for c in checked:
        found.setdefault((c.method, c.mode), Counter())[c.verdict] += 1
    return dict(sorted(found.items()))


def table(checked: Iterable[Checked]) -> str:
    """Return the verdicts by method and mode as a Markdown table."""
    counts = _counts(checked)
    alarms = sorted({verdict for found in counts.values() for verdict in found} - set(_QUIET))
    columns = [*map(str, _QUIET), *alarms]
    lines = [
        f"| method | mode | functions | {' | '.join(columns)} | nothing shown |",
        f"|---|---|{'--:|' * (len(columns) + 2)}",
    ]
    total: Counter[str] = Counter()
    for (method, mode), found in counts.items():
        lines.append(_row(method, mode, found, columns))
        total += found
    return "\n".join([*lines, _row("**all**", "", total, columns)])


def _row(method: str, mode: str, found: Counter[str], columns: list[str]) -> str:
    share = found[Verdict.NOISY_REFERENCE] / max(1, found.total())
    cells = [method, mode, found.total(), *(found[column] for column in columns), f"{share:.2%}"]
    return f"| {' | '.join(map(str, cells))} |"
