"""Threads that share the work of one kernel: a call forks, every thread does its part, it joins.

Kernels here release the GIL, so plain threads do: there is no second runtime (OpenMP, TBB)
beside BLAS's threads, none that spins while it waits, and none that forbids to fork.
A fork and join takes about 15 µs.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from refkd.threads import worker_threads
from refkd_numba.compile import device

__all__ = ["share", "span"]


def share(function: Callable[..., None], *arguments: Any, worth: bool = True) -> None:
    """Call ``function(*arguments, thread, threads)`` in every thread, and wait for all.

    Parameters
    ----------
    function : compiled function
        Does the part of ``thread`` (0 ... threads − 1) and nothing else. How the work is
        split may depend on ``threads`` alone: then the same number of threads gives the
        same bits.
    worth : bool
        False does all of it in this thread: for what takes less than some 50 µs.

    Notes
    -----
    Where the backend is selected BLAS has one thread, so that each of ours may call it.
    While a team is at work for another thread, the parts are done one after another.
    """
    threads = worker_threads() if worth else 1
    if threads == 1:
        function(*arguments, 0, 1)
        return
    team = _team(threads)
    if not team.busy.acquire(blocking=False):
        for thread in range(threads):
            function(*arguments, thread, threads)
        return
    try:
        team.share(function, arguments)
    finally:
        team.busy.release()


@device(inline=True)
def span(count, thread, threads):
    """Return the part of ``range(count)`` that belongs to ``thread``, as a slice.

    Loop over a view of this part from 0: an index that might be negative, and so count from
    the end, keeps LLVM from vectorising.
    """
    return slice(count * thread // threads, count * (thread + 1) // threads)


class _Team:
    """Threads beside the caller's, each waiting for what to do."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.busy = threading.Lock()
        self._tasks = [SimpleQueue[Any]() for _ in range(threads - 1)]
        self._done = SimpleQueue[BaseException | None]()
        for thread, tasks in enumerate(self._tasks, 1):
            threading.Thread(
                target=self._serve, args=(thread, tasks), name=f"refkd-numba-{thread}", daemon=True
            ).start()

    def share(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        for tasks in self._tasks:
            tasks.put((function, arguments))
        failures = []
        try:
            function(*arguments, 0, self.threads)
        except BaseException as error:
            failures.append(error)
        failures += [error for _ in self._tasks if (error := self._done.get()) is not None]
        if failures:
            raise failures[0]

    def _serve(self, thread: int, tasks: SimpleQueue[Any]) -> None:
        while True:
            function, arguments = tasks.get()
            failure = None
            try:
                function(*arguments, thread, self.threads)
            except BaseException as error:
                failure = error
            del function, arguments  # or this thread keeps the arrays until the next task
            self._done.put(failure)


@functools.lru_cache(maxsize=1)
def _team(threads: int) -> _Team:
    return _Team(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.cache_clear)  # threads do not survive a fork
