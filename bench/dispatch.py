"""What dispatch adds to the call of a kernel, in nanoseconds.

The kernel does nothing, so that a call costs its dispatch alone. All ways of calling
it take turns in short blocks, and the median over the blocks is reported: a busy
machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import contextvars
import json
import platform
import statistics
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refkd import dispatch
from refkd.dispatch import Array, Backend

__all__ = ["Row", "measure", "register", "run"]


@dataclass(frozen=True)
class Row:
    """One way of calling a kernel.

    Attributes
    ----------
    name : str
    call_ns : float
        Median time of a call.
    overhead_ns : float
        Median of its difference to the plain function, taken block by block.
    target_ns : float or None
        What the design allows for the overhead; None for the plain function.
    """

    name: str
    call_ns: float
    overhead_ns: float
    target_ns: float | None


def register(subparsers: Any) -> None:
    """Add the command ``dispatch`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("dispatch", help=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31, help="blocks per way (default 31)")
    parser.add_argument("--calls", type=int, default=20_000, help="calls per block (default 20000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit code, 0."""
    rows = measure(arguments.rounds, arguments.calls)
    if arguments.json:
        print(
            json.dumps(
                {
                    "benchmark": "dispatch",
                    "python": platform.python_version(),
                    "numpy": np.__version__,
                    "rounds": arguments.rounds,
                    "calls": arguments.calls,
                    "rows": [asdict(row) for row in rows],
                }
            )
        )
        return 0
    print(f"{'way of calling':<38}{'call ns':>9}{'overhead ns':>13}{'target ns':>11}")
    for row in rows:
        target = "" if row.target_ns is None else f"{row.target_ns:.0f}"
        print(f"{row.name:<38}{row.call_ns:>9.0f}{row.overhead_ns:>13.0f}{target:>11}")
    return 0


def measure(rounds: int, calls: int) -> list[Row]:
    """Time every way of calling a kernel.

    Parameters
    ----------
    rounds : int, > 0
        Blocks per way.
    calls : int, > 0
        Calls per block.
    """
    ways = _ways()
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    for _ in range(rounds):
        for name, block, _ in ways:
            seconds[name].append(block(calls))
    plain = seconds[ways[0][0]]
    rows = []
    for name, _, target in ways:
        differences = [a - b for a, b in zip(seconds[name], plain, strict=True)]
        rows.append(Row(name, _ns(seconds[name], calls), _ns(differences, calls), target))
    return rows


def _ns(seconds: list[float], calls: int) -> float:
    return 1e9 * statistics.median(seconds) / calls


def _ways() -> list[tuple[str, Callable[[int], float], float | None]]:
    def reference(x: Array, weight: Array, *, axis: int = -1) -> Array:
        return x

    def hit(x: Array, weight: Array, *, axis: int = -1) -> Array:
        return x

    def not_served(x: Array, weight: Array, *, axis: int = -1) -> Array:
        return NotImplemented

    # Made without @kernel: what is measured must not appear among the registered kernels.
    call = dispatch._dispatching("benchmark", reference)

    def block(function: Callable[..., Any], backend: Backend | None) -> Callable[[int], float]:
        timer = timeit.Timer(
            "function(x, weight, axis=0)",
            globals={"function": function, "x": np.ones(3), "weight": np.ones(3)},
        )
        context = contextvars.copy_context()
        if backend is not None:
            context.run(dispatch._scope.set, dispatch._Selection(backend, strict=False))
        return lambda calls: context.run(timer.timeit, calls)

    return [
        ("the reference, called directly", block(reference, None), None),
        ("no backend selected", block(call, None), 500),
        ("override hit", block(call, _backend(benchmark=hit)), 500),
        ("no override, falls through", block(call, _backend()), 1200),
        ("NotImplemented, falls through", block(call, _backend(benchmark=not_served)), 1200),
    ]


def _backend(**kernels: Callable[..., Any]) -> Backend:
    return Backend("benchmark", np.ndarray, np.asarray, np.asarray, lambda: None, kernels)
