"""What the machine could do at most: its matrix products and its memory, measured.

A row's roofline is the part of that which it reaches: of the operations per second of a
large sgemm, or of the bytes per second of a large copy. Both count what has to be done,
not what is done: an algorithm with fewer operations, or results that are still in cache,
may exceed 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.harness import Worker

__all__ = ["fractions", "measure_peaks", "open_side"]

_ORDER = 2048  # of the square matrices
_COPIED_BYTES = 1 << 28  # more than a last-level cache holds
_STEPS = 25  # the best of which counts: what a machine can do shows when it is left alone


def measure_peaks(threads: int) -> dict[str, float]:
    """Return ``sgemm_gflops`` and ``copy_gbs``, per second, of that many threads."""
    peaks = {"sgemm_gflops": 2 * _ORDER**3 / 1e9, "copy_gbs": 2 * _COPIED_BYTES / 1e9}
    for name, work in peaks.items():
        with Worker("bench.roofline", name, "best", threads=threads) as worker:
            peaks[name] = work / min(worker.run(_STEPS))
    return peaks


def fractions(row: Mapping[str, Any], peaks: Mapping[str, Any]) -> dict[str, float | None]:
    """Return ``roofline`` and ``peer_roofline`` of a row.

    Parameters
    ----------
    row : mapping
        With ``refkd_ms``, ``peer_ms`` (or None), and ``gflop`` or, where that is None,
        ``gbyte``.
    peaks : mapping
        Of :func:`measure_peaks`.
    """
    if row["gflop"] is None:
        least = row["gbyte"] / peaks["copy_gbs"]
    else:
        least = row["gflop"] / peaks["sgemm_gflops"]
    sides = {"roofline": row["refkd_ms"], "peer_roofline": row["peer_ms"]}
    return {name: None if ms is None else 1e3 * least / ms for name, ms in sides.items()}


def open_side(workload: str, mode: str, threads: int) -> _Repeated:
    """Return what does ``"sgemm_gflops"`` or ``"copy_gbs"`` again and again."""
    return _Repeated(_sgemm() if workload == "sgemm_gflops" else _copy(threads))


class _Repeated:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def run(self, steps: int) -> list[float]:
        """Return the seconds of each of ``steps`` calls, after one that is not timed."""
        self.call()
        stamps = [time.perf_counter()]
        for _ in range(steps):
            self.call()
            stamps.append(time.perf_counter())
        return [float(seconds) for seconds in np.diff(stamps)]


def _sgemm() -> Callable[[], Any]:
    rng = np.random.default_rng(1)
    a, b = (rng.random((_ORDER, _ORDER), np.float32) for _ in range(2))
    product = np.empty_like(a)
    return lambda: np.matmul(a, b, out=product)


def _copy(threads: int) -> Callable[[], Any]:
    source = np.ones((threads, _COPIED_BYTES // threads), np.uint8)
    target = np.zeros_like(source)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.copyto, target, source))
