"""Matrix products by cuBLAS, through a handle of our own.

CuPy refuses its cuBLAS calls while a stream is captured. cuBLAS itself does not, as long as it
need not ask for memory: it gets its workspace from here, one for each stream, so that
products on two streams do not meet in it. That of a stream which was captured goes to the graph.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.errors import BackendUnavailable, ConfigError
from refkd_cupy import device, settings

__all__ = ["WORKSPACE", "check", "found", "gemm", "handle", "lock", "take_workspace"]

_NAMES = ("lib{}.so.13", "lib{}.so.12", "{}64_13.dll", "{}64_12.dll")
WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for Hopper, and more than elsewhere
_DEFAULT_MATH, _TF32_MATH = 0, 3  # cublasMath_t; the default has all the bits of float32
_PLAIN, _TRANSPOSED = 0, 1  # cublasOperation_t
_LARGEST = 2**31 - 1

_SIZE, _LONG, _POINTER = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
lock = threading.Lock()  # between the choice of a stream and the call that is to go there


def gemm(
    a: Array,
    b: Array,
    out: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    beta: float = 0.0,
) -> None:
    """Write op(a) op(b) + beta · out into ``out``.

    Parameters
    ----------
    a, b, out : array, float32 or float64, 2-D, or 3-D for a batch of products
        In C order, on the current device; shapes that fit are the caller's business.
    transpose_a, transpose_b : bool
        Whether op swaps the last two axes.
    beta : float

    Raises
    ------
    ConfigError
        If an axis is longer than cuBLAS counts.
    BackendUnavailable
        If there is no cuBLAS.
    RuntimeError
        If cuBLAS refuses; the message has its name of the reason.
    """
    rows, columns = out.shape[-2:]
    inner = a.shape[-2] if transpose_a else a.shape[-1]
    if max(*a.shape, *b.shape, *out.shape) > _LARGEST:
        raise ConfigError(f"gemm: an axis of {a.shape}, {b.shape} or {out.shape} is too long")
    if not out.size:
        return
    letter, number = ("S", ctypes.c_float) if out.dtype == np.float32 else ("D", ctypes.c_double)
    scales = number(1.0), number(beta)
    # Columns are contiguous to cuBLAS, so it sees every matrix transposed: outᵀ = op(b)ᵀ op(a)ᵀ.
    matrices = [(b, transpose_b), (a, transpose_a)]
    arguments: list[Any] = [_TRANSPOSED if flag else _PLAIN for _, flag in matrices]
    arguments += [columns, rows, inner, ctypes.byref(scales[0])]
    batched = out.ndim == 3
    for matrix in (b, a, out):
        if matrix is out:
            arguments.append(ctypes.byref(scales[1]))
        arguments += [device.pointer(matrix), max(1, matrix.shape[-1])]
        if batched:
            arguments.append(matrix.shape[-2] * matrix.shape[-1])
    name = f"cublas{letter}gemmStridedBatched" if batched else f"cublas{letter}gemm_v2"
    if batched:
        arguments.append(out.shape[0])
    with lock:
        current = handle(out)
        check(name, getattr(_library(), name)(current.value, *arguments))


def take_workspace(stream: int) -> Array | None:
    """Return the workspace of a stream of the current device, and forget it; None without one.

    Another stream may get the same handle once this one is gone.
    """
    with lock:
        current = _handles.get(device.number())
        return None if current is None else current.forget(stream)


def handle(x: Array) -> _Handle:
    """Return the handle of x's device, made ready for calls on the current stream.

    Until the calls are made the lock must be held.
    """
    number = x.device.id
    if number not in _handles:
        _handles[number] = _Handle()
    _handles[number].follow(device.stream())
    return _handles[number]


class _Handle:
    """The handle of a device, on the stream and with the precision that are asked for."""

    def __init__(self) -> None:
        self.value = ctypes.c_void_p()
        check("cublasCreate_v2", _library().cublasCreate_v2(ctypes.byref(self.value)))
        self.workspaces: dict[int, Array] = {}
        self.stream: int | None = None
        self.tf32: bool | None = None

    def follow(self, stream: int) -> None:
        """Let the next calls go to ``stream``, and multiply as the settings say."""
        library = _library()
        if stream != self.stream:
            if stream not in self.workspaces:
                self.workspaces[stream] = device.empty((WORKSPACE,), np.uint8)
            # A new stream takes the workspace away, so the order matters.
            check("cublasSetStream_v2", library.cublasSetStream_v2(self.value, stream))
            workspace = device.pointer(self.workspaces[stream])
            status = library.cublasSetWorkspace_v2(self.value, workspace, WORKSPACE)
            check("cublasSetWorkspace_v2", status)
            self.stream = stream
        if settings.tf32 != self.tf32:
            mode = _TF32_MATH if settings.tf32 else _DEFAULT_MATH
            check("cublasSetMathMode", library.cublasSetMathMode(self.value, mode))
            self.tf32 = settings.tf32

    def forget(self, stream: int) -> Array | None:
        """Return what belonged to a stream that no call will go to any more."""
        if stream == self.stream:
            self.stream = None
        return self.workspaces.pop(stream, None)


_handles: dict[int, _Handle] = {}  # by the number of the device


@functools.cache
def _library() -> Any:
    """Return cuBLAS, the copy that CuPy uses where it has one, with its functions declared."""
    library = found("cublas")
    gemm_arguments = [_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER]
    gemm_arguments += [_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE]
    batched_arguments = [_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER]
    batched_arguments += [_POINTER, _SIZE, _LONG, _POINTER, _SIZE, _LONG, _POINTER]
    batched_arguments += [_POINTER, _SIZE, _LONG, _SIZE]
    declared = {
        "cublasCreate_v2": [_POINTER],
        "cublasSetStream_v2": [_POINTER, _POINTER],
        "cublasSetWorkspace_v2": [_POINTER, _POINTER, ctypes.c_size_t],
        "cublasSetMathMode": [_POINTER, _SIZE],
        "cublasSgemm_v2": gemm_arguments,
        "cublasDgemm_v2": gemm_arguments,
        "cublasSgemmStridedBatched": batched_arguments,
        "cublasDgemmStridedBatched": batched_arguments,
    }
    for name, arguments in declared.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.cublasGetStatusName.argtypes = [ctypes.c_int]
    library.cublasGetStatusName.restype = ctypes.c_char_p
    return library


def found(stem: str) -> ctypes.CDLL:
    """Return the library of CUDA that is named ``stem``.

    Raises
    ------
    BackendUnavailable
        If it is not there; the message says what brings it.
    """
    names = [name.format(stem) for name in _NAMES]
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # comes with CuPy 14

        names.insert(0, load_nvidia_dynamic_lib(stem).abs_path or names[0])
    except Exception:  # it is not there, or finds nothing: the loader may
        pass
    reasons = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise BackendUnavailable(
        f"backend 'cupy': {stem} is not found ({reasons[0]}); pip install 'refkd[cuda13]' brings it"
    )


def check(function: str, status: int) -> None:
    """Raise RuntimeError, with the name of what is wrong, unless ``status`` is success."""
    if status:
        name = _library().cublasGetStatusName(status)
        raise RuntimeError(f"{function}: {name.decode() if name else status}")
