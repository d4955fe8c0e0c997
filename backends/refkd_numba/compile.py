"""Compiling: Numba's options for every kernel here, and a cache on disk that cannot be stale.

Numba keys its own cache by the file of the compiled function, so that an edit to what the
function calls goes unnoticed. Here the key is a digest of that file and of all files of this
package that it imports, and they lie in a folder for the versions and the BLAS at hand.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np
from numba.core import caching, compiler_lock, event
from numba.core.sigutils import normalize_signature
from numba.core.types import Array
from numba.misc.appdirs import AppDirs

from refkd_numba import blas

__all__ = ["FAST", "cache_folder", "compiled", "device", "prune_cache"]

F = TypeVar("F", bound=Callable[..., Any])

# Sums may be reordered and products fused. What "fast" would add lets LLVM assume that
# there is no NaN and no infinity.
FAST = frozenset({"contract", "reassoc", "nsz", "arcp"})


def compiled(function: F | None = None, /, *, fast: bool = True, counted: bool = True) -> Any:
    """Compile a kernel: a function that Python calls, cached on disk.

    It releases the GIL, divides by zero as NumPy does, and takes arrays and numbers.

    Parameters
    ----------
    fast : bool
        False keeps every sum in the order in which it is written.
    counted : bool
        False for a function that makes no arrays but views, and returns none. Then nobody
        counts who refers to their memory, which for a view of each row takes as long as
        the row if that is short.
    """
    if function is None:
        return functools.partial(compiled, fast=fast, counted=counted)
    dispatcher = numba.njit(
        nogil=True,
        error_model="numpy",
        fastmath=set(FAST) if fast else False,
        _nrt=counted,
    )(function)
    with contextlib.suppress(RuntimeError):  # there is no folder to write to: compile every time
        dispatcher._cache = _Cache(function)
    dispatcher.compile = functools.partial(_compile_as_writable, dispatcher, dispatcher.compile)
    return dispatcher


def _compile_as_writable(
    dispatcher: Any, compile_types: Callable[[Any], Any], signature: Any
) -> Any:
    """Let one compiled form serve arrays that are read-only and others.

    For Numba they are two types; whether a kernel writes where it must not is for the
    Python code around it to see.
    """
    arguments, _ = normalize_signature(signature)
    writable = tuple(a.copy(readonly=False) if isinstance(a, Array) else a for a in arguments)
    with _uninterrupted():
        entry_point = compile_types(writable)
    if writable != arguments:
        compiled_form = dispatcher.overloads[arguments] = dispatcher.overloads[writable]
        codes = [argument._code for argument in arguments]
        dispatcher._insert(codes, entry_point, compiled_form.objectmode)
    return entry_point


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off what a first Ctrl-C does: Numba may not work any more after half a compilation."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, Any]] = []

    def hold(*event: Any) -> None:
        if held:
            handler(*event)
        held.append(event)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def device(
    function: F | None = None,
    /,
    *,
    fast: bool = True,
    inline: bool = False,
    counted: bool = True,
) -> Any:
    """Compile a part of kernels: it is compiled into whatever calls it, and cached with that."""
    if function is None:
        return functools.partial(device, fast=fast, inline=inline, counted=counted)
    return numba.njit(
        nogil=True,
        error_model="numpy",
        fastmath=set(FAST) if fast else False,
        forceinline=inline,
        _nrt=counted,
    )(function)


@functools.cache
def cache_folder() -> Path:
    """Return the folder of what was compiled with these versions and this BLAS."""
    chosen = numba.config.CACHE_DIR
    caches = Path(chosen) if chosen else Path(AppDirs("refkd", appauthor=False).user_cache_dir)
    versions = [numba.__version__, llvmlite.__version__, np.__version__, sys.version, blas.PROVIDER]
    return caches / f"refkd-numba-{_digest(version.encode() for version in versions)}"


def prune_cache() -> None:
    """Delete what nobody has used for 60 days.

    Another installation may use other versions, and another copy of the sources has stamps
    of its own: what is not of use here is no less of use there.
    """
    oldest = time.time() - _KEEP
    for path in list(cache_folder().parent.glob("refkd-numba-*/*")):
        with contextlib.suppress(OSError):  # somebody else may own it, or be deleting it
            if path.stat().st_mtime < oldest:
                path.unlink()
                path.parent.rmdir()  # which is refused while something is left


@functools.cache
def _stamp(path: Path) -> str:
    """Return a digest of the sources that the functions of a file are made of."""
    return _digest(source.read_bytes() for source in sorted(_sources(path)))


def _sources(path: Path) -> set[Path]:
    found: set[Path] = set()
    waiting = {path}
    while waiting:
        found |= waiting
        waiting = {other for source in waiting for other in _imports(source)} - found
    return found


@functools.cache
def _imports(path: Path) -> frozenset[Path]:
    """Return the files of this package that a file imports."""
    root = _PACKAGE.parent
    places: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] if node.level else root
            module = folder.joinpath(*(node.module or "").split("."))
            places |= {module, *(module / alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            places |= {root.joinpath(*alias.name.split(".")) for alias in node.names}
    files = {place.with_suffix(".py") for place in places}
    files |= {place / "__init__.py" for place in places}
    return frozenset(f for f in files if _PACKAGE in f.parents and f.exists())


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


_PACKAGE = Path(__file__).parent
_DAY = 24 * 3600.0  # seconds
_KEEP = 60 * _DAY


class _Locator:
    """Where Numba keeps the compiled forms of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        path = Path(code.co_filename)
        self._py_file = str(path)  # which Numba names in a warning
        self._place = f"{path.stem}-{code.co_firstlineno}-{_stamp(path)}"

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> _Locator | None:
        locator = cls(function)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator

    def ensure_cache_path(self) -> None:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return self._place

    def get_disambiguator(self) -> str:
        return self._place


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _CacheFile(caching.IndexDataCacheFile):
    """Files of a digest and a pickle: what is damaged, or cannot be written, is as if not there."""

    def save(self, key: Any, data: Any) -> None:
        self._write(self._path_of(key), (key, data))

    def load(self, key: Any) -> Any:
        kept = self._read(self._path_of(key))
        return kept[1] if kept is not None and kept[0] == key else None

    def _path_of(self, key: Any) -> str:
        """Return a file for this form alone: two processes may compile two forms at once."""
        return self._index_path.removesuffix("nbi") + f"{_digest([repr(key).encode()])}.nbc"

    def _read(self, path: str) -> Any:
        with contextlib.suppress(Exception):  # what a pickle imports may raise anything
            contents = Path(path).read_bytes()
            digest, data = contents[:_DIGEST_SIZE], contents[_DIGEST_SIZE:]
            if hashlib.sha256(data).digest() == digest:
                _note_use(path)
                return pickle.loads(data)
        return None

    def _write(self, path: str, value: Any) -> None:
        data = self._dump(value)
        with contextlib.suppress(OSError), self._open_for_write(path) as file:
            file.write(hashlib.sha256(data).digest() + data)


def _note_use(path: str) -> None:
    """Set the time of a file's last change to now, once a day."""
    with contextlib.suppress(OSError):  # somebody else's file, or a disk to read from only
        if time.time() - os.stat(path).st_mtime > _DAY:
            os.utime(path)


_DIGEST_SIZE = hashlib.sha256().digest_size


class _Cache(caching.FunctionCache):
    _impl_class = _CacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CacheFile(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )


class _Announcer(event.Listener):
    """Says on stderr what is being compiled, and then how long it took: it may be many seconds."""

    def __init__(self) -> None:
        self._begun: list[float] = []

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        package, _, place = f"{function.__module__}.{function.__name__}".partition(".")
        self._begun.append(time.perf_counter())
        if package == __package__ and len(self._begun) == 1:
            _say(f"refkd: compiling {place} ... ")

    def on_end(self, event: Any) -> None:
        seconds = time.perf_counter() - self._begun.pop()
        dispatcher = event.data["dispatcher"]
        ours = dispatcher.py_func.__module__.partition(".")[0] == __package__
        if ours and not self._begun:
            kept = ", kept" if isinstance(dispatcher._cache, _Cache) else ""
            _say(f"{seconds:.1f} s{kept}\n")


def _say(words: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stderr is closed
        sys.stderr.write(words)
        sys.stderr.flush()


event.register("numba:compile", _Announcer())
if hasattr(os, "register_at_fork"):  # a child must not find the lock held by a thread it has not
    _lock = compiler_lock.global_compiler_lock
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
