"""``python -m bench training``: whole training steps beside PyTorch's, one row per workload."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.environment import describe, environment, usable_cores
from bench.harness import (
    VerificationError,
    Worker,
    WorkerError,
    check_agreement,
    measure,
    take_turns,
)
from bench.workloads import WORKLOADS, module_of

__all__ = ["register", "run"]

_TOLERANCE = 5e-6  # of the largest entry: float32 sums of up to 1,200 products
_COMPILE_SECONDS = 60.0
_TURN_SECONDS, _TRIAL_ROUNDS = 0.25, 5


def register(subparsers: Any) -> None:
    """Add the subcommand to an ``argparse`` parser."""
    parser = subparsers.add_parser("training", help="training steps beside PyTorch's")
    parser.add_argument(
        "--workload",
        action="append",
        choices=list(WORKLOADS),
        metavar="NAME",
        help=f"repeatable; default: all of {', '.join(WORKLOADS)}",
    )
    parser.add_argument("--peer", choices=["torch", "none"], default="torch")
    parser.add_argument("--backend", default="numpy", help="refkd's backend (default: numpy)")
    parser.add_argument("--rounds", type=_positive, default=21, help="turns of each side")
    parser.add_argument(
        "--threads", type=_positive, default=usable_cores(), help="of both sides (default: cores)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--output", type=Path, help="write the JSON list to this file too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit code: 1 where a row failed, 4 without the peer."""
    if arguments.peer == "torch" and importlib.util.find_spec("torch") is None:
        print(
            "bench training: the peer torch is not installed; install it with "
            "pip install 'refkd[torch]', or give --peer none",
            file=sys.stderr,
        )
        return 4
    settings = environment(
        threads=arguments.threads, backend=arguments.backend, peer=arguments.peer
    )
    rows, failed = [], False
    for workload in arguments.workload or WORKLOADS:
        print(f"{workload} ...", file=sys.stderr, flush=True)
        try:
            rows.append(measure_workload(workload, arguments) | {"environment": settings})
        except (VerificationError, WorkerError) as error:
            print(f"{workload}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
    text = json.dumps(rows, indent=2)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    print(text if arguments.json else f"{describe(settings)}\n\n{table(rows)}")
    return 1 if failed else 0


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

    with ExitStack() as stack:
        peer, mode = None, None
        if arguments.peer != "none":
            # In processes of their own: the measured ones hold nothing but the training.
            with (
                open_worker("refkd", arguments.backend) as a,
                open_worker(arguments.peer, "eager") as b,
            ):
                check_agreement(a.verify(), b.verify(), tolerance=_TOLERANCE)
            peer, mode = _faster_torch(
                stack.enter_context(open_worker(arguments.peer, "eager")),
                stack.enter_context(open_worker(arguments.peer, "compile")),
            )
        refkd = stack.enter_context(open_worker("refkd", arguments.backend))
        measured = measure(refkd, peer, rounds=arguments.rounds, turn_seconds=_TURN_SECONDS)
        return {
            "workload": workload,
            **dataclasses.asdict(measured),
            "refkd_rss_mb": refkd.peak_rss_mb(),
            "peer_rss_mb": None if peer is None else peer.peak_rss_mb(),
            "peer_mode": mode,
        }


def _faster_torch(eager: Worker, compiled: Worker) -> tuple[Worker, str]:
    try:
        compiled.run(1, timeout=_COMPILE_SECONDS)
    except WorkerError as error:
        reason = str(error).splitlines()[0]
        return eager, f"eager (compile: {reason})"
    turns = take_turns([eager, compiled], rounds=_TRIAL_ROUNDS, turn_seconds=_TURN_SECONDS)
    eager_time, compiled_time = (statistics.median(times) for times in turns)
    if eager_time <= compiled_time:
        compiled.close()
        return eager, "eager"
    eager.close()
    return compiled, "compile"


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
            low, high = row["ratio_quartiles"]
            cells += [
                f"{row['peer_ms']:.3f}",
                f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                f"{row['refkd_rss_mb']:.0f}",
                f"{row['peer_rss_mb']:.0f}",
                row["peer_mode"],
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value
