"""Two implementations of one workload against each other: verified, interleaved, as a ratio.

On a shared machine a time says little and the ratio of two runs a moment apart says a
lot. So the sides take turns, the ratio is the median over pairs of neighbouring turns,
and nothing is timed before both sides have been shown to compute the same. Which
workloads there are, and what they compute, is the business of :mod:`bench.workloads`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Measurement",
    "Side",
    "VerificationError",
    "Worker",
    "WorkerError",
    "check_agreement",
    "differences",
    "largest_entry",
    "measure",
    "take_turns",
]

# An idle BLAS or OpenMP pool spins for some 30 ms before it sleeps.
_SETTLE_SECONDS = 0.05
_FIRST_STEPS, _WARM_UP_STEPS, _WARM_UP_SECONDS = 3, 20, 0.25
_LEAST_STEPS = 3  # whose median one stall does not move
_MOST_STEPS = 300  # where others need the cores, a step of 1 ms may take 50
_ANSWER_SECONDS, _EXIT_SECONDS = 600.0, 10.0
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class VerificationError(Exception):
    """The two sides do not compute the same; nothing was timed."""


class WorkerError(Exception):
    """A worker process failed, was too slow or ended."""


class Side(Protocol):
    """One implementation of one workload."""

    def run(self, steps: int) -> list[float]:
        """Take ``steps`` steps from the initial parameters; return the seconds of each."""
        ...


@dataclass(frozen=True)
class Measurement:
    """Times of one side, or of both sides of a comparison.

    Attributes
    ----------
    refkd_ms : float
        Milliseconds per step: the median over rounds of the median within a round.
    peer_ms : float or None
        The same for the peer; None where there is none.
    ratio : float or None
        Peer over refkd, the median over the pairs of neighbouring rounds: above 1,
        refkd is faster.
    ratio_quartiles : tuple of two floats, or None
        First and third quartile of the same pairs.
    """

    refkd_ms: float
    peer_ms: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None


def largest_entry(array: NDArray[Any]) -> float:
    """Return the largest magnitude in an array."""
    return float(np.abs(array).max())


def check_agreement(
    refkd: Mapping[str, NDArray[Any]],
    peer: Mapping[str, NDArray[Any]],
    *,
    tolerance: float,
    size: Callable[[NDArray[Any]], float] = largest_entry,
) -> None:
    """Require equal names, shapes and, within ``tolerance``, values.

    Parameters
    ----------
    refkd, peer : mapping of str to array
    tolerance : float
        Bound on the :func:`differences`.
    size : callable
        See there.

    Raises
    ------
    VerificationError
        Names every array that differs, with its error.
    """
    problems = [f"only one side has {name!r}" for name in sorted(set(refkd) ^ set(peer))]
    for name in sorted(set(refkd) & set(peer)):
        if refkd[name].shape != peer[name].shape:
            problems.append(f"{name!r} has shape {refkd[name].shape} against {peer[name].shape}")
    for name, error in differences(refkd, peer, size=size).items():
        if not error <= tolerance:  # NaN is no agreement
            problems.append(f"{name!r} differs by {error:.2e} of its layer's size")
    if problems:
        raise VerificationError(f"{'; '.join(problems)} (tolerance {tolerance:.0e})")


def differences(
    refkd: Mapping[str, NDArray[Any]],
    peer: Mapping[str, NDArray[Any]],
    *,
    size: Callable[[NDArray[Any]], float] = largest_entry,
) -> dict[str, float]:
    """Return |a − b| / |b| of the arrays that both sides have, of one shape.

    What is counted, and so no float, is the same (0) or not (infinity).

    Parameters
    ----------
    refkd, peer : mapping of str to array
    size : callable
        |·|. That of b is taken over all arrays of a layer, the largest: those whose names differ
        only after the last dot.

    Notes
    -----
    The gradient of a bias before batch norm is zero, and what either side computes is
    rounding of terms as large as those of the weight's gradient: it has no scale of its
    own.
    """
    scales: dict[str, float] = {}
    for name, value in peer.items():
        if np.issubdtype(value.dtype, np.floating):
            layer = _layer_of(name)
            scales[layer] = max(scales.get(layer, 0.0), size(np.float64(value)))
    found = {}
    for name in sorted(set(refkd) & set(peer)):
        a, b = refkd[name], peer[name]
        if a.shape != b.shape:
            continue
        if np.issubdtype(b.dtype, np.floating):
            scale = max(scales[_layer_of(name)], np.finfo(np.float32).tiny)
            found[name] = size(np.float64(a) - np.float64(b)) / scale
        else:
            found[name] = 0.0 if np.array_equal(a, b) else math.inf
    return found


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def take_turns(sides: Sequence[Side], *, rounds: int, turn_seconds: float) -> list[list[float]]:
    """Warm up, then let the sides run one after the other, ``rounds`` times.

    Parameters
    ----------
    sides : sequence of Side
    rounds : int, >= 1
    turn_seconds : float
        How long a turn should take; each side gets its own number of steps.

    Returns
    -------
    list of lists of float
        For each side, the median seconds per step of each of its turns.
    """
    steps = [_steps_in(turn_seconds, _warm_up(side)) for side in sides]
    turns: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, count, times in zip(sides, steps, turns, strict=True):
            time.sleep(_SETTLE_SECONDS)
            times.append(statistics.median(side.run(count)))
    return turns


def measure(refkd: Side, peer: Side | None, *, rounds: int, turn_seconds: float) -> Measurement:
    """Compare two sides, or time one; see :func:`take_turns`."""
    if peer is None:
        (own,) = take_turns([refkd], rounds=rounds, turn_seconds=turn_seconds)
        return Measurement(1e3 * statistics.median(own))
    own, other = take_turns([refkd, peer], rounds=rounds, turn_seconds=turn_seconds)
    pairs = [b / a for a, b in zip(own, other, strict=True)]
    low, ratio, high = (float(q) for q in np.quantile(pairs, [0.25, 0.5, 0.75]))
    return Measurement(
        1e3 * statistics.median(own), 1e3 * statistics.median(other), ratio, (low, high)
    )


def _warm_up(side: Side) -> list[float]:
    times = side.run(_FIRST_STEPS)
    return times if sum(times) > _WARM_UP_SECONDS else side.run(_WARM_UP_STEPS)


def _steps_in(seconds: float, times: list[float]) -> int:
    return min(max(round(seconds / statistics.median(times)), _LEAST_STEPS), _MOST_STEPS)


class Worker:
    """One side in a process of its own, which lives until :meth:`close`.

    Parameters
    ----------
    module, workload, mode : str
        ``module.open_side(workload, mode, threads)`` is called in the process.
    threads : int
        For every BLAS and OpenMP pool of the process, and so for the backends that take
        their number of threads from BLAS.
    variables : mapping of str to str
        Further environment variables.

    Attributes
    ----------
    backend_seconds : float
        How long the process took to select refkd's backend; 0 where it selects none.
    """

    def __init__(
        self,
        module: str,
        workload: str,
        mode: str,
        *,
        threads: int,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"{module} {workload} {mode}"
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
        environment |= variables or {}
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as this
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", module, workload, mode, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._commands = cast(IO[str], self._process.stdin)
        self._answers = cast(IO[str], self._process.stdout)
        try:
            self.backend_seconds = float(self._read(_ANSWER_SECONDS)["backend_seconds"])
        except WorkerError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, steps: int, *, timeout: float = _ANSWER_SECONDS) -> list[float]:
        """Take steps; see :class:`Side`.

        Raises
        ------
        WorkerError
            If the process fails, or takes more than ``timeout`` seconds and is ended.
        """
        seconds: list[float] = self._ask(f"run {steps}", timeout)["seconds"]
        return seconds

    def verify(self, dtype: str) -> dict[str, NDArray[Any]]:
        """Return what both sides must agree on, computed in ``dtype``, nothing dropped."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.npz"
            self._ask(f"verify {dtype} {path}")
            with np.load(path) as arrays:
                return dict(arrays)

    def peak_rss_mb(self) -> float:
        """Return the peak resident memory of the process so far, in MiB."""
        return float(self._ask("memory")["peak_rss_mb"])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # of a command it did not live to read
            self._commands.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._errors.close()

    def _ask(self, command: str, timeout: float = _ANSWER_SECONDS) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # reading says how the process ended
            self._commands.write(command + "\n")
            self._commands.flush()
        return self._read(timeout)

    def _read(self, timeout: float) -> dict[str, Any]:
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        line = self._answers.readline()
        late = timer.finished.is_set()
        timer.cancel()
        if late:
            raise WorkerError(f"{self.name}: no answer within {timeout:g} s")
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last_words = self._errors.read()[-2000:].strip()
            raise WorkerError(f"{self.name}: ended with status {status}: {last_words}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer
