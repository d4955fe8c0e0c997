"""Kernels for the CPU, compiled by Numba. The reference they follow is :mod:`refkd`."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import numpy as np

from refkd.dispatch import Backend
from refkd.errors import ConfigError

__all__ = ["backend"]

_OLDEST_NUMBA = (0, 61)
_REPAIR = "pip install -U 'refkd[numba]'"
_MODULES = (
    "activation",
    "attention",
    "avg_pool",
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
    "pool",
    "regression",
    "resample",
    "softmax",
    "update",
)

_STEPS = ("mlp", "fused")


def _reason_against() -> str | None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set; unset it, or use the reference (numpy)"
    try:
        version = str(importlib.import_module("numba").__version__)
    except Exception as error:  # whatever a broken installation raises, of which there are many
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return "Numba is not installed; pip install 'refkd[numba]' brings it"
        return f"Numba does not import ({_in_a_line(error)}); {_REPAIR}"
    found = re.match(r"(\d+)\.(\d+)", version)  # a build from a checkout may have no number
    if found and tuple(map(int, found.groups())) < _OLDEST_NUMBA:
        oldest = ".".join(map(str, _OLDEST_NUMBA))
        return f"Numba {version} is too old, {oldest} is the oldest that works; {_REPAIR}"
    return None


def _reason_in_settings() -> str | None:
    try:
        importlib.import_module("refkd_numba.settings")
    except ConfigError as error:  # it says what is wrong in the environment
        return str(error)
    return None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _compile_step(objective: Any, optimizer: Any) -> Any:
    for name in _STEPS:
        module = importlib.import_module(f"refkd_numba.{name}")
        step = module.compile_step(objective, optimizer)
        if step is not None:
            return step
    return None


def _prune_cache() -> None:
    importlib.import_module("refkd_numba.compile").prune_cache()


def _choices() -> tuple[Any, ...]:
    chosen: tuple[Any, ...] = importlib.import_module("refkd_numba.settings").choices()
    return chosen


def _backend() -> Backend:
    reason = _reason_against() or _reason_in_settings()
    kernels: dict[str, Any] = {}
    error_factors: dict[str, float] = {}
    try:
        for name in _MODULES if reason is None else ():
            module = importlib.import_module(f"refkd_numba.{name}")
            kernels.update(module.KERNELS)
            error_factors.update(getattr(module, "ERROR_FACTORS", {}))
    except Exception as error:  # of a Numba that is another, or of a BLAS that is not there
        reason = f"its kernels do not load ({_in_a_line(error)}); {_REPAIR}"
    return Backend(
        name="numba",
        array_type=np.ndarray,
        asarray=np.asarray,
        to_numpy=np.asarray,
        synchronize=lambda: None,
        kernels=kernels if reason is None else {},
        compile_step=_compile_step if reason is None else None,
        error_factors=error_factors,
        prune_cache=_prune_cache if reason is None else None,
        choices=_choices if reason is None else tuple,
        blas_threads=1,  # in each thread of a team
        unavailable_reason=reason,
    )


backend = _backend()
