"""Arrays, launches and matrix products on the GPU: the one file that calls CuPy.

Kernels of a source are compiled on first use, for the device at hand, and kept by CuPy on disk.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError
from refkd_cupy import settings, source

__all__ = [
    "ARRAY",
    "asarray",
    "capture",
    "compile_source",
    "copier",
    "copy",
    "dense",
    "empty",
    "empty_images",
    "gemm",
    "is_array",
    "lasting",
    "launch",
    "limit_memory",
    "multiprocessors",
    "number",
    "pinned",
    "pointer",
    "shared_limit",
    "spread",
    "stream",
    "supports_tensor_cores",
    "synchronize",
    "to_numpy",
    "view",
    "wait",
]

ARRAY = cupy.ndarray

_THREADS = 256
_OPTIONS = ("-std=c++17",)
_NULL = np.uintp(0)
_ANY_WAY = 4  # cudaMemcpyDefault


def asarray(x: Any) -> Array:
    """Return an array of NumPy on the device, in C order."""
    return cupy.asarray(x)


def lasting(x: Any) -> Array:
    """Return the same in memory that is no graph's, to be kept for later calls."""
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        return asarray(x)


def to_numpy(x: Array) -> Any:
    """Return an array of the device as one of NumPy."""
    return cupy.asnumpy(x)


def synchronize() -> None:
    """Wait until all that was queued is done."""
    cupy.cuda.Device().synchronize()


def wait() -> None:
    """Wait until all that was queued on the current stream is done."""
    cupy.cuda.get_current_stream().synchronize()


def pinned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array of NumPy in memory that copies to and from the device need not wait for."""
    count = math.prod(shape)
    memory = cupy.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def copy(target: Any, origin: Any) -> None:
    """Queue a copy of memory between arrays of one size in C order, on the device or pinned."""
    addresses = [pointer(x) if is_array(x) else x.ctypes.data for x in (target, origin)]
    cupy.cuda.runtime.memcpyAsync(*addresses, target.nbytes, _ANY_WAY, stream())


def copier(target: Array) -> Callable[[Array], None]:
    """Return what queues copies into ``target``, of arrays of its shape, dtype and layout.

    All that is known beforehand is looked up now; ``target`` fills its memory.
    """
    address, size, copy_memory = pointer(target), target.nbytes, cupy.cuda.runtime.memcpyAsync

    def copy_from(origin: Array, _kept: Array = target) -> None:
        copy_memory(address, origin.data.ptr, size, _ANY_WAY, stream())

    return copy_from


def view(room: Array, shape: tuple[int, ...], dtype: Any, offset: int) -> Array:
    """Return an array in C order that lies in another's memory, ``offset`` bytes from its begin."""
    return cupy.ndarray(shape, dtype, room.data + offset)


def capture(
    prepare: Callable[[], None], record: Callable[[], Any]
) -> tuple[Any, Callable[[], None]]:
    """Record the work that ``record`` queues, as a graph.

    Parameters
    ----------
    prepare : callable
        Is run before, so that all kernels are loaded and memory is there.
    record : callable
        Must ask for no value of an array, and do the same whatever they are.

    Returns
    -------
    result : Any
        What ``record`` returns. Its arrays have no values before the graph is played.
    play : callable
        Queues the graph on the current stream.
    """
    from refkd_cupy import blas

    synchronize()
    own_stream, player = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream()
    common = cupy.get_default_memory_pool()
    gc.collect()  # a pool that is gone may hold pieces that refer to each other
    common.free_all_blocks()  # pieces that may fit nowhere count against the limit

    def malloc(size: int) -> Any:
        with player:  # whose memory it is again when the graph is gone
            return common.malloc(size)

    # From a pool of its own: what is free for the graph must not be given to anybody else. This
    # one takes from that of all others, so that the limit holds for both.
    pool = cupy.cuda.MemoryPool(malloc)
    try:
        with cupy.cuda.using_allocator(pool.malloc), own_stream:
            prepare()
            graph, result = _recorded(own_stream, record)
    finally:
        with contextlib.suppress(Exception):  # what is queued must not outlive its memory
            own_stream.synchronize()
        # An array does not keep its pool alive: later products must not find this one.
        workspace = blas.take_workspace(int(own_stream.ptr))

    def play(kept: Any = (workspace, pool, own_stream)) -> None:
        graph.launch()

    return result, play


def _recorded(own_stream: Any, record: Callable[[], Any]) -> tuple[Any, Any]:
    own_stream.synchronize()
    own_stream.begin_capture()
    cupy.cuda.set_pinned_memory_allocator(_refuse)
    try:
        result = record()
    except BaseException:
        with contextlib.suppress(Exception):  # of the capture that is given up
            own_stream.end_capture()
        raise
    finally:
        cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)
    return own_stream.end_capture(), result


def _refuse(size: int) -> Any:
    # What comes from the host passes through pinned memory, and would be read again from there.
    raise RuntimeError(f"{size} bytes come from the host, which a graph cannot ask for again")


def limit_memory() -> None:
    """Let arrays take no more memory than the settings say."""
    if settings.memory_limit:
        cupy.get_default_memory_pool().set_limit(**settings.memory_limit)


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Return an array in C order, whose contents are arbitrary."""
    return cupy.empty(shape, dtype)


def empty_images(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Return an array (N, C, ...) whose memory holds the channels last."""
    batch, channels, *space = shape
    axes = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return cupy.empty((batch, *space, channels), dtype).transpose(axes)


def is_array(x: Any) -> bool:
    """Return whether ``x`` is an array of the device."""
    return isinstance(x, cupy.ndarray)


def dense(x: Array) -> Array:
    """Return x in C order, itself where it is."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


def launch(
    stem: str,
    name: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    arguments: Sequence[Any],
    *,
    shared: int = 0,
) -> None:
    """Queue a kernel.

    Parameters
    ----------
    stem : str
        The source: ``stem.cu`` beside this file.
    name : str
        The kernel, ``extern "C"`` there.
    grid, block : int or tuple of int
        Numbers of blocks, and of threads in each.
    arguments : sequence
        Arrays in C order, None for a pointer to nothing, and scalars of NumPy of the very type
        that the kernel declares.
    shared : int
        Bytes of dynamic shared memory.

    Raises
    ------
    ConfigError
        If an argument does not fit the kernel's declaration, or the grid does not fit a GPU.
    """
    grid, block = source.as_dimensions(grid), source.as_dimensions(block)
    current = number()
    if not _fit(source.forms(stem, name), arguments, current):
        _refuse_misfits(stem, name, arguments, current)
    source.check_grid(name, grid, block)
    function = _function(current, stem, name, shared > 0)
    given = tuple([_NULL if argument is None else argument for argument in arguments])
    function(grid, block, given, shared_mem=shared)


def _fit(forms: Sequence[source.Form], arguments: Sequence[Any], current: int) -> bool:
    """Return whether all is as it should be, as cheaply as that can be told."""
    if len(arguments) != len(forms):
        return False
    for (is_pointer, dtype, kind, alignment), argument in zip(forms, arguments, strict=True):
        if not is_pointer:
            if type(argument) is not kind:
                return False
        elif argument is not None:
            if type(argument) is not ARRAY or argument.dtype != dtype:
                return False
            memory = argument.data
            if memory.ptr % alignment or memory.device_id != current:
                return False
            if not argument.flags.c_contiguous:
                return False
    return True


def _refuse_misfits(stem: str, name: str, arguments: Sequence[Any], current: int) -> None:
    """Raise ConfigError with what is wrong, if anything is."""
    source.check_arguments(stem, name, arguments, is_array, pointer)
    for argument in arguments:
        if is_array(argument) and argument.device.id != current:
            raise ConfigError(
                f"{name}: an array lies on device {argument.device.id}, and {current} is current"
            )


def spread(count: int, *, each: int = 1) -> tuple[int, int]:
    """Return a grid and a block for threads that go on until ``count`` entries are done.

    ``each`` is how many a thread takes at a time.
    """
    blocks = -(-count // (_THREADS * each))
    return max(1, min(blocks, 8 * multiprocessors())), _THREADS


def gemm(
    a: Array,
    b: Array,
    out: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    beta: float = 0.0,
) -> None:
    """Write op(a) op(b) + beta · out into ``out``, by cuBLAS.

    Parameters
    ----------
    a, b, out : array, float32 or float64, 2-D, or 3-D for a batch of products
        In C order.
    transpose_a, transpose_b : bool
        Whether op swaps the last two axes.
    beta : float

    Raises
    ------
    ConfigError
        If shapes, dtypes or layouts do not fit.
    """
    check_product(a, b, out, transpose_a, transpose_b)
    from refkd_cupy import blas  # reaches for the library only where a product is asked for

    blas.gemm(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, beta=beta)


def check_product(a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool) -> None:
    """Raise ConfigError unless op(a) op(b) has the shape of ``out``, all dense and of one dtype."""
    rows, inner = a.shape[-2:][:: -1 if transpose_a else 1]
    inner_b, columns = b.shape[-2:][:: -1 if transpose_b else 1]
    batches = {x.shape[:-2] for x in (a, b, out)}
    if inner != inner_b or out.shape[-2:] != (rows, columns) or len(batches) != 1 or out.ndim > 3:
        raise ConfigError(f"gemm: shapes {a.shape}, {b.shape} do not give {out.shape}")
    if len({x.dtype for x in (a, b, out)}) != 1 or a.dtype.char not in "fd":
        raise ConfigError(f"gemm: dtypes {a.dtype}, {b.dtype} and {out.dtype}")
    if not all(x.flags.c_contiguous for x in (a, b, out)):
        raise ConfigError("gemm: every matrix must be C-contiguous")


def pointer(x: Array) -> int:
    """Return the address of an array's memory."""
    return int(x.data.ptr)


def stream() -> int:
    """Return the handle of the stream that launches go to."""
    return int(cupy.cuda.get_current_stream().ptr)


def number() -> int:
    """Return the number of the current device."""
    return int(cupy.cuda.runtime.getDevice())


def multiprocessors() -> int:
    """Return how many multiprocessors the current device has."""
    return _properties(number()).multiprocessors


def shared_limit() -> int:
    """Return the most bytes of shared memory that a block may ask for."""
    return _properties(number()).shared_limit


def supports_tensor_cores() -> bool:
    """Return whether the device multiplies in TF32, and copies to shared memory asynchronously."""
    return _properties(number()).capability >= 80


class _Properties(NamedTuple):
    """Of a device."""

    multiprocessors: int
    shared_limit: int
    capability: int  # 90 for 9.0


@functools.cache
def _properties(device: int) -> _Properties:
    found = cupy.cuda.Device(device)
    attributes = found.attributes
    return _Properties(
        int(attributes["MultiProcessorCount"]),
        int(attributes["MaxSharedMemoryPerBlockOptin"]),
        int(found.compute_capability),
    )


def compile_source(stem: str) -> None:
    """Compile all kernels of a source, and keep them in CuPy's cache on disk."""
    _new_module(stem).compile()


@functools.cache
def _module(device: int, stem: str) -> Any:
    return _new_module(stem)


def _new_module(stem: str) -> Any:
    # Comments hold formulas, and where a file is written in between, its encoding may not.
    code = source.text(stem).encode("ascii", "replace").decode()
    return cupy.RawModule(code=code, options=_OPTIONS)


@functools.cache
def _function(device: int, stem: str, name: str, has_dynamic_shared: bool) -> Any:
    kernel = _module(device, stem).get_function(name)
    if has_dynamic_shared:  # with what is static it may come to more than 48 KiB, which takes this
        kernel.max_dynamic_shared_size_bytes = shared_limit() - kernel.shared_size_bytes
    return kernel.kernel  # what a call of it would look up each time
