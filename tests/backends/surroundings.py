"""What must not change the results of a backend: how many threads there are, what memory held."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

__all__ = ["surroundings"]

Surroundings = dict[str, Callable[[], AbstractContextManager[None]]]


def surroundings(backend: str) -> Surroundings:
    """Return the conditions under which a backend is tested, by name."""
    return {"as it is": nullcontext, **_OF_BACKENDS.get(backend, {})}


@contextmanager
def _numba_with_three_threads_and_poisoned_memory() -> Iterator[None]:
    """Share the smallest work among three threads, and hand out memory full of NaN."""
    buffers, team = (importlib.import_module(f"refkd_numba.{n}") for n in ("buffers", "team"))
    take = buffers._Pool.take

    def poisoned(pool, size):
        memory, offset = take(pool, size)
        memory.fill(0xFF)  # of floats NaN, of integers −1
        return memory, offset

    def always(function, *arguments, worth=True):
        team.share(function, *arguments)

    patches = [
        mock.patch.object(team, "worker_threads", lambda: 3),
        mock.patch.object(buffers, "_SMALL", 0),
        mock.patch.object(buffers._Pool, "take", poisoned),
        *(
            mock.patch.object(module, "share", always)
            for name, module in list(sys.modules.items())
            if name.startswith("refkd_numba.") and module is not team and hasattr(module, "share")
        ),
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


_OF_BACKENDS: dict[str, Surroundings] = {
    "numba": {"three threads, poisoned memory": _numba_with_three_threads_and_poisoned_memory},
}
