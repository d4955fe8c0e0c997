"""Threads: how many BLAS has, and pieces of work side by side."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest

from refkd import threads
from refkd.ops import conv2d_backward, conv2d_forward
from refkd.threads import blas_threads, limit_blas_threads, side_by_side, usable_cores


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be two threads for side_by_side, on any machine and BLAS."""
    monkeypatch.setattr(threads, "_at_a_time", lambda: 2)


@pytest.fixture
def blas_of_four(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., object]]:
    """Let BLAS be one that has four threads, on any machine; its functions can be replaced."""
    count = [4]
    functions = {
        "get_num_threads": lambda: count[0],
        "set_num_threads": lambda threads: count.__setitem__(0, threads),
    }
    monkeypatch.setattr(threads, "_openblas", functions.get)
    return functions


def test_a_limit_holds_in_its_block_and_is_lifted_after_it() -> None:
    before = blas_threads()
    if before is None:
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    with limit_blas_threads(1):
        assert blas_threads() == 1
        with limit_blas_threads(2):
            assert blas_threads() == 1
        assert blas_threads() == 1
    assert blas_threads() == before
    with limit_blas_threads(None):
        assert blas_threads() == before


@pytest.mark.parametrize("leaving", list(itertools.permutations([1, 2, 9])))
def test_of_limits_that_overlap_the_smallest_holds(
    leaving: tuple[int, ...], blas_of_four: object
) -> None:
    blocks = {limit: limit_blas_threads(limit) for limit in (2, 9, 1)}
    for limit, expected in ((2, 2), (9, 2), (1, 1)):
        blocks[limit].__enter__()
        assert blas_threads() == expected
    for limit in leaving:
        blocks.pop(limit).__exit__(None, None, None)
        assert blas_threads() == min([4, *blocks])


def test_limits_change_one_at_a_time(blas_of_four: dict[str, Callable[..., object]]) -> None:
    late, other_has_left = threading.Event(), threading.Event()
    set_threads = blas_of_four["set_num_threads"]

    def interrupted(count: int) -> None:
        if threading.current_thread() is leaving and not late.is_set():
            late.set()
            other_has_left.wait(0.1)  # it cannot, before this is through
        set_threads(count)

    with ExitStack() as one, ExitStack() as other:
        one.enter_context(limit_blas_threads(2))
        other.enter_context(limit_blas_threads(1))
        blas_of_four["set_num_threads"] = interrupted
        leaving = threading.Thread(target=one.close)
        leaving.start()
        late.wait(10)
        other.close()
        other_has_left.set()
        leaving.join()
    assert blas_threads() == 4


def test_where_there_is_no_openblas_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openblas", {}.get)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    meeting = threading.Barrier(2, timeout=20)
    with limit_blas_threads(1):
        assert blas_threads() is None
        assert sorted(side_by_side(lambda item: meeting.wait(), range(2))) == [0, 1]


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_results_come_in_the_order_of_their_items(two_threads: None) -> None:
    def late_first(item: int) -> int:
        time.sleep(0.01 if item == 0 else 0)
        return item * item

    assert list(side_by_side(late_first, range(7))) == [i * i for i in range(7)]
    assert list(side_by_side(late_first, [])) == []


def test_two_pieces_are_at_work_at_a_time(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=20)
    assert sorted(side_by_side(lambda item: meeting.wait(), range(2))) == [0, 1]


def test_pieces_handle_floating_point_errors_as_their_caller_does(two_threads: None) -> None:
    infinity = np.array(np.inf)
    for chosen in ("ignore", "raise"):
        with np.errstate(invalid=chosen):
            found = list(side_by_side(lambda item: np.geterr()["invalid"], range(3)))
        assert found == [chosen] * 3
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
        list(side_by_side(lambda item: infinity - infinity, range(3)))


def test_a_limit_on_blas_is_none_on_pieces_and_holds_within_them(blas_of_four: object) -> None:
    meeting = threading.Barrier(4, timeout=20)

    def piece(item: int) -> int | None:
        meeting.wait()
        return blas_threads()

    with limit_blas_threads(1):
        assert list(side_by_side(piece, range(4))) == [1] * 4
        assert blas_threads() == 1
    assert list(side_by_side(piece, range(4))) == [1] * 4
    assert blas_threads() == 4


def test_a_single_piece_has_all_threads_of_blas(blas_of_four: object) -> None:
    assert list(side_by_side(lambda item: blas_threads(), range(1))) == [4]
    with limit_blas_threads(2):
        assert list(side_by_side(lambda item: blas_threads(), range(1))) == [2]


@pytest.mark.parametrize("taken", [1, 4])
def test_results_that_nobody_takes_do_not_pile_up(taken: int, two_threads: None) -> None:
    begun: list[int] = []
    results = side_by_side(begun.append, range(50))
    for _ in range(taken):
        next(results)
    time.sleep(0.02)  # time enough to begin more
    assert len(begun) <= taken + 2


def test_what_is_not_taken_lifts_the_limit_and_is_not_begun(
    blas_of_four: object, two_threads: None
) -> None:
    begun: list[int] = []
    results = side_by_side(begun.append, range(50))
    next(results)
    assert blas_threads() == 1
    results.close()
    assert blas_threads() == 4
    count = len(begun)
    time.sleep(0.01)
    assert len(begun) == count < 4


def test_closing_waits_for_the_pieces_at_work(two_threads: None) -> None:
    begun, ended = threading.Event(), []

    def piece(item: int) -> None:
        if item == 1:
            begun.set()
            time.sleep(0.02)
            ended.append(item)

    results = side_by_side(piece, range(2))
    next(results)
    begun.wait(10)
    results.close()
    assert ended == [1]


def test_an_error_in_a_piece_reaches_the_caller_and_lifts_the_limit(two_threads: None) -> None:
    def fail(item: int) -> None:
        raise ZeroDivisionError(item)

    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(fail, range(3)))
    assert blas_threads() == before


def test_every_call_has_the_same_threads(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=20)

    def piece(item: int) -> int:
        meeting.wait()
        return threading.get_ident()

    first, second = (set(side_by_side(piece, range(4))) for _ in range(2))
    assert first == second
    assert len(first) == 2


def test_pieces_of_a_piece_run_in_its_thread(two_threads: None) -> None:
    def inner(item: int) -> int:
        return threading.get_ident()

    def outer(item: int) -> bool:
        return set(side_by_side(inner, range(3))) == {threading.get_ident()}

    assert all(side_by_side(outer, range(5)))


def in_a_fork(before: str, child: str) -> None:
    """Run lines, fork, and run others in the child, which must end."""
    script = f"""
import os, signal, threading, time
from refkd import threads
{textwrap.dedent(before)}
child = os.fork()
if not child:
    signal.alarm(20)
{textwrap.indent(textwrap.dedent(child), "    ")}
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
def test_a_fork_has_threads_of_its_own() -> None:
    use = """
        threads._at_a_time = lambda: 2
        assert list(threads.side_by_side(str, range(3))) == ["0", "1", "2"]
    """
    in_a_fork(use, use)


@needs_fork
def test_a_fork_while_another_thread_changes_a_limit_does_not_hang() -> None:
    change_slowly = """
        def change():
            with threads._changing_limits:
                begun.set()
                time.sleep(0.2)
        begun = threading.Event()
        threading.Thread(target=change, daemon=True).start()
        begun.wait()
    """
    in_a_fork(change_slowly, "with threads.limit_blas_threads(1): pass")


@needs_fork
def test_a_fork_keeps_its_own_limits_and_not_those_of_other_threads() -> None:
    limit = """
        count = [4]
        threads._openblas = {
            "get_num_threads": lambda: count[0],
            "set_num_threads": lambda threads: count.__setitem__(0, threads),
        }.get
        def stay():
            with threads.limit_blas_threads(1):
                begun.set()
                time.sleep(20)
        begun = threading.Event()
        threading.Thread(target=stay, daemon=True).start()
        begun.wait()
        own = threads.limit_blas_threads(3)
        own.__enter__()
        assert threads.blas_threads() == 1
    """
    leave = """
        assert threads.blas_threads() == 3
        own.__exit__(None, None, None)
        assert threads.blas_threads() == 4
    """
    in_a_fork(limit, leave)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_convolution_has_the_same_bits_for_any_number_of_threads(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 8, 32, 32)).astype(np.float32)
    weight = rng.standard_normal((8, 8, 3, 3)).astype(np.float32)

    def both() -> list[np.ndarray]:
        y = conv2d_forward(x, weight, None, padding=1)
        return [y, *conv2d_backward(y, x, weight, padding=1)]

    with limit_blas_threads(1):
        monkeypatch.setattr(threads, "_at_a_time", lambda: 3)
        expected = both()
        monkeypatch.setattr(threads, "_at_a_time", lambda: workers)
        for actual, wanted in zip(both(), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
