"""The device of refkd_cupy on the host: launchers run as they are, kernels compiled by g++.

An array lies between guard bytes, and what it holds at first is NaN, or -1. A launch is made on
copies of the arrays; afterwards guards and inputs must be as they were. ``cuda_host.h`` says what
is seen besides.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from refkd.dispatch import Backend
from refkd.errors import ConfigError
from refkd_cupy import source

__all__ = [
    "KernelError",
    "compiler",
    "host_backend",
    "host_device",
    "kernels_of",
    "launch",
    "on_the_host",
]

_GUARD = 1024
_HEADER = Path(__file__).with_name("cuda_host.h")
_FLAGS = (
    "-x", "c++", "-std=c++17", "-O2", "-shared", "-fPIC", "-fno-strict-aliasing", "-fwrapv",
    "-ffp-contract=off", "-fno-stack-protector", "-fno-gnu-unique", "-fsanitize=bounds,alignment",
    "-fsanitize-recover=all", "-w",
)  # fmt: skip
_EXPANDING = ("-x", "c++", "-std=c++17", "-E", "-P")
_DECLARED = re.compile(r'extern\s+"C"\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{')
_NAN = 0x7FF00000  # as float32, and twice as float64
_numbers = itertools.count(1)
_launches = itertools.count()


class KernelError(AssertionError):
    """A kernel did what it must not."""


def compiler() -> str | None:
    """Return the C++ compiler; None where there is none."""
    return shutil.which("g++")


class _Memory(np.ndarray):  # type: ignore[type-arg]
    """What owns guarded memory: NaN of its own around what is ``inside``.

    As no two have the same guards, one that was copied into another shows.
    """

    guard: int
    inside: slice


def empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
    shape = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = _Memory(-(-size // 8) * 8 + 2 * _GUARD + 256, np.uint8)
    memory.view(np.uint32)[...] = memory.guard = _NAN | next(_numbers) % (1 << 20)
    offset = _GUARD + (-(memory.ctypes.data + _GUARD) % 256)
    memory[offset : offset + size] = 0xFF
    memory.inside = slice(offset, offset + size)
    return np.ndarray(shape, dtype, memory, offset)


def empty_images(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    batch, channels, *space = shape
    axes = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return empty((batch, *space, channels), dtype).transpose(axes)


def is_array(x: Any) -> bool:
    return type(x) is np.ndarray


def dense(x: Any) -> Any:
    return x if x.flags.c_contiguous else _copied(x)


def asarray(x: Any) -> Any:
    return _copied(np.asarray(x))


def lasting(x: Any) -> Any:
    return asarray(x)


def _copied(x: Any) -> Any:
    copy = empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def launch(
    stem: str,
    name: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    arguments: Sequence[Any],
    *,
    shared: int = 0,
) -> None:
    """Check the arguments as the device does, and run the kernel."""
    grid, block = source.as_dimensions(grid), source.as_dimensions(block)
    parameters = source.check_arguments(stem, name, arguments, is_array, pointer)
    source.check_grid(name, grid, block)
    if shared > host_device.shared_limit():
        raise KernelError(f"{name}: {shared} bytes of shared memory, more than a block may have")
    text, given = source.text(stem), list(arguments)
    _do(lambda: run_text(text, name, parameters, grid, block, given, shared, next(_launches)))


def run_text(
    text: str,
    name: str,
    parameters: Sequence[source.Parameter],
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: Sequence[Any],
    shared: int = 0,
    seed: int = 0,
) -> None:
    """Run a kernel of a source; raise KernelError for what it must not do."""
    values: list[Any] = []
    arrays: list[tuple[source.Parameter, Any, Any]] = []  # with what stands in where unguarded
    for parameter, argument in zip(parameters, arguments, strict=True):
        if argument is None:
            values.append(ctypes.c_void_p(None))
        elif parameter.is_pointer:
            if parameter.is_written and not argument.flags.writeable:
                raise ValueError(f"{name}: {parameter.name} is read-only")
            guarded = isinstance(_owner(argument), _Memory)
            arrays.append((parameter, argument, argument if guarded else _copied(argument)))
            values.append(ctypes.c_void_p(arrays[-1][2].ctypes.data))
        else:
            values.append(np.ctypeslib.as_ctypes_type(parameter.dtype)(argument))
    written = [id(_owner(array)) for parameter, _, array in arrays if parameter.is_written]
    inputs = {id(_owner(array)): _owner(array) for _, _, array in arrays}
    before = {key: owner.tobytes() for key, owner in inputs.items() if key not in written}
    pointers = (ctypes.c_void_p * max(1, len(values)))(
        *(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values)
    )
    function = _library(text)[f"run_{name}"]
    function.restype = ctypes.c_char_p
    sizes = (ctypes.c_uint * 6)(*grid, *block)
    wrong = function(pointers, sizes, ctypes.c_uint(shared), ctypes.c_uint(seed))
    if wrong is not None:
        raise KernelError(f"{name}: {wrong.decode()}")
    for key, was in before.items():
        if inputs[key].tobytes() != was:
            raise KernelError(f"{name}: it writes into an input, or beyond one")
    for parameter, argument, array in arrays:
        if parameter.is_written:
            _check_guards(name, parameter.name, array)
            if array is not argument:
                argument[...] = array


def _check_guards(name: str, parameter: str, array: Any) -> None:
    owner = _owner(array)
    expected = np.full(owner.size // 4, owner.guard, np.uint32).view(np.uint8)
    begin, end = owner.inside.start, owner.inside.stop
    for part in (slice(begin), slice(end, None)):
        if not np.array_equal(owner[part], expected[part]):
            raise KernelError(f"{name}: it writes beyond {parameter}")


def _owner(array: Any) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def pointer(x: Any) -> int:
    return int(x.ctypes.data)


def stream() -> int:
    return 0


def spread(count: int, *, each: int = 1) -> tuple[int, int]:
    """Return a small grid, whose threads have to go on, and blocks of few warps."""
    return max(1, min(-(-count // (64 * each)), 3)), 64


def gemm(
    a: Any,
    b: Any,
    out: Any,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    beta: float = 0.0,
) -> None:
    a_of, b_of = (x.swapaxes(-1, -2) if t else x for x, t in ((a, transpose_a), (b, transpose_b)))
    if not all(x.flags.c_contiguous for x in (a, b, out)) or len({a.dtype, b.dtype, out.dtype}) > 1:
        raise ConfigError("gemm: arrays of one dtype, each C-contiguous")
    rows, inner = a_of.shape[-2:]
    expected = (*a.shape[:-2], rows, b_of.shape[-1])
    if b_of.shape[-2] != inner or out.shape != expected or not a.ndim == b.ndim == out.ndim <= 3:
        raise ConfigError(f"gemm: shapes {a.shape}, {b.shape} do not give {out.shape}")

    def multiply() -> None:
        with np.errstate(all="ignore"):
            product = a_of @ b_of
            out[...] = product if beta == 0 else product + out.dtype.type(beta) * out

    _do(multiply)


def copy(target: Any, origin: Any) -> None:
    assert target.nbytes == origin.nbytes
    assert target.flags.c_contiguous
    assert origin.flags.c_contiguous
    to, of = (x.reshape(-1).view(np.uint8) for x in (target, origin))
    _do(lambda: np.copyto(to, of))


def copier(target: Any) -> Callable[[Any], None]:
    def copy_from(origin: Any) -> None:
        steps = [np.array(x.strides)[np.array(x.shape) > 1].tolist() for x in (origin, target)]
        assert origin.shape == target.shape
        assert steps[0] == steps[1]
        _do(lambda: np.copyto(target, origin, casting="no"))

    return copy_from


def view(room: Any, shape: tuple[int, ...], dtype: Any, offset: int) -> Any:
    return np.ndarray(shape, dtype, room, offset)


def pinned(shape: tuple[int, ...], dtype: Any) -> Any:
    return np.zeros(shape, dtype)


def wait() -> None:
    pass


def capture(prepare: Callable[[], None], record: Callable[[], Any]) -> tuple[Any, Any]:
    """Note what is queued and do not do it, as a GPU; what NumPy computes is not noted."""
    global _recording
    prepare()
    _recording = work = []
    try:
        result = record()
    finally:
        _recording = None
    return result, lambda: [do() for do in work]


def queued(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let what NumPy computes be noted, as what CuPy does is: the result is there when played."""

    def call(*arguments: Any) -> Any:
        now = function(*arguments)
        result = empty(now.shape, now.dtype)
        _do(lambda: np.copyto(result, function(*arguments)))
        return result

    return call


_recording: list[Callable[[], None]] | None = None


def _do(work: Callable[[], None]) -> None:
    if _recording is None:
        work()
    else:
        _recording.append(work)


def number() -> int:
    return 0


def multiprocessors() -> int:
    return 4


def shared_limit() -> int:
    return 227 * 1024


def supports_tensor_cores() -> bool:
    return True


host_device = types.ModuleType("refkd_cupy.device")
for _function in (
    *(
        asarray,
        dense,
        empty,
        empty_images,
        gemm,
        is_array,
        lasting,
        launch,
        multiprocessors,
        number,
        shared_limit,
        spread,
    ),
    *(capture, copier, copy, pinned, pointer, stream, supports_tensor_cores, view, wait),
):
    setattr(host_device, _function.__name__, _function)
host_device.synchronize = wait  # type: ignore[attr-defined]


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    """Return a source compiled for the host, with a function ``run_NAME`` for each kernel."""
    header = _HEADER.read_text(encoding="utf-8")
    digest = hashlib.sha256("\0".join((text, header, *_FLAGS)).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"refkd-cuda-host-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            code = Path(work) / "kernel.cpp"
            code.write_text(f'#include "{_HEADER}"\n#line 1 "kernel.cu"\n{text}', encoding="utf-8")
            expanded = _compile(*_EXPANDING, str(code))
            wrappers = (_wrapper(*match.groups()) for match in _DECLARED.finditer(expanded))
            with code.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(wrappers))
            _compile(*_FLAGS, str(code), "-o", str(Path(work) / "kernel.so"))
            (Path(work) / "kernel.so").replace(target)
    return ctypes.CDLL(str(target))


def kernels_of(stem: str) -> list[str]:
    """Return the names of a source's kernels, those that macros declare included."""
    qualifiers = "-D__global__=", "-D__launch_bounds__(...)="
    expanded = _compile(*_EXPANDING, "-DREFKD_HOST", *qualifiers, "-", given=source.text(stem))
    return [name for name, _ in _DECLARED.findall(expanded)]


def _wrapper(name: str, declared: str) -> str:
    kinds = [re.sub(r"\b\w+\s*$", "", p).strip() for p in declared.split(",") if p.strip()]
    kinds = [kind.replace("__restrict", "").removeprefix("const ") if "*" not in kind else
             kind.replace("__restrict", "") for kind in kinds]  # fmt: skip
    arguments = ", ".join(f"*({kind}*)a[{i}]" for i, kind in enumerate(kinds))
    return (
        f'extern "C" const char* run_{name}(void** a, const unsigned* sizes, unsigned shared, '
        f"unsigned seed) {{ return refkd_host::run([](void** a) {{ {name}({arguments}); }}, a, "
        f"sizes, shared, seed); }}"
    )


def _compile(*arguments: str, given: str = "") -> str:
    command = ["g++", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"g++ {' '.join(arguments)}:\n{done.stderr[:4000]}")
    return done.stdout


_PACKAGE, _COMMON = "refkd_cupy.", ("probe", "settings", "source")
_modules: dict[str, types.ModuleType] = {}


@contextmanager
def on_the_host() -> Iterator[None]:
    """Let the launchers of refkd_cupy be imported, and run, with the host's device.

    They are other modules than those that a machine with a GPU may have loaded.
    """
    package = importlib.import_module("refkd_cupy")
    before = _launcher_modules()
    _replace(package, before, {**_modules, "device": host_device})
    try:
        yield
    finally:
        _modules.update(_launcher_modules())
        _replace(package, _modules, before)


def _launcher_modules() -> dict[str, types.ModuleType]:
    """Return the submodules that are loaded, by name, but those which know of no device."""
    found = ((n.partition(".")[2], m) for n, m in sys.modules.items() if n.startswith(_PACKAGE))
    return {name: module for name, module in found if name not in _COMMON}


def _replace(
    package: types.ModuleType,
    old: Mapping[str, types.ModuleType],
    new: Mapping[str, types.ModuleType],
) -> None:
    for name in old:
        sys.modules.pop(_PACKAGE + name, None)
        vars(package).pop(name, None)
    for name, module in new.items():
        sys.modules[_PACKAGE + name] = module
        setattr(package, name, module)


def launchers(*names: str) -> Mapping[str, types.ModuleType]:
    """Return launcher modules by name, imported with the host's device."""
    with on_the_host():
        return {name: importlib.import_module(f"refkd_cupy.{name}") for name in names}


def host_backend(*names: str) -> Backend:
    """Return a backend of the overrides of these modules, over arrays of NumPy."""
    kernels: dict[str, Any] = {}
    error_factors: dict[str, float] = {}
    for module in launchers(*names).values():
        kernels.update(module.KERNELS)
        error_factors.update(getattr(module, "ERROR_FACTORS", {}))
    return Backend(
        name="cupy",
        array_type=np.ndarray,
        asarray=asarray,
        to_numpy=np.asarray,
        synchronize=lambda: None,
        kernels=kernels,
        error_factors=error_factors,
    )
