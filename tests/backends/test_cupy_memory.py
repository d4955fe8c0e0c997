"""Devices, pools and workspaces of the CuPy backend, asked of a CuPy that is made up."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import refkd_cupy
from refkd_cupy import settings
from tests.backends import cuda_host as host


class Pool:
    """Memory that is counted, taken from another pool where there is one."""

    def __init__(self, allocator: Callable[[int], Any] | None = None) -> None:
        self.allocator, self.taken, self.limit = allocator, 0, float("inf")
        self.freed = 0

    def malloc(self, size: int) -> None:
        if self.taken + size > self.limit:
            raise MemoryError("the limit")
        if self.allocator is not None:
            self.allocator(size)
        self.taken += size

    def free_all_blocks(self) -> None:
        self.freed += 1

    def set_limit(self, size: float | None = None, fraction: float | None = None) -> None:
        self.limit = 1000 * fraction if size is None else size


class Stream:
    """A stream at an address that the next one has as well."""

    ptr = 77
    current: list[Stream]

    def __init__(self, **_: Any) -> None:
        self.waited = False

    def __enter__(self) -> None:
        self.current.append(self)

    def __exit__(self, *_: object) -> None:
        self.current.pop()

    def synchronize(self) -> None:
        self.waited = True

    def begin_capture(self) -> None:
        pass

    def end_capture(self) -> Any:
        return mock.Mock()


class Cuda:
    """``cupy.cuda`` of a machine with two devices."""

    MemoryPool, Stream = Pool, Stream

    def __init__(self) -> None:
        self.number, self.malloc = 0, None
        Stream.current = [Stream()]
        self.runtime = types.SimpleNamespace(getDevice=lambda: self.number)

    def Device(self, number: int | None = None) -> Any:
        newer = (self.number if number is None else number) == 0
        return types.SimpleNamespace(
            compute_capability="90" if newer else "75",
            attributes={
                "MultiProcessorCount": 132 if newer else 40,
                "MaxSharedMemoryPerBlockOptin": 232448 if newer else 65536,
            },
            synchronize=lambda: None,
        )

    @contextmanager
    def using_allocator(self, malloc: Any) -> Iterator[None]:
        self.malloc = malloc
        yield

    def get_current_stream(self) -> Stream:
        return Stream.current[-1]

    def set_pinned_memory_allocator(self, malloc: Any) -> None:
        pass


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("cupy")
    module.cuda, module.ndarray, pool = Cuda(), np.ndarray, Pool()
    module.get_default_memory_pool = lambda: pool
    module.get_default_pinned_memory_pool = Pool
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def device(cupy: Any) -> Any:
    """The module of the device, loaded apart from that of a real CuPy."""
    path = Path(refkd_cupy.__file__).with_name("device.py")
    spec = importlib.util.spec_from_file_location("device_of_a_made_up_cupy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def blas(device: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = host.launchers("blas")["blas"]
    handle = module._Handle.__new__(module._Handle)
    handle.value, handle.workspaces, handle.stream, handle.tf32 = None, {}, None, None
    monkeypatch.setattr(module, "_handles", {0: handle})
    monkeypatch.setattr(module, "_library", mock.MagicMock())
    monkeypatch.setattr(module, "check", lambda name, status: None)
    monkeypatch.setitem(sys.modules, "refkd_cupy.blas", module)
    monkeypatch.setattr(refkd_cupy, "blas", module, raising=False)
    return module


def properties(device: Any) -> tuple[Any, ...]:
    return device.multiprocessors(), device.shared_limit(), device.supports_tensor_cores()


def test_properties_are_those_of_the_current_device(cupy: Any, device: Any) -> None:
    assert properties(device) == (132, 232448, True)
    cupy.cuda.number = 1
    assert properties(device) == (40, 65536, False)
    cupy.cuda.number = 0
    assert properties(device) == (132, 232448, True)


def test_what_is_kept_for_pixels_lies_on_the_current_device() -> None:
    pixels = host.launchers("pixels")["pixels"]
    pixels._statistics.cache_clear()
    images = host.asarray(np.zeros((1, 2, 3, 3), np.uint8))
    options = {"scale": 1 / 255, "mean": (0.5,), "std": (0.25,), "dtype": np.dtype("f")}
    lasting = mock.Mock(wraps=host.lasting)
    with mock.patch.multiple(host.host_device, lasting=lasting, launch=mock.DEFAULT):
        for number in (0, 1, 0, 1):
            with mock.patch.object(host.host_device, "number", return_value=number):
                pixels.pixels_to_float(images, **options)
    assert lasting.call_count == 2 * 2  # mean and std


@pytest.mark.parametrize(("limit", "most"), [({"fraction": 0.5}, 500), ({"size": 300}, 300)])
def test_the_limit_holds_for_graphs_too(
    cupy: Any, device: Any, blas: Any, limit: dict[str, Any], most: int
) -> None:
    with mock.patch.object(settings, "memory_limit", limit):
        device.limit_memory()
    common = cupy.get_default_memory_pool()
    for size in (most // 2, most - most // 2):
        device.capture(lambda: None, lambda size=size: cupy.cuda.malloc(size))
    assert common.taken == most
    assert common.freed  # what others have left there must not count
    with pytest.raises(MemoryError):
        device.capture(lambda: None, lambda: cupy.cuda.malloc(1))


def test_the_memory_of_a_graph_is_the_stream_s_that_plays_it(
    cupy: Any, device: Any, blas: Any
) -> None:
    common, player, streams = cupy.get_default_memory_pool(), cupy.cuda.get_current_stream(), []
    common.allocator = lambda size: streams.append(cupy.cuda.get_current_stream())

    def record() -> None:
        streams.append(cupy.cuda.get_current_stream())
        cupy.cuda.malloc(1)

    device.capture(lambda: None, record)
    assert streams[0] is not player
    assert streams[1] is player


def test_what_a_refused_capture_has_queued_is_done_before_its_memory_is_anybody_s(
    cupy: Any, device: Any, blas: Any
) -> None:
    streams = []

    def prepare() -> None:
        streams.append(cupy.cuda.get_current_stream())
        raise ValueError("not this step")

    with pytest.raises(ValueError, match="not this step"):
        device.capture(prepare, lambda: None)
    assert streams[0].waited


def test_a_graph_owns_its_workspace(device: Any, blas: Any) -> None:
    handle = blas._handles[0]
    owned = []

    def product() -> None:
        handle.follow(Stream.ptr)
        owned.append(handle.workspaces[Stream.ptr])

    _, play = device.capture(lambda: None, product)
    assert any(kept is owned[0] for kept in play.__defaults__[0])
    assert not handle.workspaces
    device.capture(lambda: None, product)
    assert owned[1] is not owned[0]
    chosen = blas._library().cublasSetWorkspace_v2.call_args_list
    assert [call.args[1] for call in chosen] == [x.ctypes.data for x in owned]


def test_a_capture_that_fails_leaves_no_workspace(device: Any, blas: Any) -> None:
    def failing() -> None:
        blas._handles[0].follow(Stream.ptr)
        raise RuntimeError("operation not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        device.capture(lambda: None, failing)
    assert not blas._handles[0].workspaces


def test_what_later_calls_use_lies_in_no_graph_s_memory(cupy: Any, device: Any) -> None:
    allocators: list[Any] = []
    cupy.asarray = lambda x: allocators.append(cupy.cuda.malloc)
    with cupy.cuda.using_allocator(Pool().malloc):
        device.lasting(np.zeros(3))
    assert allocators == [cupy.get_default_memory_pool().malloc]
