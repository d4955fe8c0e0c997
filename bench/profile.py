"""Where the time of a training step on Numba goes, kernel by kernel.

Every compiled kernel is called by :func:`refkd_numba.team.share`, which is timed; what a step
takes besides is Python's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from bench.workloads import WORKLOADS, module_of
from refkd.dispatch import use_backend

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the command ``profile`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("profile", help=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--steps", type=int, default=10, help="that are timed (default 10)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Take steps and print the kernels by their time; return the exit code, 0."""
    module = importlib.import_module(module_of(arguments.workload, "refkd"))
    with use_backend("numba"):
        side = module.open_side(arguments.workload, "numpy", 1)  # the backend is selected already
        side.run(1)  # which compiles
        with _timed_kernels() as seconds:
            step = statistics.median(side.run(arguments.steps))
    taken = arguments.steps + 1  # the first one is not timed
    in_kernels = sum(seconds.values())
    milliseconds = 1e3 * in_kernels / taken
    print(f"{arguments.workload}: {1e3 * step:.2f} ms a step, {milliseconds:.2f} in kernels")
    for name, spent in seconds.most_common():
        print(f"{spent / in_kernels:7.1%} {1e3 * spent / taken:9.3f} ms  {name}")
    return 0


@contextlib.contextmanager
def _timed_kernels() -> Iterator[Counter[str]]:
    """Let the seconds of each kernel be added up while the block lasts."""
    seconds: Counter[str] = Counter()
    share = importlib.import_module("refkd_numba.team").share

    def timed(function: Any, *arguments: Any, **options: Any) -> None:
        begun = time.perf_counter()
        share(function, *arguments, **options)
        module = function.py_func.__module__.removeprefix("refkd_numba.")
        seconds[f"{module}.{function.__name__}"] += time.perf_counter() - begun

    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("refkd_numba") and getattr(module, "share", None) is share:
                patches.enter_context(mock.patch.object(module, "share", timed))
        yield seconds
