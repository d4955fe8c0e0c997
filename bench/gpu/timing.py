"""How long calls take on the device, by events, and what the device can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cupy
import torch

__all__ = ["host_seconds", "median_times", "precision"]

_ROUNDS, _TURN_SECONDS, _MOST_CALLS = 5, 0.02, 200

Call = Callable[[], Any]


def median_times(sides: dict[str, Sequence[Call]]) -> dict[str, float]:
    """Return the seconds of a call of each side, the sides taking turns.

    The calls of a side are taken one after another, and differ in their arrays: together these
    exceed the cache. Whatever is queued runs on the default stream.
    """
    counts = {}
    for name, calls in sides.items():
        for call in calls:
            call()
        once = _elapsed(calls, len(calls)) / len(calls)
        counts[name] = max(len(calls), min(_MOST_CALLS, int(_TURN_SECONDS / max(once, 1e-6))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS):
        for name, calls in sides.items():
            found[name].append(_elapsed(calls, counts[name]) / counts[name])
    return {name: statistics.median(values) for name, values in found.items()}


def host_seconds(calls: Sequence[Call], count: int = 50) -> float:
    """Return what a call keeps the host busy, while the device works through the queue."""
    cupy.cuda.Device().synchronize()
    begin = time.perf_counter()
    for i in range(count):
        calls[i % len(calls)]()
    seconds = time.perf_counter() - begin
    cupy.cuda.Device().synchronize()
    return seconds / count


def precision(tf32: bool) -> None:
    """Let both sides use TF32, or neither."""
    from refkd_cupy import settings

    settings.tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def _elapsed(calls: Sequence[Call], count: int) -> float:
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    begin.record()
    for i in range(count):
        calls[i % len(calls)]()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3
