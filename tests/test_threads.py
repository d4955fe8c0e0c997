"""Threads: how many BLAS has, and pieces of work side by side."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from refkd import threads
from refkd.ops import conv2d_backward, conv2d_forward
from refkd.threads import blas_threads, limit_blas_threads, side_by_side


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be two threads for side_by_side, on any machine and BLAS."""
    monkeypatch.setattr(threads, "_unlimited", 2)


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


def test_results_come_in_the_order_of_their_items(two_threads: None) -> None:
    def late_first(item: int) -> int:
        time.sleep(0.01 if item == 0 else 0)
        return item * item

    assert list(side_by_side(late_first, range(7))) == [i * i for i in range(7)]
    assert list(side_by_side(late_first, [])) == []


def test_two_pieces_are_at_work_at_a_time(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=20)
    assert sorted(side_by_side(lambda item: meeting.wait(), range(2))) == [0, 1]


def test_a_limit_on_blas_is_none_on_pieces_and_holds_within_them() -> None:
    if (blas_threads() or 0) < 2:
        pytest.skip("BLAS has one thread here")
    meeting = threading.Barrier(2, timeout=20)

    def piece(item: int) -> int | None:
        meeting.wait()
        return blas_threads()

    before = blas_threads()
    with limit_blas_threads(1):
        assert list(side_by_side(piece, range(2))) == [1, 1]
        assert blas_threads() == 1
    assert list(side_by_side(piece, range(2))) == [1, 1]
    assert blas_threads() == before


def test_an_error_in_a_piece_reaches_the_caller_and_lifts_the_limit(two_threads: None) -> None:
    def fail(item: int) -> None:
        raise ZeroDivisionError(item)

    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(fail, range(3)))
    assert blas_threads() == before


def test_no_thread_is_left(two_threads: None) -> None:
    before = threading.active_count()
    list(side_by_side(str, range(5)))
    assert threading.active_count() == before


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
        monkeypatch.setattr(threads, "_unlimited", 3)
        expected = both()
        monkeypatch.setattr(threads, "_unlimited", workers)
        for actual, wanted in zip(both(), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
