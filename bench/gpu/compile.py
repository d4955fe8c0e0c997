"""Section ``compile``: every source by NVRTC, many at a time, into CuPy's cache on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["rows"]

_THREADS = 12


def rows() -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Return a row for each source, all of which are begun now."""
    from refkd_cupy import device, source

    folder = Path(source.__file__).parent
    pool = ThreadPoolExecutor(_THREADS)
    begun = {
        stem: pool.submit(_compile, device, stem)
        for stem in sorted(path.stem for path in folder.glob("*.cu"))
    }
    return {stem: partial(_result, future) for stem, future in begun.items()}


def _compile(device: Any, stem: str) -> float:
    begin = time.perf_counter()
    device.compile_source(stem)
    return time.perf_counter() - begin


def _result(future: Future[float]) -> Iterator[dict[str, Any]]:
    yield {"seconds": round(future.result(), 2)}
