"""``python -m bench kernels``: single kernels beside PyTorch's, and beside the machine's peaks.

Both sides run in the memory layout that is faster for them. Convolutions, products and
attention are measured by the operations of the direct algorithm, whatever a side
computes; the others by the bytes of what they read and write.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from bench.harness import Worker, check_agreement, measure
from bench.workloads import KERNELS
from bench.workloads.kernels import Kernel

__all__ = ["measure_kernel", "register", "run", "table", "tolerance"]

_TURN_SECONDS = 0.1
_COLUMNS = {
    "kernel": "---",
    "shape": "---",
    "work": "--:",
    "refkd ms": "--:",
    "PyTorch ms": "--:",
    "ratio (quartiles)": "--:",
    "refkd per s": "--:",
    "roofline": "--:",
    "layouts": "---",
}


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
        ``kernel``, ``shape``, ``gflop`` (None where bytes count), ``gbyte``, ``refkd_ms``,
        ``peer_ms``, ``ratio``, ``ratio_quartiles``, ``refkd_rate`` and ``peer_rate`` (in
        ``rate_unit``), ``refkd_layout``, ``peer_layout``; None where there is no peer.
    """
    kernel = KERNELS[name]

    def open_worker(side: str, mode: str) -> Worker:
        module = f"bench.workloads.kernels_{side}"
        return stack.enter_context(Worker(module, name, mode, threads=arguments.threads))

    with ExitStack() as stack:
        own = {
            layout: open_worker("refkd", f"{arguments.backend}/{layout}")
            for layout in kernel.layouts
        }
        peer, peer_layout = None, None
        if arguments.peer != "none":
            peers = {layout: open_worker(arguments.peer, layout) for layout in kernel.layouts}
            _verify(own, peers[kernel.layouts[0]], tolerance(kernel, arguments.backend))
            peer, peer_layout = fastest(peers, turn_seconds=_TURN_SECONDS)
        refkd, layout = fastest(own, turn_seconds=_TURN_SECONDS)
        measured = measure(refkd, peer, rounds=arguments.rounds, turn_seconds=_TURN_SECONDS)
    work, unit = (kernel.flop, "GFLOP/s") if kernel.flop else (kernel.nbytes, "GB/s")
    return {
        "kernel": kernel.kernel,
        "shape": kernel.label,
        "gflop": kernel.flop / 1e9 if kernel.flop else None,
        "gbyte": kernel.nbytes / 1e9,
        **dataclasses.asdict(measured),
        "refkd_rate": work / (1e6 * measured.refkd_ms),
        "peer_rate": None if measured.peer_ms is None else work / (1e6 * measured.peer_ms),
        "rate_unit": unit,
        "refkd_layout": layout,
        "peer_layout": peer_layout,
    }


def tolerance(kernel: Kernel, backend: str) -> float:
    """Return how far the backend's float32 may be from PyTorch's float64."""
    if backend == "numba" and kernel.winograd_tolerance is not None:
        settings = importlib.import_module("refkd_numba.settings")
        return kernel.winograd_tolerance if settings.winograd else kernel.tolerance
    return kernel.tolerance


def _verify(own: Mapping[str, Worker], peer: Worker, tolerance: float) -> None:
    """Compare all that PyTorch returns; refkd's kernels return more for their backwards."""
    expected = peer.verify("float64")
    for worker in own.values():
        outputs = worker.verify("float32")
        compared = {name: value for name, value in outputs.items() if name in expected}
        check_agreement(compared, expected, tolerance=tolerance)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; the last line has the mean of several ratios."""
    lines = [_cells(row) for row in rows]
    mean = geometric_mean_ratio(rows)
    if mean is not None:
        lines.append({"kernel": "geometric mean", "ratio (quartiles)": f"{mean:.2f}"})
    return markdown_table(_COLUMNS, lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    gflop = row["gflop"]
    cells = {
        "kernel": row["kernel"],
        "shape": row["shape"],
        "work": f"{1e3 * row['gbyte']:.2f} MB" if gflop is None else f"{gflop:.2f} GFLOP",
        "refkd ms": f"{row['refkd_ms']:.3f}",
        "refkd per s": f"{row['refkd_rate']:.1f} {row['rate_unit'].removesuffix('/s')}",
        "roofline": format_pair(row["roofline"], row["peer_roofline"], 2),
        "layouts": row["refkd_layout"],
    }
    if row["peer_ms"] is None:
        return cells
    return cells | {
        "PyTorch ms": f"{row['peer_ms']:.3f}",
        "ratio (quartiles)": format_ratio(row),
        "layouts": f"{row['refkd_layout']}, {row['peer_layout']}",
    }
