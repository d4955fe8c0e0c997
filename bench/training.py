"""``python -m bench training``: whole training steps beside PyTorch's, one row per workload."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.comparison import (
    add_options,
    fastest,
    format_pair,
    format_ratio,
    geometric_mean_ratio,
    markdown_table,
    run_rows,
)
from bench.compile_times import CACHE_VARIABLES, compile_times
from bench.harness import Worker, check_agreement, measure
from bench.workloads import WORKLOADS, module_of

__all__ = ["measure_workload", "register", "run", "table"]

_TURN_SECONDS = 0.25
_COLUMNS = {
    "workload": "---",
    "refkd ms": "--:",
    "PyTorch ms": "--:",
    "ratio (quartiles)": "--:",
    "roofline": "--:",
    "refkd MiB": "--:",
    "PyTorch MiB": "--:",
    "mode": "---",
}
_COMPILE_COLUMNS = {
    "import s": "import_s",
    "compile cold s": "compile_cold_s",
    "compile warm s": "compile_warm_s",
}


def register(subparsers: Any) -> None:
    """Add the subcommand to an ``argparse`` parser."""
    parser = subparsers.add_parser("training", help="training steps beside PyTorch's")
    add_options(parser, "workload", list(WORKLOADS))
    parser.add_argument(
        "--no-compile",
        action="store_false",
        dest="compile",
        help="leave out PyTorch's compiled mode, which takes minutes to compile a large network",
    )
    parser.add_argument(
        "--compile-times",
        action=argparse.BooleanOptionalAction,
        help="measure how long refkd's backend compiles (default: where it does)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; see :func:`bench.comparison.run_rows`."""
    compiles = arguments.backend in CACHE_VARIABLES
    if arguments.compile_times and not compiles:
        print(
            f"bench training: --compile-times: the backend {arguments.backend} does not compile; "
            f"{' and '.join(CACHE_VARIABLES)} does",
            file=sys.stderr,
        )
        return 2
    if arguments.compile_times is None:
        arguments.compile_times = compiles
    return run_rows(
        "training",
        arguments,
        list(WORKLOADS),
        lambda workload: measure_workload(workload, arguments),
        table,
    )


def measure_workload(workload: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Verify and measure one workload.

    Returns
    -------
    dict
        ``workload``, ``gflop``, ``refkd_ms``, ``peer_ms``, ``ratio``, ``ratio_quartiles``,
        ``refkd_rss_mb``, ``peer_rss_mb``, ``peer_mode``; None where there is no peer. With
        ``--compile-times`` what :func:`bench.compile_times.compile_times` returns.
    """

    def open_worker(side: str, mode: str, variables: Mapping[str, str] | None = None) -> Worker:
        return Worker(
            module_of(workload, side),
            workload,
            mode,
            threads=arguments.threads,
            variables=variables,
        )

    definition = WORKLOADS[workload]
    with ExitStack() as stack:
        peer, mode = None, None
        if arguments.peer != "none":
            # In processes of their own: the measured ones hold nothing but the training.
            with (
                open_worker("refkd", arguments.backend) as a,
                open_worker(arguments.peer, "eager") as b,
            ):
                for dtype, tolerance in definition.tolerances.items():
                    check_agreement(a.verify(dtype), b.verify(dtype), tolerance=tolerance)
            peers = {
                mode: stack.enter_context(open_worker(arguments.peer, mode))
                for mode in definition.torch_modes
                if arguments.compile or mode != "compile"
            }
            peer, mode = fastest(peers, turn_seconds=_TURN_SECONDS)
        refkd = stack.enter_context(open_worker("refkd", arguments.backend))
        measured = measure(refkd, peer, rounds=arguments.rounds, turn_seconds=_TURN_SECONDS)
        row = {
            "workload": workload,
            "gflop": definition.flop / 1e9,
            **dataclasses.asdict(measured),
            "refkd_rss_mb": refkd.peak_rss_mb(),
            "peer_rss_mb": None if peer is None else peer.peak_rss_mb(),
            "peer_mode": mode,
        }
    if arguments.compile_times:
        backend = arguments.backend
        row |= compile_times(backend, partial(open_worker, "refkd", backend))
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; the last line has the mean of several ratios."""
    lines = [_cells(row) for row in rows]
    mean = geometric_mean_ratio(rows)
    if mean is not None:
        lines.append({"workload": "geometric mean", "ratio (quartiles)": f"{mean:.2f}"})
    compiled = {h: "--:" for h, name in _COMPILE_COLUMNS.items() if any(name in r for r in rows)}
    return markdown_table(_COLUMNS | compiled, lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {
        "workload": row["workload"],
        "refkd ms": f"{row['refkd_ms']:.3f}",
        "roofline": format_pair(row["roofline"], row["peer_roofline"], 3),
        "refkd MiB": f"{row['refkd_rss_mb']:.0f}",
    }
    cells |= {h: f"{row[name]:.1f}" for h, name in _COMPILE_COLUMNS.items() if name in row}
    if row["peer_ms"] is None:
        return cells
    return cells | {
        "PyTorch ms": f"{row['peer_ms']:.3f}",
        "ratio (quartiles)": format_ratio(row),
        "PyTorch MiB": f"{row['peer_rss_mb']:.0f}",
        "mode": row["peer_mode"],
    }
