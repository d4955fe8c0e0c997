"""Fresh interpreters, in which the backend for Numba is there or is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import refkd

__all__ = ["BACKENDS", "run"]

ROOT = Path(refkd.__file__).parents[1]
BACKENDS = ROOT / "backends"


def run(
    program: str, *arguments: object, path: tuple[Path, ...] = (BACKENDS,), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed, with ``path`` and refkd's own folder to import from.

    Warnings are errors in it. ``environment`` is added to this process's.
    """
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished
