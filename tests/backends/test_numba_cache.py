"""The cache of compiled kernels: used again, never stale, and no trouble where it is damaged."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import io
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from refkd.dispatch import available_backends
from tests.backends.processes import BACKENDS, run

if available_backends()["numba"]:
    pytest.skip(str(available_backends()["numba"]), allow_module_level=True)

import llvmlite
import numba
import numpy as np
from numba.core.caching import FunctionCache

import refkd_numba
from refkd_numba import blas, compile
from refkd_numba.compile import cache_folder, compiled, prune_cache

# A kernel that is made of three files.
SOURCES = {
    "__init__": "",
    "kernel": """
        from refkd_numba.compile import compiled
        from refkd_numba.probe.part import part

        @compiled
        def probe(x):
            return part(x)
    """,
    "part": """
        from refkd_numba.compile import device
        from .inner import inner

        @device
        def part(x):
            return inner(x) + 1
    """,
    "inner": """
        from refkd_numba.compile import device

        @device
        def inner(x):
            return 10 * x
    """,
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the backend with that kernel."""
    package = tmp_path / "refkd_numba"
    shutil.copytree(BACKENDS / "refkd_numba", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "probe").mkdir()
    for name, source in SOURCES.items():
        (package / "probe" / f"{name}.py").write_text(textwrap.dedent(source))
    return package


def probe(package: Path) -> tuple[str, int]:
    """Return what a process prints that calls the kernel, and how many it compiled."""
    finished = run(
        "from refkd_numba.probe.kernel import probe; print(probe(2))",
        path=(package.parent,),
        NUMBA_CACHE_DIR=str(package.parent / "cache"),
    )
    said = finished.stderr.splitlines()
    expected = re.compile(r"refkd: compiling probe\.kernel\.probe \.\.\. \d+\.\d s, kept")
    assert all(map(expected.fullmatch, said)), finished.stderr
    return finished.stdout.strip(), len(said)


def test_a_kernel_is_compiled_again_when_a_file_that_it_is_made_of_changes(package: Path) -> None:
    assert probe(package) == ("21", 1)
    before = {path: path.read_text() for path in (package / "probe").iterdir()}
    for file, old, new, expected in (
        ("inner", "10 * x", "20 * x", "41"),
        ("part", "+ 1", "+ 2", "42"),
        ("kernel", "return part", "return -part", "-42"),
    ):
        path = package / "probe" / f"{file}.py"
        path.write_text(path.read_text().replace(old, new))
        assert probe(package) == (expected, 1), file
    for path, source in before.items():
        path.write_text(source)
    (package / "probe" / "other.py").write_text("from refkd_numba.probe import inner")
    assert probe(package) == ("21", 0)


@pytest.mark.parametrize(
    ("statement", "files"),
    [
        ("import refkd_numba.a.b", {"a/b.py"}),
        ("from refkd_numba.a import b, name", {"a/__init__.py", "a/b.py"}),
        ("from . import c, name", {"a/__init__.py", "a/c.py"}),
        ("from .c import name", {"a/c.py"}),
        ("from .. import d, a", {"__init__.py", "d.py", "a/__init__.py"}),
        ("from ..a.b import name", {"a/b.py"}),
        ("from .d import name", set()),
        ("import numpy.d; from os import path", set()),
    ],
)
def test_all_ways_to_import_are_understood(
    statement: str, files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "refkd_numba"
    (package / "a").mkdir(parents=True)
    for name in ("__init__", "a/__init__", "a/b", "a/c", "d"):
        (package / f"{name}.py").write_text("")
    (package / "a" / "own.py").write_text(statement)
    monkeypatch.setattr(compile, "_PACKAGE", package)
    assert compile._imports(package / "a" / "own.py") == {package / file for file in files}


class Kernel:
    """A kernel as a new process has it: nothing is compiled, and the cache is as it was left."""

    def __init__(
        self, function: Callable[[Any], Any], folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.function, self.folder, self.capsys = function, folder, capsys

    def __call__(self, *arguments: Any) -> tuple[list[Any], int]:
        """Return what it makes of the arguments, and how many forms were compiled for that."""
        kernel = compiled(self.function)
        self.capsys.readouterr()
        results = [kernel(argument) for argument in arguments]
        return results, self.capsys.readouterr().err.count(".triple ... ")

    def files(self, ending: str = "nb?") -> list[Path]:
        """Return its files in the cache."""
        return sorted(self.folder.glob(f"refkd-numba-*/*triple*.{ending}"))


@pytest.fixture
def kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Kernel]:
    """A kernel of the backend, with a cache of its own."""
    path = tmp_path / "probe.py"
    path.write_text("def triple(x):\n    return 3 * x\n")
    spec = importlib.util.spec_from_file_location("refkd_numba.probe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    cache_folder.cache_clear()
    yield Kernel(module.triple, tmp_path / "cache", capsys)
    cache_folder.cache_clear()


def test_every_kernel_has_a_place_of_its_own() -> None:
    # Of a closure Numba's key holds what it encloses, which for parts written in LLVM's
    # language is another in each process: it would be compiled in each.
    modules = pkgutil.walk_packages(refkd_numba.__path__, "refkd_numba.")
    found = {
        id(value): value
        for module in modules
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(getattr(value, "_cache", None), FunctionCache)
    }
    assert len(found) > 50
    places = {kernel._cache._impl.locator.get_disambiguator() for kernel in found.values()}
    assert len(places) == len(found)
    assert all(kernel.py_func.__closure__ is None for kernel in found.values())


def test_each_form_is_compiled_once(kernel: Kernel) -> None:
    assert kernel(2, 3, 0.5) == ([6, 9, 1.5], 2)
    assert kernel(4, 1.5) == ([12, 4.5], 0)
    assert kernel(4, 1j) == ([12, 3j], 1)
    assert kernel(0.5, 2, 1j) == ([1.5, 6, 3j], 0)


def test_an_array_that_is_read_only_has_the_form_of_others(kernel: Kernel) -> None:
    x = np.arange(3.0)
    read_only = x.copy()
    read_only.flags.writeable = False
    for order in ((x, read_only), (read_only, x), (read_only,)):
        results, count = kernel(*order)
        assert all((result == [0, 3, 6]).all() for result in results)
        assert count == (order[0] is x)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((numba, "__version__"), (llvmlite, "__version__"), (np, "__version__")),
        *((sys, "version"), (blas, "PROVIDER")),
    ],
)
def test_other_versions_and_another_blas_have_folders_of_their_own(
    owner: Any, name: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_folder()
    monkeypatch.setattr(owner, name, "another")
    cache_folder.cache_clear()
    assert cache_folder() != before
    assert cache_folder().parent == before.parent


def with_a_bit_flipped(contents: bytes, place: int) -> bytes:
    return contents[:place] + bytes([contents[place] ^ 4]) + contents[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing left": lambda contents: b"",
    "cut": lambda contents: contents[: len(contents) // 2],
    "zeros": lambda contents: bytes(len(contents)),
    "something else": lambda contents: b"cos\nnothing\n.",
    "something more": lambda contents: contents + b"\0",
    "a bit": lambda contents: with_a_bit_flipped(contents, len(contents) // 2),
    "the first bit": lambda contents: with_a_bit_flipped(contents, 0),
    "the last bit": lambda contents: with_a_bit_flipped(contents, len(contents) - 1),
}


def test_a_damaged_file_is_as_if_it_were_not_there(kernel: Kernel) -> None:
    assert kernel(2) == ([6], 1)
    (path,) = kernel.files()
    for words, damage in DAMAGES.items():
        path.write_bytes(damage(path.read_bytes()))
        assert kernel(2) == ([6], 1), words
        assert kernel(2) == ([6], 0), words
    path.unlink()
    assert kernel(2) == ([6], 1)
    assert kernel(2) == ([6], 0)
    path.unlink()
    path.mkdir()
    assert kernel(2) == ([6], 1)


@pytest.mark.slow
def test_whichever_bit_flips_the_form_is_compiled_again(kernel: Kernel) -> None:
    kernel(2, 0.5)
    whole = {path: path.read_bytes() for path in kernel.files()}
    rng = random.Random(0)
    for _ in range(100):
        path = rng.choice(list(whole))
        path.write_bytes(with_a_bit_flipped(whole[path], rng.randrange(len(whole[path]))))
        results, count = kernel(2, 0.5)
        assert results == [6, 1.5]
        assert count >= 1
        for other, contents in whole.items():
            other.write_bytes(contents)


def test_a_full_disk_is_no_trouble(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return open(file, mode, *others, **options)

    monkeypatch.setattr("builtins.open", refuse)
    assert kernel(2) == ([6], 1)
    assert kernel(2) == ([6], 1)
    assert list(kernel.folder.rglob("*.*")) == []


def test_threads_that_load_and_compile_at_once_do_not_disturb_each_other(kernel: Kernel) -> None:
    for _ in range(2):
        kernels = [compiled(kernel.function) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda kernel: kernel(2), kernels)) == [6] * 4


def test_forms_that_are_compiled_at_once_are_all_kept(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # each finds the folder as it was before the others
        patch.setattr(compile._CacheFile, "_read", lambda *_: None)
        assert kernel(2) == ([6], 1)
        assert kernel(0.5) == ([1.5], 1)
    assert kernel(2, 0.5) == ([6, 1.5], 0)


def test_a_file_of_another_form_is_none_of_this_one(kernel: Kernel) -> None:
    kernel(2)
    (path,) = kernel.files()
    kernel(0.5)
    (other,) = {*kernel.files()} - {path}
    shutil.copy(other, path)
    assert kernel(2) == ([6], 1)


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_waits_for_a_compilation_and_a_second_one_does_not(
    count: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        begun = []

        def interrupt(_: str) -> None:
            begun.append(True)
            for _ in range(count if len(begun) == 1 else 0):
                signal.raise_signal(signal.SIGINT)

        patch.setattr(compile, "_say", interrupt)
        with pytest.raises(KeyboardInterrupt):
            kernel(2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert kernel(2) == ([6], count - 1)


@pytest.mark.parametrize("closed", [True, False])
def test_where_nobody_reads_nothing_is_said(
    closed: bool, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    assert compiled(kernel.function)(2) == 6
    assert kernel.capsys.readouterr().out == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_another_thread_compiles_leaves_no_lock_behind() -> None:
    program = """
import os, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from numba.core.compiler_lock import global_compiler_lock as lock
import refkd_numba.compile
begun = threading.Event()
def hold():
    with lock:
        begun.set()
        time.sleep(0.3)
thread = threading.Thread(target=hold)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    os._exit(not lock._lock.acquire(timeout=10))
assert os.waitpid(child, 0)[1] == 0
thread.join()
"""
    run(program)


def test_kernels_that_are_not_optimised_work_too(tmp_path: Path) -> None:
    program = """
import warnings, numpy as np, numba
warnings.simplefilter("ignore", numba.core.errors.NumbaWarning)
from refkd.dispatch import use_backend
from refkd.ops import relu_forward
with use_backend("numba"):
    print(relu_forward(np.ones((2, 3), np.float32)).sum())
"""
    said = run(program, NUMBA_OPT="0", NUMBA_CACHE_DIR=str(tmp_path)).stdout
    assert said == "6.0\n"


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_disturb_each_other(package: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(probe, [package] * 4))
    assert {result for result, _ in found} == {"21"}
    assert probe(package) == ("21", 0)


def days_old(path: Path, days: float) -> Path:
    """Make a file look as if it had last been used so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def test_prune_deletes_what_nobody_has_used_for_sixty_days_and_nothing_else(
    kernel: Kernel,
) -> None:
    kernel(2)
    own, another, third = (
        cache_folder(),
        *(cache_folder().with_name(f"refkd-numba-{digit * 16}") for digit in "ab"),
    )
    old = [
        days_old(path, 61)
        for path in (own / "a.nbi", own / "tmp.b", another / "a.nbi", third / "a.nbc")
    ]
    kept = [
        *kernel.files(),
        days_old(own / "team.share-3-0123456789abcdef.nbi", 59),  # of an earlier source
        days_old(another / "b.nbi", 59),
        *(
            days_old(kernel.folder / name, 1000)
            for name in ("a.txt", "numba-mine/a.nbi", "another/a.nbc")
        ),
    ]
    empty = own.with_name("refkd-numba-new")
    empty.mkdir()
    prune_cache()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)
    assert not third.exists()
    assert empty.exists()


def test_what_is_used_stays(kernel: Kernel) -> None:
    kernel(2)
    for path in kernel.files():
        days_old(path, 100)
    assert kernel(2) == ([6], 0)
    prune_cache()
    assert kernel(2) == ([6], 0)
    for path in kernel.files():
        days_old(path, 100)
    prune_cache()
    assert kernel.files() == []
    assert kernel(2) == ([6], 1)


def test_the_time_of_use_is_written_once_a_day(kernel: Kernel) -> None:
    kernel(2)
    for days, is_written in ((0.9, False), (1.1, True)):
        before = {days_old(path, days): path.stat().st_mtime for path in kernel.files()}
        assert kernel(2) == ([6], 0)
        assert all((path.stat().st_mtime > then) is is_written for path, then in before.items())


def test_a_file_whose_time_cannot_be_written_is_used_all_the_same(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    kernel(2)
    for path in kernel.files():
        days_old(path, 100)
    monkeypatch.setattr(os, "utime", refuse)
    assert kernel(2) == ([6], 0)


def test_prune_of_a_cache_that_is_not_there_is_no_trouble(kernel: Kernel) -> None:
    prune_cache()
    assert not kernel.folder.exists()


def test_the_cache_of_a_user_is_where_users_caches_are(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, tmp_path: Path
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache_folder.cache_clear()
    if sys.platform.startswith("linux"):
        assert cache_folder().parent == tmp_path / "home" / "refkd"
