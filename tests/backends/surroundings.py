"""What must not change the results of a backend: how many threads there are, what memory held."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

__all__ = ["STRICT", "surroundings"]

STRICT = "strict"
"""Surroundings without the algorithms for which a backend states error factors of its own."""

Surroundings = dict[str, Callable[[], AbstractContextManager[Any]]]


def surroundings(backend: str) -> Surroundings:
    """Return the conditions under which a backend is tested, by name."""
    return {"as it is": nullcontext, **_OF_BACKENDS.get(backend, {})}


@contextmanager
def _numba_with_three_threads_and_poisoned_memory() -> Iterator[None]:
    """Share the smallest work among three threads, and hand out memory full of NaN."""
    changes = _changes()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        _set(changes)
        yield
    finally:
        _set(before)


Change = tuple[Any, str, Any]  # of whose attribute, and to what


def _set(changes: list[Change]) -> None:
    for owner, name, value in changes:
        setattr(owner, name, value)


@functools.cache
def _changes() -> list[Change]:
    package = importlib.import_module("refkd_numba")
    found = pkgutil.walk_packages(package.__path__, "refkd_numba.")
    modules = [package, *(importlib.import_module(module.name) for module in found)]
    buffers = importlib.import_module("refkd_numba.buffers")
    lend = buffers._Pool.lend

    def lend_poisoned(*arguments: Any) -> Any:
        array = lend(*arguments)
        array.base.fill(0xFF)  # of floats NaN, of integers −1
        return array

    changes: list[Change] = [(buffers, "_SMALL", 0), (buffers._Pool, "lend", lend_poisoned)]
    for module in modules:
        changes += [(module, name, -1) for name in vars(module) if name.startswith("_WORTH")]
        if hasattr(module, "worker_threads"):
            changes.append((module, "worker_threads", lambda: 3))
    return changes


def _numba_without_winograd() -> AbstractContextManager[Any]:
    settings = importlib.import_module("refkd_numba.settings")
    return mock.patch.object(settings, "winograd", False)


_OF_BACKENDS: dict[str, Surroundings] = {
    "numba": {
        "three threads, poisoned memory": _numba_with_three_threads_and_poisoned_memory,
        STRICT: _numba_without_winograd,
    },
}
