"""One BLAS thread for small networks.

OpenBLAS splits even a product of a few hundred rows over all cores, and its idle
threads spin: on small matrices that costs more than it gains, many times more where
other programs want the cores. NumPy's wheels carry their OpenBLAS; where there is none
(another BLAS, another loader) nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["blas_threads", "limit_blas_threads"]

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "")


@contextmanager
def limit_blas_threads(threads: int | None) -> Iterator[None]:
    """Within the block, let matrix products use at most ``threads``; None changes nothing."""
    before = blas_threads()
    set_threads = _openblas("set_num_threads")
    if threads is None or before is None or set_threads is None or threads >= before:
        yield
        return
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


def blas_threads() -> int | None:
    """Return how many threads NumPy's OpenBLAS uses; None where it is not found."""
    get_threads = _openblas("get_num_threads")
    return None if get_threads is None else int(get_threads())


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
