"""y = x Wᵀ + b in one launch, by cuBLASLt, which adds the bias while it writes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import BackendUnavailable
from refkd_cupy import blas, device, settings
from refkd_cupy.alignment import BYTES

__all__ = ["affine"]

# Of cublasLt.h and cublas_api.h
_FLOAT32 = 0
_COMPUTE_FLOAT32, _COMPUTE_TF32 = 68, 77
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER = 3, 7, 8  # attributes of a product
_TRANSPOSED, _WITH_BIAS = 1, 4
_MOST_WORKSPACE, _REDUCTIONS, _ALIGNMENTS = 1, 3, (5, 6, 7, 8)  # attributes of a preference
_IN_ONE_ORDER = 2 | 4  # reductions but the one in place, whose order is chance

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and what it needs."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", _SIZE),
        ("state", _INT),
        ("waves", ctypes.c_float),
        ("reserved", _INT * 4),
    )


class _Plan(NamedTuple):
    """How products of certain shapes are made; matrices lie by columns."""

    product: Any
    weight: Any
    x: Any
    y: Any
    algorithm: Any


def affine(x: Array, weight: Array, bias: Array, out: Array) -> bool:
    """Write x Wᵀ + b into ``out``; return False, with nothing done, where cuBLASLt does not serve.

    Parameters
    ----------
    x, weight, bias, out : array, float32
        (rows, in), (out, in), (out,) and (rows, out), in C order and at vectors of 16 bytes, on
        the current device.

    Raises
    ------
    RuntimeError
        If cuBLASLt refuses; the message has its name of the reason.
    """
    if not settings.cublas_lt or isinstance(out, np.ndarray) or _library() is None:
        return False
    addresses = [device.pointer(array) for array in (weight, x, out, bias)]
    stream = device.stream()
    with blas.lock:
        workspace = device.pointer(blas.handle(out).workspaces[stream])
        shape = (*x.shape, weight.shape[0])
        plan = _plan(out.device.id, *shape, bool(settings.tf32))
        if plan is None:
            return False
        _set(plan.product, _BIAS_POINTER, _POINTER(addresses[3]))
        status = _library().cublasLtMatmul(
            _handle(out.device.id), plan.product, ctypes.byref(_ONE), addresses[0], plan.weight,
            addresses[1], plan.x, ctypes.byref(_ZERO), addresses[2], plan.y, addresses[2], plan.y,
            ctypes.byref(plan.algorithm), workspace, blas.WORKSPACE, stream,
        )  # fmt: skip
        blas.check("cublasLtMatmul", status)
    return True


@functools.lru_cache(maxsize=1024)
def _plan(number: int, rows: int, inputs: int, outputs: int, tf32: bool) -> _Plan | None:
    """Return the fastest way that cuBLASLt knows, or None: yᵀ = W xᵀ + b as it sees them."""
    compute = _COMPUTE_TF32 if tf32 else _COMPUTE_FLOAT32
    product = _made("cublasLtMatmulDescCreate", compute, _FLOAT32)
    _set(product, _TRANSPOSE_A, ctypes.c_int32(_TRANSPOSED))
    _set(product, _EPILOGUE, ctypes.c_uint32(_WITH_BIAS))
    _set(product, _BIAS_POINTER, _POINTER(BYTES))  # only its alignment is looked at
    layouts = [
        _made("cublasLtMatrixLayoutCreate", _FLOAT32, height, width, height)
        for height, width in ((inputs, outputs), (inputs, rows), (outputs, rows))
    ]
    preference = _made("cublasLtMatmulPreferenceCreate")
    wanted: dict[int, Any] = {
        _MOST_WORKSPACE: ctypes.c_uint64(blas.WORKSPACE),
        _REDUCTIONS: ctypes.c_uint32(_IN_ONE_ORDER),
    }
    wanted |= {attribute: ctypes.c_uint32(BYTES) for attribute in _ALIGNMENTS}
    for attribute, value in wanted.items():
        status = _library().cublasLtMatmulPreferenceSetAttribute(
            preference, attribute, ctypes.byref(value), ctypes.sizeof(value)
        )
        blas.check("cublasLtMatmulPreferenceSetAttribute", status)
    result, count = _Found(), _INT(0)
    status = _library().cublasLtMatmulAlgoGetHeuristic(
        _handle(number), product, *layouts, layouts[2], preference, 1, ctypes.byref(result),
        ctypes.byref(count),
    )  # fmt: skip
    _library().cublasLtMatmulPreferenceDestroy(preference)
    if status or not count.value or result.state:
        return None
    return _Plan(product, *layouts, result)


def _set(product: Any, attribute: int, value: Any) -> None:
    status = _library().cublasLtMatmulDescSetAttribute(
        product, attribute, ctypes.byref(value), ctypes.sizeof(value)
    )
    blas.check("cublasLtMatmulDescSetAttribute", status)


def _made(name: str, *arguments: Any) -> Any:
    made = _POINTER()
    blas.check(name, getattr(_library(), name)(ctypes.byref(made), *arguments))
    return made


@functools.cache
def _handle(number: int) -> Any:
    return _made("cublasLtCreate")


@functools.cache
def _library() -> Any:
    """Return cuBLASLt with its functions declared, or None where there is none."""
    try:
        library: Any = blas.found("cublasLt")
    except BackendUnavailable:
        return None
    address = ctypes.POINTER(_POINTER)
    matrix = [_POINTER, _POINTER]  # an address and a layout
    declared = {
        "cublasLtCreate": [address],
        "cublasLtMatmulDescCreate": [address, _INT, _INT],
        "cublasLtMatmulDescSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
        "cublasLtMatrixLayoutCreate": [
            address, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64
        ],
        "cublasLtMatmulPreferenceCreate": [address],
        "cublasLtMatmulPreferenceSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
        "cublasLtMatmulPreferenceDestroy": [_POINTER],
        "cublasLtMatmulAlgoGetHeuristic": [*[_POINTER] * 7, _INT, _POINTER, _POINTER],
        "cublasLtMatmul": [
            _POINTER, _POINTER, _POINTER, *matrix, *matrix, _POINTER, *matrix, *matrix, _POINTER,
            _POINTER, _SIZE, _POINTER,
        ],
    }  # fmt: skip
    for name, arguments in declared.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT
    return library
