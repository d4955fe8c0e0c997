"""``python -m bench gpu``: the CuPy backend on a GPU, tested and then measured beside PyTorch's.

Each section runs in processes of its own, and what a row finds is written down at once: an error
of one row, or of the device, loses no other's result. The exit status is 1 where a row has failed
or a section has found nothing, and 4 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.gpu import conformance, tables
from bench.gpu.sections import ROW_SECONDS, run_section
from refkd.dispatch import available_backends

__all__ = ["SECTIONS", "register", "run"]

SECTIONS = ("compile", "ceilings", "conformance", "kernels", "training", "torch_compile")
# The part of the time that is left which a section may take; the last of them takes all of it.
_SHARES = {"compile": 0.2, "ceilings": 0.1, "conformance": 0.35, "kernels": 0.45, "training": 0.8}
_WHOLE = ("compile", "ceilings")  # whichever rows of the others are chosen
_ROW_SECONDS = {"torch_compile": 150.0}
_FAILED, _USAGE, _NO_GPU = 1, 2, 4


def register(subparsers: Any) -> None:
    """Add the subcommand to an ``argparse`` parser."""
    parser = subparsers.add_parser(
        "gpu",
        help="the CuPy backend on a GPU beside PyTorch's",
        description="Test the CuPy backend on a GPU and measure it beside PyTorch for CUDA, which "
        "must be installed.",
    )
    parser.add_argument(
        "--budget",
        type=_positive,
        default=470,
        metavar="SECONDS",
        help="after which rows are left out, and said so (default: 470)",
    )
    parser.add_argument(
        "--output", type=Path, help="file for the results, as JSON; beside it, .md has the tables"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=SECTIONS,
        help="a section to run, instead of all; may be given again: compile the CUDA sources, "
        "measure the ceilings (copy, matrix product), run the conformance tests on the device, "
        "time kernels, training steps and, last, those that torch.compile makes",
    )
    parser.add_argument(
        "--rows", default="", metavar="WORDS", help="measure only rows whose names contain this"
    )
    parser.set_defaults(run=run)


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")


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
            _write(arguments.output, json.dumps(results, indent=1))
            _write(arguments.output.with_suffix(".md"), tables.text(results))

    try:
        write()
    except OSError as error:
        print(f"bench gpu: --output {arguments.output}: {error}", file=sys.stderr)
        return _USAGE
    chosen = [section for section in SECTIONS if section in (arguments.only or SECTIONS)]
    for section in chosen:
        left = arguments.budget - (time.monotonic() - begun)
        seconds = left * (1.0 if section == chosen[-1] else _SHARES[section])
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
    return _status(results["sections"])


def _status(sections: Mapping[str, list[dict[str, Any]]]) -> int:
    """Return the exit status, and say which sections have found nothing."""
    empty = [
        section
        for section, rows in sections.items()
        if all("error" in row or "skipped" in row for row in rows)
    ]
    for section in empty:
        print(f"bench gpu: {section} has found nothing", file=sys.stderr)
    failed = any("error" in row for rows in sections.values() for row in rows)
    return _FAILED if failed or empty else 0


def _write(path: Path, text: str) -> None:
    """Write a file as a whole: one that is read, or a run that is cut off, finds no half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _run(
    section: str, arguments: argparse.Namespace, seconds: float, add: Callable[[Any], None]
) -> None:
    if section == "conformance":
        log = None if arguments.output is None else arguments.output.with_suffix(".pytest.log")
        conformance.run(seconds, add, log)
    else:
        words = "" if section in _WHOLE else arguments.rows
        row_seconds = _ROW_SECONDS.get(section, ROW_SECONDS)
        run_section(section, words, seconds, add, row_seconds=row_seconds)


def _collector(
    rows: list[dict[str, Any]], write: Callable[[], None]
) -> Callable[[dict[str, Any]], None]:
    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        write()
        print("  " + tables.line(row), file=sys.stderr, flush=True)

    return add
