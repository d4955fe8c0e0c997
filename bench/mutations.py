"""``python -m bench mutations``: wrong gradients planted everywhere, and how many are found.

In every registered kernel pair, by spoiling what its backward returns and by changing
its source; in functions of the literature, by hand; and in one entry among up to a
million. The exit code is 1 where fewer than 99% are caught, or of those in one entry
located, or where a right gradient beside them is not accepted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from bench.subjects import planted
from bench.subjects.planted import Outcome

__all__ = ["register", "run", "shares", "table"]

_ENOUGH = 0.99


def register(subparsers: Any) -> None:
    """Add the command ``mutations`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("mutations", help="wrong gradients planted, and found")
    parser.add_argument("--seed", type=int, default=0, help="draws inputs and entries (default 0)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="entries drawn per gradient or size (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plant, check and print; return 1 where too few are caught or located, else 0."""
    seed, rounds = arguments.seed, arguments.rounds
    outcomes: list[Outcome] = []
    for family in (
        planted.in_pairs(seed),
        planted.in_one_entry_of_pairs(seed, rounds),
        planted.in_literature(seed),
        planted.in_one_entry(seed, rounds, planted.SIZES),
    ):
        begin = time.perf_counter()
        found = list(family)
        outcomes += found
        seconds = time.perf_counter() - begin
        print(f"{len(found)} errors planted, {seconds:.0f} s", file=sys.stderr, flush=True)
    caught, located = shares(outcomes)
    right = planted.right_gradients(seed)
    if arguments.json:
        print(
            json.dumps(
                {
                    "benchmark": "mutations",
                    "caught": caught,
                    "located": located,
                    "outcomes": [asdict(outcome) for outcome in outcomes],
                    "right": {name: str(report.verdict) for name, report in right},
                }
            )
        )
    else:
        print(table(outcomes))
        print("\nRight gradients of the functions by hand:\n")
        for name, report in right:
            print(f"- {name}: {report.verdict if report.ok else report}")
    accepted = all(report.ok for _, report in right)
    return 0 if accepted and min(caught, located) >= _ENOUGH else 1


def shares(outcomes: Iterable[Outcome]) -> tuple[float, float]:
    """Return the shares caught, and located where one entry is wrong."""
    counted = [o for o in outcomes if o.result in ("caught", "missed")]
    single = [o for o in counted if o.located is not None]
    caught = sum(o.result == "caught" for o in counted) / max(1, len(counted))
    return caught, sum(bool(o.located) for o in single) / max(1, len(single))


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the counts by kind as a Markdown table, and below it every miss."""
    outcomes = list(outcomes)
    kinds = list(dict.fromkeys(o.kind for o in outcomes))
    lines = [
        f"| error | {' | '.join(_COLUMNS)} | share |",
        f"|---|{'--:|' * (len(_COLUMNS) + 1)}",
        *(_row(kind, [o for o in outcomes if o.kind == kind]) for kind in kinds),
        _row("**all**", outcomes),
    ]
    missed = [o for o in outcomes if o.result == "missed" or o.located is False]
    lines += ["", f"{len(missed)} missed or not located"]
    lines += [f"- {o.kind}: {o.where}\n  {o.detail}" for o in missed]
    return "\n".join(lines)


_COLUMNS = (
    "planted",
    "do not run",
    "equivalent",
    "within tolerance",
    "caught",
    "located",
    "missed",
)


def _row(kind: str, outcomes: list[Outcome]) -> str:
    count: dict[str, Any] = {
        result: sum(o.result == result for o in outcomes)
        for result in ("raised", "equivalent", "tolerated", "caught", "missed")
    }
    single = [o for o in outcomes if o.located is not None]
    located = str(sum(bool(o.located) for o in single)) if single else ""
    decided = count["caught"] + count["missed"]
    share = f"{count['caught'] / decided:.2%}" if decided else ""
    cells: list[Any] = [len(outcomes), count["raised"], count["equivalent"], count["tolerated"]]
    cells += [count["caught"], located, count["missed"], share]
    return f"| {kind} | {' | '.join(map(str, cells))} |"
