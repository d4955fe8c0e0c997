"""``python -m bench training``: whole training steps beside PyTorch's, one row per workload."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.comparison import add_options, fastest, format_ratio, run_rows
from bench.harness import Worker, check_agreement, measure
from bench.workloads import WORKLOADS, module_of

__all__ = ["register", "run"]

_TURN_SECONDS = 0.25


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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; see :func:`bench.comparison.run_rows`."""
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
        ``workload``, ``refkd_ms``, ``peer_ms``, ``ratio``, ``ratio_quartiles``,
        ``refkd_rss_mb``, ``peer_rss_mb``, ``peer_mode``; None where there is no peer.
    """

    def open_worker(side: str, mode: str) -> Worker:
        return Worker(module_of(workload, side), workload, mode, threads=arguments.threads)

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
        return {
            "workload": workload,
            **dataclasses.asdict(measured),
            "refkd_rss_mb": refkd.peak_rss_mb(),
            "peer_rss_mb": None if peer is None else peer.peak_rss_mb(),
            "peer_mode": mode,
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| workload | refkd ms | PyTorch ms | ratio (quartiles) | refkd MiB | PyTorch MiB | mode |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        cells = [row["workload"], f"{row['refkd_ms']:.3f}"]
        if row["peer_ms"] is None:
            cells += ["", "", f"{row['refkd_rss_mb']:.0f}", "", ""]
        else:
            cells += [
                f"{row['peer_ms']:.3f}",
                format_ratio(row),
                f"{row['refkd_rss_mb']:.0f}",
                f"{row['peer_rss_mb']:.0f}",
                row["peer_mode"],
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
