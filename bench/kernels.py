"""``python -m bench kernels``: single kernels beside PyTorch's, in GFLOP/s.

Both sides run in the memory layout that is faster for them. The operations are those of
the direct algorithm, whatever a side computes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.comparison import add_options, fastest, format_ratio, run_rows
from bench.harness import Worker, check_agreement, measure
from bench.workloads import KERNELS
from bench.workloads.kernels import LAYOUTS, ConvKernel

__all__ = ["register", "run"]

_TURN_SECONDS = 0.1


def register(subparsers: Any) -> None:
    """Add the subcommand to an ``argparse`` parser."""
    parser = subparsers.add_parser("kernels", help="single kernels beside PyTorch's")
    add_options(parser, "kernel", list(KERNELS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; see :func:`bench.comparison.run_rows`."""
    return run_rows(
        "kernels", arguments, list(KERNELS), lambda name: measure_kernel(name, arguments), table
    )


def measure_kernel(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Verify and measure one kernel.

    Returns
    -------
    dict
        ``kernel``, ``shape`` (N, C, H, K, R, stride), ``gflop``, ``refkd_ms``, ``peer_ms``,
        ``ratio``, ``ratio_quartiles``, ``refkd_gflops`` and ``peer_gflops`` (per second),
        ``refkd_layout``, ``peer_layout``; None where there is no peer.
    """
    kernel = KERNELS[name]

    def open_worker(side: str, mode: str) -> Worker:
        module = f"bench.workloads.kernels_{side}"
        return stack.enter_context(Worker(module, name, mode, threads=arguments.threads))

    with ExitStack() as stack:
        own = {layout: open_worker("refkd", f"{arguments.backend}/{layout}") for layout in LAYOUTS}
        peer, peer_layout = None, None
        if arguments.peer != "none":
            peers = {layout: open_worker(arguments.peer, layout) for layout in LAYOUTS}
            _verify(kernel, own, peers[LAYOUTS[0]])
            peer, peer_layout = fastest(peers, turn_seconds=_TURN_SECONDS)
        refkd, layout = fastest(own, turn_seconds=_TURN_SECONDS)
        measured = measure(refkd, peer, rounds=arguments.rounds, turn_seconds=_TURN_SECONDS)
        return {
            "kernel": f"conv2d_{kernel.direction}",
            "shape": list(kernel.shape),
            "gflop": kernel.flop / 1e9,
            **dataclasses.asdict(measured),
            "refkd_gflops": _gflops(kernel, measured.refkd_ms),
            "peer_gflops": None if peer is None else _gflops(kernel, measured.peer_ms),
            "refkd_layout": layout,
            "peer_layout": peer_layout,
        }


def _verify(kernel: ConvKernel, own: dict[str, Worker], peer: Worker) -> None:
    expected = peer.verify("float64")
    for worker in own.values():
        check_agreement(worker.verify("float32"), expected, tolerance=kernel.tolerance)


def _gflops(kernel: ConvKernel, milliseconds: Any) -> float:
    return kernel.flop / (1e6 * float(milliseconds))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, rates in GFLOP/s."""
    lines = [
        "| kernel | N,C,H,K,R,stride | GFLOP | refkd GFLOP/s | PyTorch GFLOP/s "
        "| ratio (quartiles) | layouts |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        shape = ",".join(map(str, row["shape"]))
        cells = [row["kernel"], shape, f"{row['gflop']:.2f}", f"{row['refkd_gflops']:.1f}"]
        if row["peer_ms"] is None:
            cells += ["", "", row["refkd_layout"]]
        else:
            layouts = f"{row['refkd_layout']}, {row['peer_layout']}"
            cells += [f"{row['peer_gflops']:.1f}", format_ratio(row), layouts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
