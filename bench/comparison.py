"""What the side-by-side commands share: their options, their rows and PyTorch at its best."""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.environment import describe, environment
from bench.harness import VerificationError, Worker, WorkerError, take_turns
from bench.roofline import fractions, measure_peaks
from refkd.threads import usable_cores

__all__ = [
    "add_options",
    "fastest",
    "format_pair",
    "format_ratio",
    "geometric_mean_ratio",
    "markdown_table",
    "run_rows",
]

_FIRST_STEP_SECONDS = 600.0  # torch.compile takes minutes for a large network
_TRIAL_ROUNDS = 5

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, rows: str, names: Sequence[str]) -> None:
    """Add ``--ROWS NAME``, ``--peer``, ``--backend`` and the other common options."""
    parser.add_argument(
        f"--{rows}",
        action="append",
        choices=names,
        metavar="NAME",
        dest="rows",
        help=f"repeatable; default: all of {' '.join(names)}",
    )
    parser.add_argument("--peer", choices=["torch", "none"], default="torch")
    parser.add_argument("--backend", default="numpy", help="refkd's backend (default: numpy)")
    parser.add_argument("--rounds", type=_positive, default=21, help="turns of each side")
    parser.add_argument(
        "--threads", type=_positive, default=usable_cores(), help="of both sides (default: cores)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--output", type=Path, help="write the JSON list to this file too")


def run_rows(
    command: str,
    arguments: argparse.Namespace,
    names: Sequence[str],
    measure_row: Callable[[str], Row],
    table: Callable[[Sequence[Row]], str],
) -> int:
    """Measure and print; return the exit code: 1 where a row failed, 4 without the peer.

    Parameters
    ----------
    command : str
        For messages.
    arguments : Namespace
        With the options of :func:`add_options`.
    names : sequence of str
        All rows there are.
    measure_row : callable
        Of a name; may raise VerificationError or WorkerError, which leave the other rows.
        To what it returns are added ``roofline``, ``peer_roofline``, ``environment`` and,
        the same in all rows, ``geometric_mean_ratio``.
    table : callable
        Of the rows, for people.
    """
    if arguments.peer == "torch" and importlib.util.find_spec("torch") is None:
        print(
            f"bench {command}: the peer torch is not installed; install it with "
            "pip install 'refkd[torch]', or give --peer none",
            file=sys.stderr,
        )
        return 4
    print("peaks of this machine ...", file=sys.stderr, flush=True)
    peaks = measure_peaks(arguments.threads)
    settings = environment(
        threads=arguments.threads, backend=arguments.backend, peer=arguments.peer
    )
    settings |= peaks
    rows: list[Row] = []
    failed = False
    for name in arguments.rows or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            row = measure_row(name)
            rows.append(row | fractions(row, peaks) | {"environment": settings})
            mean = geometric_mean_ratio(rows)
            rows = [row | {"geometric_mean_ratio": mean} for row in rows]
            if arguments.output is not None:  # row by row: all of them take minutes
                arguments.output.write_text(json.dumps(rows, indent=2) + "\n")
        except (VerificationError, WorkerError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
    print(
        json.dumps(rows, indent=2) if arguments.json else f"{describe(settings)}\n\n{table(rows)}"
    )
    return 1 if failed else 0


def fastest(workers: Mapping[str, Worker], *, turn_seconds: float) -> tuple[Worker, str]:
    """Let the workers of one side take turns; close all but the fastest and return it.

    Parameters
    ----------
    workers : mapping of str to Worker
        By mode. The first has to work; another that fails is left out.
    turn_seconds : float

    Returns
    -------
    worker : Worker
    mode : str
        Its mode, and in parentheses why another could not be tried.
    """
    first = next(iter(workers))
    able, problems = {first: workers[first]}, []
    for mode, worker in list(workers.items())[1:]:
        try:
            worker.run(1, timeout=_FIRST_STEP_SECONDS)
            able[mode] = worker
        except WorkerError as error:
            problems.append(f"{mode}: {str(error).splitlines()[0]}")
    chosen = first
    if len(able) > 1:
        turns = take_turns(list(able.values()), rounds=_TRIAL_ROUNDS, turn_seconds=turn_seconds)
        seconds = dict(zip(able, map(statistics.median, turns), strict=True))
        chosen = min(seconds, key=lambda mode: seconds[mode])
    for mode, worker in workers.items():
        if mode != chosen:
            worker.close()
    return workers[chosen], f"{chosen} ({'; '.join(problems)})" if problems else chosen


def geometric_mean_ratio(rows: Sequence[Row]) -> float | None:
    """Return the geometric mean of the ratios; None of fewer than two."""
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    return statistics.geometric_mean(ratios) if len(ratios) > 1 else None


def markdown_table(columns: Mapping[str, str], lines: Sequence[Mapping[str, str]]) -> str:
    """Return a table for Markdown.

    Parameters
    ----------
    columns : mapping of str to str
        Heading to alignment, ``"---"`` or ``"--:"``.
    lines : sequence of mappings
        Heading to cell; what is missing stays empty.
    """
    cells = [list(columns), *([line.get(heading, "") for heading in columns] for line in lines)]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head, f"|{'|'.join(columns.values())}|", *body])


def format_pair(own: float | None, peer: float | None, decimals: int) -> str:
    """Return ``0.53, 0.48``: what both sides have, or refkd alone."""
    return ", ".join(f"{value:.{decimals}f}" for value in (own, peer) if value is not None)


def format_ratio(row: Row) -> str:
    """Return a row's ratio and quartiles: ``0.53 (0.52 to 0.54)``."""
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value
