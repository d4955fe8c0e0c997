"""Section ``ceilings``: the device, and its bandwidth and matrix rates, measured."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cupy
import numpy as np
import torch

from bench.gpu.timing import Side, median_times, one_stream, precision

__all__ = ["rows"]

_COPIED_BYTES = 1 << 30
_ORDER = 8192
_TRIES = 3  # the quickest of which is the ceiling: clocks rise and fall


def rows() -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Return the rows by name."""
    return {
        "device": _device,
        "copy": _copy,
        "sgemm": partial(_matrix_rate, False),
        "sgemm tf32": partial(_matrix_rate, True),
    }


def _device() -> Iterator[dict[str, Any]]:
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    driver = cupy.cuda.runtime.driverGetVersion()
    yield {
        "name": properties["name"].decode(),
        "multiprocessors": properties["multiProcessorCount"],
        "l2_mib": properties["l2CacheSize"] >> 20,
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": cupy.__version__,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }


def _copy() -> Iterator[dict[str, Any]]:
    with one_stream():
        source, target = (cupy.zeros(_COPIED_BYTES, np.uint8) for _ in range(2))
        call = partial(target.data.copy_from_device_async, source.data, _COPIED_BYTES)
        seconds = min(
            median_times({"copy": Side([call], False)})["copy"].captured for _ in range(_TRIES)
        )
    yield {"gbs": 2 * _COPIED_BYTES / 1e9 / seconds}


def _matrix_rate(tf32: bool) -> Iterator[dict[str, Any]]:
    precision(tf32)
    with one_stream():
        a, b = (torch.randn(_ORDER, _ORDER, device="cuda") for _ in range(2))
        out = torch.empty_like(a)
        call = partial(torch.mm, a, b, out=out)
        seconds = min(median_times({"mm": Side([call], True)})["mm"].call for _ in range(_TRIES))
    yield {"tflops": 2 * _ORDER**3 / 1e12 / seconds}
