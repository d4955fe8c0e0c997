"""``python -m bench gradcheck``: what a gradient check costs, in seconds, passes and memory.

Every entry of a function of 2,000 parameters, and one joint direction of a model of ten
million: the loss of a multilayer perceptron on 128 images, and on 512, since what the
check itself does with the parameters does not grow with the batch. A pass is one call of
the function and one of its gradient, in float64. Memory is what NumPy and Python
allocate, the function's own activations aside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.environment import describe, environment
from bench.subjects import Subject
from bench.subjects.large import mlp_loss
from refkd.testing import check_grad

__all__ = ["Cost", "measure", "register", "run"]

SMALL, LARGE = (99, 19, 5), (784, 2800, 2800, 10)
BATCHES = (128, 512)
_SMALL_SECONDS, _LARGE_PASSES, _LARGE_MEMORY = 0.5, 6.0, 3.0


@dataclass(frozen=True)
class Cost:
    """What one check costs.

    Attributes
    ----------
    function : str
    parameters : int
    ok : bool
        Whether the gradient, which is right, passed.
    mode : str
        As reported.
    calls : int
        Of the function and of its gradient, together.
    seconds : float
        Median of a check.
    pass_seconds : float
        Median of one call of the function and one of its gradient.
    passes : float
        Median of their ratio, taken pair by pair.
    parameter_mb : float
        Memory of the float64 parameters.
    extra_mb : float
        Peak of the check beyond them, less the largest peak of a single call of the
        function or its gradient (the activations), the returned gradient not counted
        among the latter.
    """

    function: str
    parameters: int
    ok: bool
    mode: str
    calls: int
    seconds: float
    pass_seconds: float
    passes: float
    parameter_mb: float
    extra_mb: float

    @property
    def memory_ratio(self) -> float:
        """Extra memory in units of the float64 parameters."""
        return self.extra_mb / self.parameter_mb


def measure(widths: tuple[int, ...], rounds: int, batch: int = 128) -> Cost:
    """Measure the check of a multilayer perceptron's loss.

    Parameters
    ----------
    widths : tuple of int
    rounds : int
        Of check and pass in turn.
    batch : int

    """
    subject = mlp_loss(np.random.default_rng(0), widths, batch)
    seconds, passes = [], []
    for k in range(rounds):
        begin = time.perf_counter()
        subject.f(**subject.params)
        subject.grad(**subject.params)
        passes.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        report = check_grad(subject.f, subject.params, subject.grad, rng=k)
        seconds.append(time.perf_counter() - begin)
    own = sum(value.nbytes for value in subject.params.values())
    return Cost(
        f"MLP loss, {'-'.join(map(str, widths))}, batch {batch}",
        sum(value.size for value in subject.params.values()),
        report.ok,
        report.mode,
        report.calls,
        statistics.median(seconds),
        statistics.median(passes),
        statistics.median(a / b for a, b in zip(seconds, passes, strict=True)),
        own / 2**20,
        (_check_peak(subject) - _own_peak(subject, own)) / 2**20,
    )


def _check_peak(subject: Subject) -> int:
    return _peak(lambda: check_grad(subject.f, subject.params, subject.grad, rng=0))


def _own_peak(subject: Subject, gradient_bytes: int) -> int:
    """Return the memory of the activations: the function's, complex ones too, or the gradient's."""
    moved = {name: value.astype(np.complex128) for name, value in subject.params.items()}
    return max(
        _peak(lambda: subject.f(**subject.params)),
        _peak(lambda: subject.f(**moved)),
        _peak(lambda: subject.grad(**subject.params)) - gradient_bytes,
    )


def _peak(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def register(subparsers: Any) -> None:
    """Add the command ``gradcheck`` to the parser of ``python -m bench``."""
    parser = subparsers.add_parser("gradcheck", help="what a check costs")
    parser.add_argument("--rounds", type=int, default=5, help="checks of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return 1 where a gradient does not pass or a target is missed, else 0."""
    small = measure(SMALL, arguments.rounds)
    large = [measure(LARGE, arguments.rounds, batch) for batch in BATCHES]
    costs = [small, *large]
    targets = [("seconds", small, small.seconds, _SMALL_SECONDS)]
    targets += [("passes", cost, cost.passes, _LARGE_PASSES) for cost in large]
    targets += [
        ("extra memory / float64 parameters", cost, cost.memory_ratio, _LARGE_MEMORY)
        for cost in large
    ]
    settings = environment(threads=0, backend="numpy", peer="none")
    del settings["threads"]  # BLAS's own
    if arguments.json:
        rows = [asdict(cost) | {"memory_ratio": cost.memory_ratio} for cost in costs]
        print(json.dumps({"benchmark": "gradcheck", "rows": rows, "environment": settings}))
    else:
        print(f"{describe(settings)}\n\n{table(costs)}\n")
        for name, cost, value, target in targets:
            print(f"- {cost.function}: {name}: {value:.2f} (target at most {target})")
    within = all(value <= target for _, _, value, target in targets)
    return 0 if within and all(cost.ok for cost in costs) else 1


def table(costs: list[Cost]) -> str:
    """Return the costs as a Markdown table."""
    lines = [
        "| function | parameters | gradient | mode | calls | s per check | s per pass | passes "
        "| parameters MiB | extra MiB | ratio |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cost in costs:
        cells = [
            cost.function,
            f"{cost.parameters:,}",
            "passed" if cost.ok else "**not passed**",
            cost.mode,
            cost.calls,
            f"{cost.seconds:.3f}",
            f"{cost.pass_seconds:.4f}",
            f"{cost.passes:.1f}",
            f"{cost.parameter_mb:.2f}",
            f"{cost.extra_mb:.2f}",
            f"{cost.memory_ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
