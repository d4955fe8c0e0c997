"""``refkd gradcheck``: every kernel pair against its numeric derivative, as table, JSON or page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import stat
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from refkd.errors import ConfigError, DataError
from refkd.testing.html import page
from refkd.testing.pairs import PairResult, check_all
from refkd.train.atomic import atomic_write_text

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
    parser.add_argument(
        "--html",
        metavar="PATH",
        help="also write a page with a heat map of every parameter's errors",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the inputs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, print and write; return 0, or 1 if a pair fails.

    Raises
    ------
    ConfigError
        If a name is no registered pair, or the seed is negative.
    DataError
        If the page cannot be written; nothing has been checked then.
    CheckpointError
        If it cannot be written any more once the checks are done.
    """
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}")
    checks = check_all(arguments.names or None, seed=arguments.seed)
    if arguments.html is not None:
        _check_writable(arguments.html)
    results = list(checks)
    print(_json(results) if arguments.json else _table(results))
    if arguments.html is not None:
        found = {f"{r.name}: {label}": report for r in results for label, report in r.reports}
        atomic_write_text(arguments.html, page(found))
        print(f"heat maps: {arguments.html}", file=sys.stderr)
    return 0 if all(result.ok for result in results) else 1


def _check_writable(path: str) -> None:
    target = Path(path)
    try:
        # The page takes the place of what is there: not of a folder, and not of a device.
        replaceable = stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        replaceable = True
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"--html: {path} cannot be written ({reason}); check the path") from error
    if not replaceable:
        raise DataError(f"--html: expected the path of a file, got {path}, which is none")
    try:
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(target)).parent):
            pass
    except OSError as error:
        raise DataError(
            f"--html: {path} cannot be written ({error.strerror}); its folder must exist and be "
            f"writable"
        ) from error


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
    row = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    row.pop("reports")
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
    lines += [textwrap.indent(failure, "  ") for result in failed for failure in _failures(result)]
    return "\n".join(lines)


def _failures(result: PairResult) -> list[str]:
    found = [f"{result.name}: {label}: {r}" for label, r in result.reports if not r.ok]
    return found or [f"{result.name}: {result.message}"]
