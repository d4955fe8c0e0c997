"""Threads: one of BLAS for small products, and some of our own for independent pieces.

OpenBLAS splits even a product of a few hundred rows over all cores, and its idle
threads spin: on small matrices that costs more than it gains, many times more where
other programs want the cores. NumPy's wheels carry their OpenBLAS; where there is none
(another BLAS, another loader) nothing is limited.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import importlib
import os
import threading
import typing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = [
    "blas_threads",
    "in_order",
    "limit_blas_threads",
    "side_by_side",
    "usable_cores",
    "worker_threads",
]

T = TypeVar("T")
R = TypeVar("R")

_Limit = tuple[int, int]  # a thread's number and how many BLAS may have
_limits: list[_Limit] = []  # of the blocks entered and not left, in any thread
_unlimited: int | None = None  # threads of BLAS before the first of them
_changing_limits = threading.RLock()  # a dropped iterator may leave its block at any point
_this_thread = threading.local()

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "")


@contextmanager
def limit_blas_threads(threads: int | None) -> Iterator[None]:
    """Within the block, let matrix products use at most ``threads``; None changes nothing.

    BLAS has one number of threads for the process: while blocks overlap, in whatever
    threads, the smallest limit holds.
    """
    if threads is None:
        yield
        return
    # A limit is in the list for as long as it holds, so that worker_threads() never takes a
    # limited number for that of BLAS.
    limit = threading.get_ident(), threads
    with _changing_limits:
        global _unlimited
        if not _limits:
            _unlimited = blas_threads()
        _limits.append(limit)
        _limit_blas(_limits)
    try:
        yield
    finally:
        with _changing_limits:
            left = list(_limits)
            left.remove(limit)
            _limit_blas(left)
            _limits.remove(limit)
            _limit_blas(_limits)  # others may have left meanwhile, in this very thread


def _limit_blas(limits: list[_Limit]) -> None:
    set_threads = _openblas("set_num_threads")
    if set_threads is not None and _unlimited is not None:
        set_threads(min([_unlimited, *(threads for _, threads in limits)]))


def _forget_other_threads() -> None:
    """Drop the limits of threads that did not survive a fork."""
    own = [limit for limit in _limits if limit[0] == threading.get_ident()]
    if own != _limits:
        _limits[:] = own
        _limit_blas(own)
    _changing_limits.release()


def blas_threads() -> int | None:
    """Return how many threads NumPy's OpenBLAS uses; None where it is not found."""
    get_threads = _openblas("get_num_threads")
    return None if get_threads is None else int(get_threads())


def usable_cores() -> int:
    """Return how many cores this process may use, where the system can tell, or all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[T], R], items: Iterable[T], *, ahead: int, workers: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` of each item, in order, computed ahead in background threads.

    Closing or dropping the iterator, or an error, ends the threads.

    Parameters
    ----------
    function : callable
    items : iterable
        Advanced in the caller's thread, ``ahead`` items beyond the one yielded.
    ahead : int, >= 0
    workers : int, >= 1
        Threads, made for this call.
    """
    with ThreadPoolExecutor(workers, "refkd-in-order") as pool:
        yield from _in_order(pool, function, items, ahead)


def side_by_side(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``function(item)`` of each item, in order, several at a time.

    Parameters
    ----------
    function : callable
        Spends its time in NumPy, which lets other threads run meanwhile.
    items : sequence
        Pieces that do not depend on each other. There are as many threads as BLAS would
        have without :func:`limit_blas_threads`, and at most one result more is waiting to
        be taken. Pieces of a piece run one after another.

    Notes
    -----
    Several pieces have one thread of BLAS each, so what comes out does not depend on how
    many run at a time. A single piece has all of BLAS's threads instead: its bits are
    those of that number of threads.
    """
    threads = worker_threads()
    if min(len(items), threads) < 2:
        yield from map(function, items)
        return
    with limit_blas_threads(1):
        yield from _in_order(_pool(threads), function, items, threads)


def worker_threads() -> int:
    """Return how many threads independent work may take, 1 in a thread that has a piece of it.

    Otherwise as many as BLAS would have without :func:`limit_blas_threads`.
    """
    return 1 if hasattr(_this_thread, "works_on_pieces") else _at_a_time()


def _at_a_time() -> int:
    return (_unlimited if _limits else blas_threads()) or usable_cores()


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that stay: to make them costs as much as many a piece of work."""
    mark = functools.partial(setattr, _this_thread, "works_on_pieces", True)
    return ThreadPoolExecutor(threads, "refkd-pieces", initializer=mark)


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, what they hold does
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(
        before=_changing_limits.acquire,
        after_in_parent=_changing_limits.release,
        after_in_child=_forget_other_threads,
    )


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Generator[R, None, None]:
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            # NumPy's error handling and the selected backend are the caller's.
            pending.append(pool.submit(contextvars.copy_context().run, function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


@functools.cache
def _openblas(function: str) -> Callable[..., Any] | None:
    extension = importlib.import_module("numpy._core._multiarray_umath")
    try:
        # Looking a symbol up in NumPy's extension finds it in the library it links to.
        library = ctypes.CDLL(str(extension.__file__))
    except OSError:
        return None
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            found = getattr(library, f"{prefix}_{function}{suffix}", None)
            if found is not None:
                return typing.cast(Callable[..., Any], found)
    return None
