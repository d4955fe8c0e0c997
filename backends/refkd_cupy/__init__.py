"""Kernels for NVIDIA GPUs, in CUDA C and launched by CuPy. The reference is :mod:`refkd`."""

from __future__ import annotations

import importlib
from typing import Any

from refkd.dispatch import Backend
from refkd.errors import ConfigError
from refkd_cupy.probe import in_a_line, reason_against

__all__ = ["backend"]

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


def _unavailable(*_: Any) -> Any:
    raise RuntimeError("the backend cannot be used on this machine")


def _compile_step(objective: Any, optimizer: Any) -> Any:
    return importlib.import_module("refkd_cupy.step").compile_step(objective, optimizer)


def _backend() -> Backend:
    try:
        importlib.import_module("refkd_cupy.settings")
    except ConfigError as error:  # it says what is wrong in the environment
        reason: str | None = str(error)
    else:
        reason = reason_against()
    if reason is None:
        try:
            return _on_the_device()
        except Exception as error:  # of a CuPy that is another
            reason = f"its kernels do not load ({in_a_line(error)})"
    return Backend(
        name="cupy",
        array_type=type(None),
        asarray=_unavailable,
        to_numpy=_unavailable,
        synchronize=_unavailable,
        unavailable_reason=reason,
    )


def _on_the_device() -> Backend:
    device, settings = map(importlib.import_module, ("refkd_cupy.device", "refkd_cupy.settings"))
    device.limit_memory()
    kernels: dict[str, Any] = {}
    error_factors: dict[str, float] = {}
    for name in _MODULES:
        module = importlib.import_module(f"refkd_cupy.{name}")
        kernels.update(module.KERNELS)
        error_factors.update(getattr(module, "ERROR_FACTORS", {}))
    return Backend(
        name="cupy",
        array_type=device.ARRAY,
        asarray=device.asarray,
        to_numpy=device.to_numpy,
        synchronize=device.synchronize,
        kernels=kernels,
        compile_step=_compile_step,
        choices=settings.choices,
        error_factors=error_factors,
    )


backend = _backend()
