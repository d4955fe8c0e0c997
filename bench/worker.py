"""The far end of :class:`bench.harness.Worker`: one side of one workload, in its own process.

``python -m bench.worker MODULE WORKLOAD MODE THREADS`` opens ``MODULE.open_side`` and
obeys one command per line of stdin, each answered by one line of JSON on stdout:
``run K``, ``verify DTYPE FILE``, ``memory``. One more line, before these, says that it is
open. What the libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

__all__ = ["main", "peak_rss_mb"]


def main(module: str, workload: str, mode: str, threads: str) -> None:
    """Serve commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        side = importlib.import_module(module).open_side(workload, mode, int(threads))
    except Exception as error:
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _answer(answers, {"backend_seconds": getattr(side, "backend_seconds", 0.0)})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        try:
            _answer(answers, _obey(side, command, argument))
        except Exception as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})


def _obey(side: Any, command: str, argument: str) -> dict[str, Any]:
    if command == "run":
        return {"seconds": side.run(int(argument))}
    if command == "verify":
        dtype, _, path = argument.partition(" ")
        np.savez(path, **side.verify(dtype))
        return {}
    if command == "memory":
        return {"peak_rss_mb": peak_rss_mb()}
    raise ValueError(f"unknown command {command!r}")


def peak_rss_mb() -> float:
    """Return this process's peak resident memory in MiB.

    Notes
    -----
    Linux: ``VmHWM``. ``getrusage`` would do elsewhere, but on Linux it also covers what
    the process was before exec: a copy of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
