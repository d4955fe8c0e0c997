"""``python -m bench gpu``: the CuPy backend on a GPU, tested and then measured beside PyTorch's.

Each section runs in processes of its own, and what a row finds is written down at once: an error
of one row, or of the device, loses no other's result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import conformance, tables
from bench.gpu.sections import run_section
from refkd.dispatch import available_backends

__all__ = ["SECTIONS", "register", "run"]

SECTIONS = ("compile", "conformance", "ceilings", "kernels", "training")
# The part of the time that is left which a section may take, so that the last have some.
_SHARES = {"compile": 0.3, "conformance": 0.45, "ceilings": 0.3, "kernels": 0.55, "training": 1.0}
_NO_GPU = 4


def register(subparsers: Any) -> None:
    """Add the subcommand to an ``argparse`` parser."""
    parser = subparsers.add_parser("gpu", help="the CuPy backend on a GPU beside PyTorch's")
    parser.add_argument(
        "--budget",
        type=float,
        default=270,
        metavar="SECONDS",
        help="after which rows are left out, and said so (default: 270)",
    )
    parser.add_argument("--output", type=Path, help="file for the results, as JSON")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="a section to run; may be given again"
    )
    parser.add_argument(
        "--rows", default="", metavar="WORDS", help="run only rows whose names contain this"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the sections; print the tables and write the results."""
    reason = available_backends().get("cupy")
    if reason is not None:
        print(f"bench gpu: {reason}", file=sys.stderr)
        return _NO_GPU
    begun = time.monotonic()
    results: dict[str, Any] = {"budget_s": arguments.budget, "sections": {}}

    def write() -> None:
        results["seconds"] = round(time.monotonic() - begun, 1)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")

    for section in arguments.only or SECTIONS:
        left = arguments.budget - (time.monotonic() - begun)
        seconds = left * _SHARES[section]
        print(f"bench gpu: {section}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
        started = time.monotonic()
        rows: list[dict[str, Any]] = []
        results["sections"][section] = rows
        try:
            _run(section, arguments, seconds, _collector(rows, write))
        except Exception as error:  # whatever it is, the other sections are worth having
            rows.append({"row": section, "error": f"{type(error).__name__}: {error}"})
        print(f"bench gpu: {section} took {time.monotonic() - started:.0f} s", file=sys.stderr)
        write()
    print(tables.text(results))
    return int(any("error" in row for rows in results["sections"].values() for row in rows))


def _run(
    section: str, arguments: argparse.Namespace, seconds: float, add: Callable[[Any], None]
) -> None:
    if section == "conformance":
        log = None if arguments.output is None else arguments.output.with_suffix(".pytest.log")
        conformance.run(seconds, add, log)
    else:
        run_section(section, arguments.rows, seconds, add)


def _collector(
    rows: list[dict[str, Any]], write: Callable[[], None]
) -> Callable[[dict[str, Any]], None]:
    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        write()
        print("  " + tables.line(row), file=sys.stderr, flush=True)

    return add
