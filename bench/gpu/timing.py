"""How long calls take: captured, on the device alone, and one by one with the host's work."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import cupy
import torch

from refkd_cupy import device

__all__ = ["Side", "Times", "median_times", "one_stream", "precision"]

_ROUNDS, _TURN_SECONDS, _MOST_CALLS = 5, 0.02, 200
_CALLS_OF_A_GRAPH = 16  # at least: what launching it costs is shared

Call = Callable[[], Any]


class Side(NamedTuple):
    """Calls that differ in their arrays, which together exceed the cache."""

    calls: Sequence[Call]
    is_torch: bool


class Times(NamedTuple):
    """Seconds of a call.

    Attributes
    ----------
    captured : float
        In a CUDA graph of many.
    call : float
        By itself after the one before, whether device or host is what takes long.
    """

    captured: float
    call: float


@contextlib.contextmanager
def one_stream() -> Iterator[None]:
    """Let both sides queue what they do on the same stream, which can be captured."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        yield
        stream.synchronize()


def median_times(sides: dict[str, Side]) -> dict[str, Times]:
    """Return how long a call of each side takes, the sides taking turns."""
    works: dict[tuple[str, bool], tuple[Call, int]] = {}
    for name, side in sides.items():
        run = _in_turn(side.calls)
        run()
        works[name, False] = run, len(side.calls)
        many = _in_turn([*side.calls] * -(-_CALLS_OF_A_GRAPH // len(side.calls)))
        capture = _captured_by_torch if side.is_torch else _captured
        works[name, True] = capture(many), len(many.args[0])
    counts = {}
    for key, (work, calls) in works.items():
        once = _elapsed(work, 1)
        most = max(1, _MOST_CALLS // calls)
        counts[key] = max(1, min(most, int(_TURN_SECONDS / max(once, 1e-6))))
    found: dict[tuple[str, bool], list[float]] = {key: [] for key in works}
    for _ in range(_ROUNDS):
        for key, (work, calls) in works.items():
            found[key].append(_elapsed(work, counts[key]) / counts[key] / calls)
    medians = {key: statistics.median(values) for key, values in found.items()}
    return {name: Times(medians[name, True], medians[name, False]) for name in sides}


def _in_turn(calls: Sequence[Call]) -> partial[None]:
    return partial(_run, calls)


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _captured(work: Call) -> Call:
    return device.capture(work, work)[1]


def _captured_by_torch(work: Call) -> Call:
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()  # torch.cuda.graph collects garbage besides, which takes longest
    try:
        work()
    finally:
        graph.capture_end()
    replay: Call = graph.replay
    return replay


def precision(tf32: bool) -> None:
    """Let both sides use TF32, or neither."""
    from refkd_cupy import settings

    settings.tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def _elapsed(work: Call, count: int) -> float:
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    begin.record()
    for _ in range(count):
        work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3
