"""Kernels for the CPU, compiled by Numba. The reference they follow is :mod:`refkd`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import numpy as np

from refkd.dispatch import Backend

__all__ = ["backend"]

_OLDEST_NUMBA = (0, 61)
_MODULES = (
    "activation",
    "batch_norm",
    "conv",
    "cross_entropy",
    "dropout",
    "group_norm",
    "kd",
    "kl",
    "layer_norm",
    "linear",
    "pixels",
    "regression",
    "softmax",
    "update",
)

_STEPS = ("mlp", "fused")


def _reason_against() -> str | None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set; unset it, or use the reference (numpy)"
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed; pip install 'refkd[numba]' brings it"
    try:
        numba = importlib.import_module("numba")
    except Exception as error:  # whatever a broken installation raises, of which there are many
        return f"Numba does not import ({type(error).__name__}: {error})"
    version = tuple(int(part) for part in numba.__version__.split(".")[:2])
    if version < _OLDEST_NUMBA:
        oldest = ".".join(map(str, _OLDEST_NUMBA))
        return (
            f"Numba {numba.__version__} is too old, {oldest} is the oldest that works; "
            f"pip install -U 'refkd[numba]'"
        )
    return None


def _compile_step(objective: Any, optimizer: Any) -> Any:
    for name in _STEPS:
        module = importlib.import_module(f"refkd_numba.{name}")
        step = module.compile_step(objective, optimizer)
        if step is not None:
            return step
    return None


def _backend() -> Backend:
    reason = _reason_against()
    kernels, error_factors = {}, {}
    if reason is None:
        for name in _MODULES:
            module = importlib.import_module(f"refkd_numba.{name}")
            kernels.update(module.KERNELS)
            error_factors.update(getattr(module, "ERROR_FACTORS", {}))
    return Backend(
        name="numba",
        array_type=np.ndarray,
        asarray=np.asarray,
        to_numpy=np.asarray,
        synchronize=lambda: None,
        kernels=kernels,
        compile_step=_compile_step if reason is None else None,
        error_factors=error_factors,
        blas_threads=1,  # in each thread of a team
        unavailable_reason=reason,
    )


backend = _backend()
