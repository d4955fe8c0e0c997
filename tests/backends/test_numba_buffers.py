"""Recycled memory: what somebody refers to is never overwritten, and the rest is used again."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refkd.dispatch import available_backends

if available_backends().get("numba"):
    pytest.skip(str(available_backends()["numba"]), allow_module_level=True)

from refkd_numba import buffers

# Sizes that share blocks, that nearly do, and that are too small to be recycled.
SHAPES = [(4096,), (64, 64), (4200,), (2, 3, 40, 20), (5000,), (7, 1000), (100,), (0, 5), ()]
DTYPES = ["float32", "float64", "int64", "uint8"]


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pool with nothing in it."""
    pool = buffers._Pool()
    monkeypatch.setattr(buffers, "_pool", pool)
    return pool


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def through_torch(array: Any) -> Any:
    import torch

    if not array.flags.writeable:
        raise ValueError("PyTorch warns of arrays that are read-only")
    return torch.from_numpy(array)


class _OfAnotherLibrary:
    """An array as a library sees it that knows NumPy's interface and no more."""

    def __init__(self, array: Any) -> None:
        self.held, self.__array_interface__ = array, array.__array_interface__


WAYS_TO_REFER: dict[str, Callable[[Any], Any]] = {
    "itself": lambda a: a,
    "a view": lambda a: a[...],
    "a part": lambda a: a[1:],
    "its last row": lambda a: a[-1:],
    "every other entry, backwards": lambda a: a[::-2],
    "the transpose": lambda a: a.T,
    "other axes": lambda a: np.moveaxis(a, 0, -1)[None],
    "other numbers": lambda a: a.view(np.uint8),
    "one axis": lambda a: a.reshape(-1),
    "the base": lambda a: a.base,
    "a broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(a.reshape(-1), 3),
    "strides by hand": lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides),
    "a subclass": lambda a: a.view(np.matrix) if a.ndim == 2 else a.view(np.ma.MaskedArray),
    "a memoryview": memoryview,
    "bytes of a memoryview": lambda a: memoryview(a).cast("B"),
    "an array of its memory": lambda a: np.frombuffer(a, np.uint8),
    "a buffer for a pickle": pickle.PickleBuffer,
    "DLPack": np.from_dlpack,
    "the interface": lambda a: np.asarray(_OfAnotherLibrary(a)),
    "ctypes": lambda a: (ctypes.c_char * a.nbytes).from_buffer(a),
    "a pointer": lambda a: a.ctypes.data_as(ctypes.c_void_p),
    "an iterator": lambda a: a.flat,
    "a list of views": lambda a: [a[i : i + 1] for i in range(3)],
}
if importlib.util.find_spec("torch") is not None:
    WAYS_TO_REFER["a tensor"] = through_torch


class Held(NamedTuple):
    """What somebody holds, where its memory is, and what must be in it."""

    reference: Any
    address: int
    contents: bytes


class HoldEverything(RuleBasedStateMachine):
    """Allocates, refers in any way, refers to what refers, forgets; looks at all that is held."""

    def __init__(self) -> None:
        super().__init__()
        self.previous, buffers._pool = buffers._pool, buffers._Pool()
        self.held: list[Held] = []
        self.count = 0

    def teardown(self) -> None:
        buffers._pool = self.previous

    @rule(shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES))
    def allocate(self, shape: tuple[int, ...], dtype: str) -> None:
        array = buffers.empty(shape, dtype)
        assert array.shape == shape
        assert array.dtype == dtype
        self.count += 1
        array.reshape(-1).view(np.uint8)[...] = self.count % 256
        self.held.append(Held(array, address(array), array.tobytes()))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), way=st.sampled_from(sorted(WAYS_TO_REFER)), only=st.booleans())
    def refer(self, data: st.DataObject, way: str, only: bool) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        reference, place, contents = self.held[index]
        if not isinstance(reference, np.ndarray) or not reference.size:
            return
        try:
            found = WAYS_TO_REFER[way](reference)
        except (TypeError, ValueError, BufferError, IndexError):
            return  # an array of another kind has no such view
        is_copy = isinstance(found, np.ndarray) and not np.may_share_memory(found, reference)
        if found is None or is_copy:
            return  # what owns its memory has no base, and one axis of a strided array is a copy
        if only:
            del self.held[index]
        if len(contents) > 1000:  # the rest has memory of its own
            self.held.append(Held(found, place, contents))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @invariant()
    def what_is_held_is_as_it_was(self) -> None:
        for _, place, contents in self.held:
            assert ctypes.string_at(place, len(contents)) == contents


TestHoldEverything = HoldEverything.TestCase
TestHoldEverything.settings = settings(deadline=None, max_examples=20, stateful_step_count=40)


@pytest.mark.parametrize("way", WAYS_TO_REFER)
def test_memory_is_used_again_once_nobody_refers_to_it_and_not_before(way: str, pool: Any) -> None:
    array = buffers.empty((64, 64))
    place = address(array)
    reference = WAYS_TO_REFER[way](array)
    del array
    other = buffers.empty((64, 64))
    assert address(other) != place
    del reference
    gc.collect()
    if way != "the base":  # which is given back to the system
        assert [len(free) for free in pool.free.values()] == [1]
        assert address(buffers.empty((64, 64))) == place


def test_sizes_that_differ_little_share_memory_and_others_do_not(pool: Any) -> None:
    place = address(buffers.empty((10_000,)))
    assert address(buffers.empty((9_990,))) == place
    assert address(buffers.empty((5_000,), "float64")) == place
    assert {address(buffers.empty((n,))) for n in (8_000, 20_000)}.isdisjoint({place})
    waste = [buffers.empty((n,), "uint8").base.nbytes / n for n in range(1 << 14, 1 << 17, 999)]
    assert max(waste) < 1.13


@pytest.mark.parametrize("shape", [(3, 5, 8, 9), (4096,), (7, 600)])
def test_arrays_are_aligned_writable_and_in_c_order(shape: tuple[int, ...]) -> None:
    array = buffers.empty(shape, "float64")
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert address(buffers.empty((4096, *shape))) % 64 == 0


def test_images_have_their_channels_last() -> None:
    images = buffers.empty_images((2, 3, 50, 60))
    assert images.shape == (2, 3, 50, 60)
    assert images.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("step", [1, -1, 2])
def test_a_like_array_has_its_axes_in_the_order_of_memory(axes: Any, step: int) -> None:
    x = np.zeros((30, 40, 50), np.float32).transpose(axes)[::step]
    y = buffers.empty_like(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.strides == np.empty_like(x).strides
    assert buffers.empty_like(x, "float64").dtype == "float64"


def test_a_block_that_nobody_asked_for_in_a_long_time_is_given_back(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "_KEEP", 100)
    buffers.empty((100_000,))
    long_held = buffers.empty((200_000,))
    for _ in range(300):
        buffers.empty((5_000,))
    assert [len(free) for free in pool.free.values()] == [0, 0, 1]
    assert len(pool.lent) == 1
    place = address(long_held)
    del long_held
    assert address(buffers.empty((200_000,))) == place


def test_what_another_thread_takes_while_it_is_looked_at_is_not_given_back(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contended(deque[Any]):
        def __getitem__(self, index: Any) -> Any:
            block = super().__getitem__(index)
            self.clear()
            return block

    buffers.empty((100_000,))
    pool.free = {size: Contended(blocks) for size, blocks in pool.free.items()}
    monkeypatch.setattr(buffers, "_KEEP", -1)  # all are unused
    pool._drop_unused()
    assert [len(free) for free in pool.free.values()] == [0]


def test_what_was_returned_last_is_lent_first() -> None:
    arrays = [buffers.empty((64, 64)) for _ in range(5)]
    places = [address(array) for array in arrays]
    while arrays:
        arrays.pop()
    arrays = [buffers.empty((64, 64)) for _ in range(5)]
    assert [address(array) for array in arrays] == places


@pytest.mark.parametrize("keep", [2, buffers._KEEP])
def test_two_threads_never_get_the_same_memory(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_KEEP", keep)
    wrong: list[Any] = []

    def work(own: int) -> None:
        try:
            for number in range(5_000):
                arrays = [buffers.empty((5_000,), np.int64) for _ in range(number % 3 + 1)]
                for array in arrays:
                    array[::100] = own
                wrong.extend(own for array in arrays if not (array[::100] == own).all())
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.fixture
def interrupted() -> Iterator[list[Any]]:
    """What a signal handler has allocated, wherever the program happened to be."""
    allocated: list[Any] = []

    def allocate(*_: Any) -> None:
        array = buffers.empty((5_000,), np.int64)
        array[...] = len(allocated)
        allocated.append(array)

    previous = signal.signal(signal.SIGALRM, allocate)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    yield allocated
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such signal")
def test_what_a_signal_handler_allocates_is_its_own(interrupted: list[Any]) -> None:
    for number in range(1000):
        array = buffers.empty((5_000,), np.int64)
        array[...] = -number
        assert (array == -number).all()
    assert interrupted
    for number, array in enumerate(interrupted.copy()):
        assert (array == number).all()


def test_a_finaliser_that_allocates_while_memory_is_allocated_gets_its_own() -> None:
    found: list[bool] = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            array = buffers.empty((5_000,), np.int64)
            array[...] = 1
            found.append(bool((array == 1).all()))

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Cycle()
            arrays = [buffers.empty((5_000,), np.int64) for _ in range(2)]
            for number, array in enumerate(arrays):
                array[...] = number
            assert all((array == number).all() for number, array in enumerate(arrays))
    finally:
        gc.set_threshold(*thresholds)
    assert found
    assert all(found)


def test_an_array_that_is_there_at_exit_is_no_trouble() -> None:
    # Modules are taken down one after another, and os, which is older, after buffers.
    program = "import os; from refkd_numba import buffers; os.held = buffers.empty((64, 64))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
