"""Threads that share the work of one kernel: a call forks, every thread does its part, it joins.

Kernels here release the GIL, so plain threads do: there is no second runtime (OpenMP, TBB)
beside BLAS's threads, none that spins while it waits, and none that forbids to fork.
A fork and join takes about 15 µs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from refkd.threads import worker_threads
from refkd_numba.compile import device

__all__ = ["share", "span"]


def share(
    function: Callable[..., None],
    *arguments: Any,
    worth: bool = True,
    threads: int | None = None,
) -> None:
    """Call ``function(*arguments, thread, threads)`` in every thread, and wait for all.

    Parameters
    ----------
    function : compiled function
        Does the part of ``thread`` (0 ... threads − 1) and nothing else. How the work is
        split may depend on ``threads`` alone: then the same number of threads gives the
        same bits.
    worth : bool
        False does all of it in this thread: for what takes less than some 50 µs.
    threads : int or None
        For how many there is scratch memory: what :func:`refkd.threads.worker_threads`
        says may be another number by now.

    Notes
    -----
    Where the backend is selected BLAS has one thread, so that each of ours may call it.
    While the team is at work for another thread, or no thread can be had (Python ends, or
    the system allows no more), the parts are done one after another. Whatever interrupts
    the wait, as a signal's handler does, is raised after it: no thread writes any more then.
    """
    count = (worker_threads() if threads is None else threads) if worth else 1
    if count == 1:
        function(*arguments, 0, 1)
        return
    team = _team
    if not sys.is_finalizing() and team.busy.acquire(blocking=False):
        try:
            if team.has(count - 1):
                team.share(function, arguments, count)
                return
        finally:
            team.busy.release()
    for thread in range(count):
        function(*arguments, thread, count)


@device(inline=True)
def span(count, thread, threads):
    """Return the part of ``range(count)`` that belongs to ``thread``, as a slice.

    Loop over a view of this part from 0: an index that might be negative, and so count from
    the end, keeps LLVM from vectorising.
    """
    return slice(count * thread // threads, count * (thread + 1) // threads)


class _Call:
    """What became of the parts that are not the caller's, and a word when all are done."""

    __slots__ = ("ended", "failures", "threads")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.failures: dict[int, BaseException | None] = {}  # of the parts that are done
        self.ended: SimpleQueue[None] = SimpleQueue()

    def wait(self) -> None:
        while len(self.failures) < self.threads - 1:
            self.ended.get()


_Task = tuple[_Call, Callable[..., None], tuple[Any, ...], int]


class _Team:
    """Threads beside the caller's, each waiting for what to do; as many as were ever needed."""

    def __init__(self) -> None:
        self.busy = threading.RLock()  # a signal's handler may call a kernel
        self._members: list[SimpleQueue[_Task]] = []

    def has(self, count: int) -> bool:
        """Return whether there are so many threads, started now if need be."""
        try:
            while len(self._members) < count:
                self._members.append(_new_member())
        except RuntimeError:  # the system allows no more
            return False
        return True

    def share(
        self, function: Callable[..., None], arguments: tuple[Any, ...], threads: int
    ) -> None:
        members = self._members[: threads - 1]
        call = _Call(threads)
        try:
            _hand_out(members, call, function, arguments)
            function(*arguments, 0, threads)
            call.wait()
        except BaseException:
            # When this is raised nobody may write any more: wait, whatever comes on top of it.
            # Which parts were handed out is not known; to do it again is no harm.
            at_work = True
            while at_work:
                try:
                    _hand_out(members, call, function, arguments)
                    call.wait()
                    at_work = False
                except BaseException:
                    pass  # no suppress(): its exit could be interrupted in turn
            raise
        for failure in call.failures.values():
            if failure is not None:
                raise failure


def _hand_out(
    members: list[SimpleQueue[_Task]],
    call: _Call,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    for thread, tasks in enumerate(members, 1):
        tasks.put((call, function, arguments, thread))


def _new_member() -> SimpleQueue[_Task]:
    """Start a thread; return where it looks for what to do."""
    tasks: SimpleQueue[_Task] = SimpleQueue()
    threading.Thread(target=_serve, args=(tasks,), name="refkd-numba", daemon=True).start()
    return tasks


def _serve(tasks: SimpleQueue[_Task]) -> None:
    while True:
        call, function, arguments, thread = tasks.get()
        failure = None
        try:
            if thread not in call.failures:  # else it was handed out twice
                function(*arguments, thread, call.threads)
        except BaseException as error:
            failure = error
        del function, arguments  # or this thread keeps the arrays until the next task
        call.failures.setdefault(thread, failure)
        if len(call.failures) == call.threads - 1:
            call.ended.put(None)
        del call, failure


_team = _Team()


def _renew_team() -> None:
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_team)  # threads do not survive a fork
