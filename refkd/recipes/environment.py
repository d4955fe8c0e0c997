"""The versions and the machine that a run's figures belong to."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

import refkd
from refkd.dispatch import current_backend
from refkd.threads import blas_threads, worker_threads

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Return the versions and the machine that figures belong to."""
    backend = current_backend()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "refkd": refkd.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "backend": backend.name,
        # A backend that leaves BLAS one thread has as many of its own.
        "threads": blas_threads() if backend.blas_threads is None else worker_threads(),
    }
