"""Threads: one of BLAS for small products, and some of our own for independent pieces.

OpenBLAS splits even a product of a few hundred rows over all cores, and its idle
threads spin: on small matrices that costs more than it gains, many times more where
other programs want the cores. NumPy's wheels carry their OpenBLAS; where there is none
(another BLAS, another loader) nothing is limited.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["blas_threads", "limit_blas_threads", "side_by_side", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")

_unlimited: int | None = None  # threads of BLAS before it was limited

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "")


@contextmanager
def limit_blas_threads(threads: int | None) -> Iterator[None]:
    """Within the block, let matrix products use at most ``threads``; None changes nothing."""
    global _unlimited
    before, outermost = blas_threads(), _unlimited is None
    set_threads = _openblas("set_num_threads")
    if threads is None or before is None or set_threads is None or threads >= before:
        yield
        return
    if outermost:
        _unlimited = before
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)
        if outermost:
            _unlimited = None


def blas_threads() -> int | None:
    """Return how many threads NumPy's OpenBLAS uses; None where it is not found."""
    get_threads = _openblas("get_num_threads")
    return None if get_threads is None else int(get_threads())


def usable_cores() -> int:
    """Return how many cores this process may use, where Python can tell, or the machine has."""
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def side_by_side(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``function(item)`` of each item, in order, several at a time.

    Parameters
    ----------
    function : callable
        Spends its time in NumPy, which lets other threads run meanwhile.
    items : sequence
        Pieces that do not depend on each other. There are as many threads as BLAS would
        have without :func:`limit_blas_threads`; what comes out does not depend on it.
    """
    workers = min(len(items), _unlimited or blas_threads() or usable_cores())
    if workers < 2:
        yield from map(function, items)
        return
    with limit_blas_threads(1), ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)


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
