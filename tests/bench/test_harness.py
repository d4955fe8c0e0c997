"""The harness on sides whose times and outputs are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import harness
from bench.harness import (
    VerificationError,
    Worker,
    WorkerError,
    check_agreement,
    measure,
    take_turns,
)
from refkd.dispatch import available_backends
from refkd.threads import blas_threads, usable_cores


class ScriptedSide:
    """Answers each turn with a fixed time per step and notes when its turn was."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, iter(seconds), log

    def run(self, steps: int) -> list[float]:
        self.log.append(self.name)
        return [next(self.seconds)] * steps


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_SETTLE_SECONDS", 0.0)


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "fake_side"


def test_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians() -> None:
    # The first time of each is the warm-up. The machine slows down tenfold in round 2.
    own = ScriptedSide("own", [9.0, 1.0, 10.0, 3.0], [])
    peer = ScriptedSide("peer", [9.0, 2.0, 30.0, 3.0], [])
    result = measure(own, peer, rounds=3, turn_seconds=1.0)
    assert result.ratio == 2.0
    assert result.ratio_quartiles == (1.5, 2.5)
    assert (result.refkd_ms, result.peer_ms) == (3000.0, 3000.0)


@pytest.mark.parametrize(("seconds", "turns"), [(0.5, "ABABABAB"), (0.01, "AABBABABAB")])
def test_sides_take_turns_after_both_have_warmed_up_longer_where_steps_are_short(
    seconds: float, turns: str
) -> None:
    log: list[str] = []
    sides = [ScriptedSide(name, [seconds] * 5, log) for name in "AB"]
    take_turns(sides, rounds=3, turn_seconds=1.0)
    assert "".join(log) == turns


def test_a_stall_within_a_turn_does_not_move_its_time() -> None:
    class Stalling:
        def run(self, steps: int) -> list[float]:
            return [0.001] * (steps - 1) + [5.0]

    assert measure(Stalling(), None, rounds=2, turn_seconds=0.01).refkd_ms == 1.0


def test_a_measurement_without_peer_has_no_ratio() -> None:
    result = measure(ScriptedSide("own", [0.5] * 3, []), None, rounds=2, turn_seconds=1.0)
    assert (result.refkd_ms, result.peer_ms, result.ratio) == (500.0, None, None)


def test_turns_are_as_long_for_a_slow_side_as_for_a_fast_one() -> None:
    taken: dict[float, int] = {}

    class Counting:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def run(self, steps: int) -> list[float]:
            taken[self.seconds] = steps
            return [self.seconds] * steps

    take_turns([Counting(0.001), Counting(0.01), Counting(10.0)], rounds=1, turn_seconds=0.25)
    assert taken == {0.001: 250, 0.01: 25, 10.0: 3}


def test_equal_outputs_agree() -> None:
    a = {"loss": np.float32(2.0), "g": np.float32([1.0, -1e-9])}
    check_agreement(a, {"loss": np.float32(2.000001), "g": np.float32([1.0, 0.0])}, tolerance=1e-6)


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ({"g": np.float32([1.0, 2.001])}, "'g' differs by 5.00e-04"),
        ({"g": np.float32([1.0, np.nan])}, "'g' differs by nan"),
        ({"g": np.float32([[1.0], [2.0]])}, r"'g' has shape \(2,\) against \(2, 1\)"),
        ({"h": np.float32([1.0, 2.0])}, "only one side has 'g'; only one side has 'h'"),
        ({"g": np.float32([0.0, 0.0])}, "'g' differs"),
    ],
)
def test_a_disagreement_is_named(peer: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        check_agreement({"g": np.float32([1.0, 2.0])}, peer, tolerance=1e-5)


def test_arrays_of_a_layer_share_one_scale_and_layers_do_not() -> None:
    # The gradient of a bias before batch norm is nothing but rounding.
    a = {"conv.weight": np.float32([1.0]), "conv.bias": np.float32([1e-9]), "fc.bias": np.ones(1)}
    b = a | {"conv.bias": np.float32([-3e-9])}
    check_agreement(a, b, tolerance=1e-8)
    with pytest.raises(VerificationError, match=r"'conv.bias' differs by 4\.00e-09"):
        check_agreement(a, b, tolerance=1e-9)
    small = {"conv.bias": np.float32([1e-9]), "fc.bias": np.ones(1)}
    with pytest.raises(VerificationError, match=r"'conv.bias' differs by 1\.33e\+00"):
        check_agreement(small, small | {"conv.bias": np.float32([-3e-9])}, tolerance=1e-8)


def test_a_count_is_the_same_or_not_and_no_scale_of_its_layer() -> None:
    a = {"bn.mean": np.float32([0.03]), "bn.steps": np.array(8)}
    check_agreement(a, a, tolerance=1e-6)
    with pytest.raises(VerificationError, match="mean' differs by 7"):
        check_agreement(a, a | {"bn.mean": np.float32([0.1])}, tolerance=0.2)
    with pytest.raises(VerificationError, match="steps' differs by inf"):
        check_agreement(a, a | {"bn.steps": np.array(9)}, tolerance=0.5)


def test_a_worker_answers_from_its_own_process_whatever_its_libraries_print(
    fake_module: str,
) -> None:
    with Worker(fake_module, "any", "fine", threads=3) as worker:
        assert worker.run(4) == [0.001] * 4
        for dtype in ("float32", "float64"):
            gradient = worker.verify(dtype)["gradient of w"]
            assert gradient.dtype == dtype
            np.testing.assert_array_equal(gradient, [1.0, -3.0])
        assert 5 < worker.peak_rss_mb() < 500


def test_a_worker_has_further_variables_and_tells_how_long_its_backend_took(
    fake_module: str,
) -> None:
    variables = {"FAKE_SECONDS": "0.5"}
    with Worker(fake_module, "any", "tells a variable", threads=1, variables=variables) as worker:
        assert worker.run(2) == [0.5, 0.5]
        assert worker.backend_seconds == 0.25


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_teams_of_a_backend_have_the_threads_of_the_worker(
    fake_module: str, backend: str, threads: int
) -> None:
    if available_backends().get(backend) is not None:
        pytest.skip(f"no backend {backend}")
    if blas_threads() is None or usable_cores() < threads:
        pytest.skip("NumPy's BLAS is not OpenBLAS, or there are too few cores")
    with Worker(fake_module, backend, "tells its team", threads=threads) as worker:
        assert worker.run(1) == [threads]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raises", "RuntimeError: no compiler"),
        ("dies", "(?s)ended with status 7: .*last words"),
        ("sleeps", "no answer within 0.1 s"),
    ],
)
def test_a_failing_worker_says_why(fake_module: str, mode: str, message: str) -> None:
    with (
        Worker(fake_module, "any", mode, threads=1) as worker,
        pytest.raises(WorkerError, match=message),
    ):
        worker.run(2, timeout=0.1 if mode == "sleeps" else 60)


def test_a_worker_that_cannot_start_says_why(fake_module: str) -> None:
    with pytest.raises(WorkerError, match="ValueError: no such side"):
        Worker(fake_module, "any", "unopenable", threads=1)


def test_measurements_serialise_to_json(fake_module: str) -> None:
    import dataclasses

    with Worker(fake_module, "any", "fine", threads=1) as worker:
        result = measure(worker, worker, rounds=2, turn_seconds=0.01)
    assert json.loads(json.dumps(dataclasses.asdict(result)))["ratio"] == 1.0
