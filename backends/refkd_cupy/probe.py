"""Whether CuPy works on this machine, and if not, what to do about it, in a sentence."""

from __future__ import annotations

import importlib
import re
from typing import Any

__all__ = ["in_a_line", "reason_against"]

_OLDEST_CUPY = (14, 0)
_INSTALL = "pip install 'refkd[cuda13]' (or 'refkd[cuda12]', as the driver is)"
_REFERENCE = "or use a backend for the CPU (numba, numpy)"
_OUT_OF_MEMORY, _INSUFFICIENT_DRIVER, _BUSY, _NO_DEVICE = 2, 35, 46, 100  # cudaError_t
_TRIVIAL = 'extern "C" __global__ void refkd_probe(float* x) { x[threadIdx.x] += 1.0f; }'


def reason_against() -> str | None:
    """Return why the backend cannot be used, in one line that a person can act on, or None."""
    try:
        cupy = importlib.import_module("cupy")
        version = str(cupy.__version__)
    except Exception as error:  # whatever a broken installation raises, of which there are many
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return f"CuPy is not installed; {_INSTALL} brings it, {_REFERENCE}"
        return f"CuPy does not import ({in_a_line(error)}); {_INSTALL} repairs it"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < _OLDEST_CUPY:
        oldest = ".".join(map(str, _OLDEST_CUPY))
        return f"CuPy {version} is too old, {oldest} is the oldest that works; {_INSTALL}"
    return _without_a_device(cupy) or _without_work(cupy)


def in_a_line(error: Exception) -> str:
    """Return an error's kind and message as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _without_a_device(cupy: Any) -> str | None:
    runtime = cupy.cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
    except Exception as error:
        status = getattr(error, "status", None)
        if status == _NO_DEVICE:
            count = 0
        elif status == _INSUFFICIENT_DRIVER:
            return _of_the_driver(runtime)
        else:
            return f"CUDA does not start ({in_a_line(error)}); try nvidia-smi, {_REFERENCE}"
    if count == 0:
        return (
            f"there is no NVIDIA GPU that programs may see; check nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES, {_REFERENCE}"
        )
    return None


def _of_the_driver(runtime: Any) -> str:
    try:
        driver = int(runtime.driverGetVersion())
    except Exception:  # without a driver there may be no answer at all
        driver = 0
    if driver == 0:
        return f"there is no NVIDIA driver; install one for a machine with a GPU, {_REFERENCE}"
    needed = _in_words(int(runtime.runtimeGetVersion()))
    return (
        f"the NVIDIA driver serves CUDA {_in_words(driver)} and this CuPy needs {needed}; update "
        f"the driver, or pip install 'refkd[cuda12]' if it serves CUDA 12"
    )


def _in_words(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _without_work(cupy: Any) -> str | None:
    """Try memory, a kernel and a matrix product."""
    try:
        x = cupy.empty(32, "float32")
        x[...] = 1
        x = x + x
        cupy.RawKernel(_TRIVIAL, "refkd_probe", options=("-std=c++17",))((1,), (32,), (x,))
        if float(x.sum()) != 96:
            return f"the GPU computes wrong results; try nvidia-smi, {_REFERENCE}"
    except Exception as error:
        return _of_a_library(error)
    try:
        blas = importlib.import_module("refkd_cupy.blas")
        out = cupy.empty((4, 4), "float32")
        a, b = x.reshape(4, 8), x.reshape(8, 4)
        blas.gemm(a, b, out, transpose_a=False, transpose_b=False, beta=0.0)
        cupy.cuda.get_current_stream().synchronize()
    except Exception as error:
        return _of_a_library(error)
    return None


def _of_a_library(error: Exception) -> str:
    words = in_a_line(error)
    status = getattr(error, "status", None)
    if status == _OUT_OF_MEMORY or "OutOfMemory" in type(error).__name__:
        return (
            f"the GPU's memory is taken ({words}); end the programs that hold it (nvidia-smi "
            f"lists them), or choose another with CUDA_VISIBLE_DEVICES"
        )
    if status == _BUSY:
        return f"the GPU is held by another program ({words}); nvidia-smi lists them"
    for name, library in (("nvrtc", "NVRTC"), ("cublas", "cuBLAS")):
        if name in words.lower():
            return f"{library} does not work ({words}); {_INSTALL} brings it"
    return f"the GPU does not work ({words}); try nvidia-smi, {_REFERENCE}"
