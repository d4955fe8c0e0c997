"""``refkd gradcheck``: every kernel pair against its numeric derivative, as a table or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import Any

from refkd.errors import ConfigError
from refkd.testing.pairs import PairResult, check_all

__all__ = ["register", "run"]

_HEADINGS = ("name", "cases", "entries", "method", "worst scaled error", "verdict")


def register(subparsers: Any) -> None:
    """Add the subcommand to an :mod:`argparse` subparsers object."""
    parser = subparsers.add_parser(
        "gradcheck",
        help="check every hand-written gradient against the complex step",
        description="Check every kernel pair in float64 on inputs that cover its options: the "
        "hand-written backward against the numeric derivative of the forward.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="pairs to check, such as linear (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the inputs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check and print; return 0, or 1 if a pair fails.

    Raises
    ------
    ConfigError
        If a name is no registered pair, or the seed is negative.
    """
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}")
    results = list(check_all(arguments.names or None, seed=arguments.seed))
    print(_json(results) if arguments.json else _table(results))
    return 0 if all(result.ok for result in results) else 1


def _json(results: list[PairResult]) -> str:
    worst = max(results, key=lambda result: result.worst)
    return json.dumps(
        {
            "checked": len(results),
            "worst": _row(worst),
            "failed": [result.name for result in results if not result.ok],
            "pairs": [_row(result) for result in results],
        },
        indent=2,
        allow_nan=False,
    )


def _row(result: PairResult) -> dict[str, Any]:
    row = dataclasses.asdict(result)
    scaled_error = row.pop("worst")
    return {**row, "scaled_error": scaled_error if math.isfinite(scaled_error) else None}


def _table(results: list[PairResult]) -> str:
    rows = [
        (r.name, str(r.cases), str(r.entries), r.method, f"{r.worst:.1e}", r.verdict)
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_HEADINGS, *rows)
    ]
    failed = [result for result in results if not result.ok]
    lines += ["", f"{len(results)} pairs checked, {len(failed)} failed"]
    lines += [f"  {result.name}: {result.message}" for result in failed]
    return "\n".join(lines)
