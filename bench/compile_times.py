"""What compiling adds to the first training step: with nothing in the cache, and from it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

from bench.harness import Worker

__all__ = ["CACHE_VARIABLES", "compile_times"]

# The backends that compile, and the environment variable that names the folder of what they
# keep of it.
CACHE_VARIABLES = {"numba": "NUMBA_CACHE_DIR"}
_LATER_RUNS = 3


def compile_times(
    backend: str, open_worker: Callable[[Mapping[str, str]], Worker]
) -> dict[str, float]:
    """Return ``import_s``, ``compile_cold_s`` and ``compile_warm_s``.

    Parameters
    ----------
    backend : str
        One of ``CACHE_VARIABLES``.
    open_worker : callable
        Of additional environment variables: a new process for each call.

    Returns
    -------
    dict
        ``import_s``: seconds to select the backend, which imports its compiler; in a
        process that has NumPy and refkd. ``compile_cold_s``, ``compile_warm_s``: seconds
        that the first short training of a process takes more than the median of those
        after it, the cache folder being empty or filled. Importing is not in them.
    """
    variable = CACHE_VARIABLES[backend]
    with tempfile.TemporaryDirectory() as folder:
        with open_worker({variable: folder}) as worker:
            cold = _first_run_extra(worker)
        with open_worker({variable: folder}) as worker:
            return {
                "import_s": worker.backend_seconds,
                "compile_cold_s": cold,
                "compile_warm_s": _first_run_extra(worker),
            }


def _first_run_extra(worker: Worker) -> float:
    first, *later = (_seconds_of_a_run(worker) for _ in range(1 + _LATER_RUNS))
    return first - statistics.median(later)


def _seconds_of_a_run(worker: Worker) -> float:
    begin = time.perf_counter()
    worker.run(1)
    return time.perf_counter() - begin
