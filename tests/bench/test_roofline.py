"""The machine's peaks, and what part of them a row reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import roofline

PEAKS = {"sgemm_gflops": 200.0, "copy_gbs": 20.0}


def test_operations_count_where_there_are_any_and_bytes_elsewhere() -> None:
    row = {"gflop": 2.0, "gbyte": 0.1, "refkd_ms": 20.0, "peer_ms": 40.0}
    expected = {"roofline": 0.5, "peer_roofline": 0.25}
    assert roofline.fractions(row, PEAKS) == pytest.approx(expected)
    row = {"gflop": None, "gbyte": 0.1, "refkd_ms": 10.0, "peer_ms": None}
    assert roofline.fractions(row, PEAKS) == {"roofline": 0.5, "peer_roofline": None}


def test_peaks_are_the_best_of_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Scripted:
        def __init__(self, *names: str, threads: int) -> None:
            opened.append((*names, threads))

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, steps: int) -> list[float]:
            return [0.5] * (steps - 1) + [0.25]

    monkeypatch.setattr(roofline, "Worker", Scripted)
    peaks = roofline.measure_peaks(3)
    assert peaks["sgemm_gflops"] == pytest.approx(4 * 2 * 2048**3 / 1e9)
    assert peaks["copy_gbs"] == pytest.approx(4 * 2 * 2**28 / 1e9)  # read and written
    assert opened == [("bench.roofline", name, "best", 3) for name in peaks]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["sgemm_gflops", "copy_gbs"])
def test_a_side_returns_the_seconds_of_each_step(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_ORDER", 8)
    monkeypatch.setattr(roofline, "_COPIED_BYTES", 64)
    times = roofline.open_side(name, "best", threads).run(3)
    assert len(times) == 3
    assert min(times) > 0


def test_a_copy_copies_all_of_it_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(roofline, "_COPIED_BYTES", 64)
    monkeypatch.setattr(np, "copyto", lambda target, source: copied.append(source.nbytes))
    roofline.open_side("copy_gbs", "best", 4).call()
    assert copied == [16] * 4
