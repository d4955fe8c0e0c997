"""Threads that share a kernel: how many there are, and what an interrupt leaves behind."""

from __future__ import annotations

import ast
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import get_backend, registered_kernels, use_backend
from refkd.distill import Batch, Supervised
from refkd.errors import BackendUnavailable
from refkd.models import create
from refkd.nn.layer import add_prefix
from refkd.ops import conv2d_backward, conv2d_forward, linear_backward, linear_forward
from refkd.train.optim import SGD
from tests.backends.processes import BACKENDS, run
from tests.backends.surroundings import surroundings

try:
    numba = get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import activation, conv, linear, team
from refkd_numba.mlp import step as mlp_step

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="the system has no such signal"
)


class Interrupted(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def interrupt() -> Iterator[Callable[..., None]]:
    """Return what has the main thread interrupted after some seconds, and then every so many."""

    def raise_it(*_: Any) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, raise_it)
    yield lambda after, every=0.0: signal.setitimer(signal.ITIMER_REAL, after, every)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def add_slowly(total: Any, seconds: float, thread: int, threads: int) -> None:
    """Add 1 to a thread's own entry; the others take their time."""
    if thread:
        time.sleep(seconds)
    total[thread] += 1


@needs_signals
@pytest.mark.parametrize("every", [0.0, 0.05])
def test_an_interrupt_is_raised_when_all_threads_are_done(
    every: float, interrupt: Callable[..., None]
) -> None:
    def part(total: Any, thread: int, threads: int) -> None:
        if thread:
            time.sleep(0.2)
            interrupt(0)
            time.sleep(0.02)
        total[thread] += 1

    total = np.zeros(3)
    for number in range(1, 4):
        interrupt(0.03, every)
        with pytest.raises(Interrupted):
            team.share(part, total, threads=3)
        assert total.tolist() == [number] * 3
    for number in range(4, 8):
        team.share(add_slowly, total, 0.02, threads=3)
        assert total.tolist() == [number] * 3


@needs_signals
# What a handler raises while an array's end is noted goes to sys.unraisablehook, as Python has it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whenever_a_kernel_is_interrupted_the_next_results_are_right(
    interrupt: Callable[..., None],
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 32, 32, 32)).astype(np.float32)
    weight = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    with use_backend("numba"), pytest.MonkeyPatch.context() as patch:
        for module in (conv, team):
            patch.setattr(module, "worker_threads", lambda: 3)
        expected = conv2d_forward(x, weight, None, padding=1)
        begun = time.perf_counter()
        conv2d_forward(x, weight, None, padding=1)
        seconds = time.perf_counter() - begun
        count = 0
        for _ in range(30):
            try:
                interrupt(seconds * rng.uniform(0.01, 1))
                conv2d_forward(x, weight, None, padding=1)
                interrupt(0)
            except Interrupted:
                count += 1
            y = conv2d_forward(x, weight, None, padding=1)
            np.testing.assert_array_equal(y, expected)
    assert count > 0


@needs_signals
def test_a_handler_may_call_a_kernel_itself() -> None:
    total, of_handler = np.zeros(3), np.zeros(3)
    previous = signal.signal(
        signal.SIGALRM, lambda *_: team.share(add_slowly, of_handler, 0.0, threads=3)
    )
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        team.share(add_slowly, total, 0.2, threads=3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert total.tolist() == of_handler.tolist() == [1, 1, 1]


@pytest.mark.parametrize("failing", [0, 2])
def test_what_a_thread_raises_is_raised_when_all_are_done(failing: int) -> None:
    done = []

    def fail(thread: int, threads: int) -> None:
        time.sleep(0.05 * (thread != failing))
        done.append(thread)
        if thread == failing:
            raise ValueError(str(thread))

    with pytest.raises(ValueError, match=str(failing)):
        team.share(fail, threads=4)
    assert sorted(done) == [0, 1, 2, 3]


def test_where_no_thread_can_be_had_the_caller_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "_team", team._Team())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    total = np.zeros(3)
    team.share(add_slowly, total, 0.0, threads=3)
    assert total.tolist() == [1, 1, 1]
    assert not team._team.busy._is_owned()


def test_a_kernel_that_is_called_while_python_ends_does_not_hang() -> None:
    program = """
from refkd_numba import team
def part(total, thread, threads):
    total[thread] += 1
class Owner:
    def __del__(self, share=team.share, part=part):
        total = [0, 0, 0]
        share(part, total, threads=3)
        print(total, flush=True)
first = [0, 0, 0]
team.share(part, first, threads=3)
import sys
sys.modules["__main__"].owner = Owner()
"""
    assert run(program).stdout == "[1, 1, 1]\n"


def test_there_are_never_more_threads_than_are_needed_at_once() -> None:
    program = """
import threading
from refkd_numba import team
def part(seen, thread, threads):
    seen.append((thread, threads))
def call(threads):
    seen = []
    team.share(part, seen, threads=threads)
    right.append(sorted(seen) == [(thread, threads) for thread in range(threads)])
right = []
first = [threading.Thread(target=call, args=(3,)) for _ in range(20)]
for thread in first:
    thread.start()
for thread in first:
    thread.join()
assert threading.active_count() <= 3, threading.active_count()
for threads in [2, 5, 3, 4, 1, 5] * 5:
    call(threads)
assert threading.active_count() == 5, threading.active_count()
assert right == [True] * (20 + 30), right
"""
    run(program)


def small_calls() -> dict[str, Callable[[], Any]]:
    """Return calls of the kernels, and of a step, that have scratch memory for each thread."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    def both_ways(x: Any, weight: Any, **geometry: Any) -> Any:
        y = conv2d_forward(x, weight, None, **geometry)
        return y, *conv2d_backward(y, x, weight, **geometry)

    def linear_both_ways(x: Any, weight: Any) -> Any:
        y = linear_forward(x, weight, None)
        return y, *linear_backward(y, x, weight)

    def step() -> Any:
        network = create("mlp", in_features=30, hidden=(20,), num_classes=5)
        params = add_prefix("student", network.init(np.random.default_rng(0))[0])
        objective, optimizer = Supervised(network), SGD(0.1)
        take = mlp_step.compile_step(objective, optimizer)
        batch = Batch(draw(9, 30), rng.integers(5, size=9), None, 9)
        take(params, {}, optimizer.init(params), batch, rng, lr=0.1, where="here")
        return tuple(params.values())

    return {
        "direct": partial(both_ways, draw(3, 4, 9, 9), draw(6, 4, 3, 3)),
        "strided": partial(both_ways, draw(3, 4, 9, 9), draw(6, 4, 3, 3), stride=2),
        "depthwise": partial(both_ways, draw(3, 4, 9, 9), draw(4, 1, 3, 3), groups=4),
        "winograd": partial(both_ways, draw(3, 16, 16, 16), draw(16, 16, 3, 3), padding=1),
        "few rows": partial(linear_both_ways, draw(3, 40), draw(50, 40)),
        "many rows": partial(linear_both_ways, draw(90, 20), draw(10, 20)),
        "step": step,
    }


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Return what is shared, and among how many threads: a list that grows."""
    seen: list[tuple[Any, int]] = []
    whole = team._Team.share

    def share(self: Any, function: Any, arguments: Any, threads: int) -> None:
        seen.append((function, threads))
        if has_scratch(function):
            assert threads == 2, function.__name__
        whole(self, function, arguments, threads)

    monkeypatch.setattr(team._Team, "share", share)
    return seen


def has_scratch(function: Any) -> bool:
    """Return whether a compiled function has memory of its own for each thread."""
    return "[thread]" in inspect.getsource(function.py_func)


def test_there_is_scratch_memory_for_every_thread_when_their_number_changes_meanwhile(
    shared: list[tuple[Any, int]],
) -> None:
    calls = small_calls()
    with (
        use_backend("numba"),
        surroundings("numba")["three threads, poisoned memory"](),
        pytest.MonkeyPatch.context() as patch,
    ):
        for module in (conv, linear, mlp_step):
            patch.setattr(module, "worker_threads", lambda: 2)
        for call in calls.values():
            call()
    names = {function.__name__ for function, _ in shared if has_scratch(function)}
    sources = [path.read_text() for path in (BACKENDS / "refkd_numba").rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    expected = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and "threads" in [argument.arg for argument in node.args.args]
        and "[thread]" in ast.unparse(node)
    }
    assert names == expected - {"_note"}  # which is a part of another
    assert max(threads for _, threads in shared) == 3


def test_small_work_is_shared_where_the_surroundings_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone: list[str] = []
    share = team.share

    def watched(function: Any, *arguments: Any, worth: bool = True, threads: Any = None) -> None:
        if not worth or threads == 1:
            alone.append(function.__name__)
        share(function, *arguments, worth=worth, threads=threads)

    x = np.linspace(-2, 2, 5000, dtype=np.float32)
    kernels = registered_kernels()
    with use_backend("numba", strict=True):
        for module in (activation, conv, linear):
            monkeypatch.setattr(module, "share", watched)
        with surroundings("numba")["three threads, poisoned memory"]():
            for name in ("relu", "sigmoid", "tanh", "silu", "gelu"):
                y = kernels[f"{name}_forward"].call(x)
                kernels[f"{name}_backward"].call(x, y)
            for name, call in small_calls().items():
                if name != "step":
                    call()
    assert alone == []


def test_every_threshold_has_a_name_that_the_surroundings_find() -> None:
    for path in (BACKENDS / "refkd_numba").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for condition in conditions(node):
                numbers = [
                    part.value
                    for part in ast.walk(condition)
                    if isinstance(part, ast.Constant) and type(part.value) in (int, float)
                ]
                assert all(number <= 1 for number in numbers), where(path, node)


def conditions(node: ast.AST) -> list[ast.expr]:
    """Return the conditions in a node under which there is more than one thread."""
    if isinstance(node, ast.keyword) and node.arg == "worth":
        return [node.value]
    if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["worth"]:
        return [node.value]
    if isinstance(node, ast.IfExp) and "worker_threads()" in ast.unparse(node.body):
        return [node.test]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "room_for_sums":
        return node.args[1:2]
    return []


def where(path: Path, node: ast.AST) -> str:
    return f"{path.name}: {ast.unparse(node)}"
