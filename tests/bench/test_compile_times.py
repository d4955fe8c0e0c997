"""What compiling adds to the first step, with a clock that the sides move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bench import compile_times as module
from bench.compile_times import compile_times
from bench.harness import Worker
from refkd.dispatch import available_backends


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Compiling:
    """Its first run takes 9 s, or 2 where another has filled the folder; the others 1, 8, 1."""

    backend_seconds = 0.75

    def __init__(self, clock: Clock, variables: Mapping[str, str]) -> None:
        self.clock = clock
        self.kept = Path(variables["NUMBA_CACHE_DIR"]) / "kept"
        self.runs = iter([2.0 if self.kept.exists() else 9.0, 1.0, 8.0, 1.0])

    def __enter__(self) -> Compiling:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, steps: int) -> None:
        self.clock.now += next(self.runs)
        self.kept.touch()


def test_cold_and_warm_are_what_the_first_run_takes_more_than_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    folders = []

    def open_worker(variables: Mapping[str, str]) -> Compiling:
        folders.append(Path(variables["NUMBA_CACHE_DIR"]))
        return Compiling(clock, variables)

    times = compile_times("numba", open_worker)  # type: ignore[arg-type]
    assert times == {"import_s": 0.75, "compile_cold_s": 8.0, "compile_warm_s": 1.0}
    assert folders[0] == folders[1]
    assert not folders[0].exists()


@pytest.mark.slow
def test_numba_compiles_once() -> None:
    if available_backends()["numba"] is not None:
        pytest.skip("no backend numba")
    names = "bench.workloads.mlp_refkd", "mlp_student_b32", "numba"

    def open_worker(variables: Mapping[str, str]) -> Worker:
        return Worker(*names, threads=1, variables=variables)

    times = compile_times("numba", open_worker)
    assert times["import_s"] > 0.01
    assert times["compile_cold_s"] > 2 * times["compile_warm_s"]
