"""What ``python -m bench gpu`` measures, with the emulation in the place of a GPU: its checks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import refkd_cupy
from bench.workloads import kernel_families as families
from bench.workloads.kernels import Kernel
from refkd import dispatch
from tests.backends import cuda_host as host

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")


@pytest.fixture
def measuring() -> Iterator[Any]:
    """Let modules that measure on a GPU be imported, with the host in the place of CuPy."""
    cupy = ModuleType("cupy")
    vars(cupy).update(from_dlpack=lambda x: host.asarray(x.detach().numpy()))
    vars(cupy).update({name: getattr(np, name) for name in ("arange", "float32", "full", "nan")})
    vars(cupy).update(asarray=host.asarray, asnumpy=np.asarray)
    backend = host.host_backend(*refkd_cupy._MODULES)
    names = [f"bench.gpu.{name}" for name in ("kernels", "timing", "training")]
    loaded = {name: sys.modules.pop(name) for name in ("cupy", *names) if name in sys.modules}
    sys.modules["cupy"] = cupy
    try:
        with mock.patch.dict(dispatch._loaded, {"cupy": backend}), host.on_the_host():
            yield lambda name: importlib.import_module(f"bench.gpu.{name}")
    finally:
        for name in ("cupy", *names):
            sys.modules.pop(name, None)
        sys.modules.update(loaded)


SMALL = (
    *families.softmax_kd(33, 12),
    *families.adam(1003),
    *families.batch_norm(2, 8, 4, 3),
    *families.max_pool2d(2, 4, 7, 7, kernel_size=3, stride=2, padding=1),
    *families.attention(1, 2, 17, 8),
    *families.conv2d(2, 4, 6, 8, 3, 1),
)


def drawn(kernel: Kernel) -> dict[str, Any]:
    (arrays, *_) = kernel.ring("contiguous", "float32")
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("kernel", SMALL, ids=lambda kernel: kernel.name)
def test_every_result_of_a_kernel_is_compared(measuring: Any, kernel: Kernel) -> None:
    kernels, tensors = measuring("kernels"), drawn(kernel)
    exact = kernels._exact(kernel, tensors)
    assert set(exact) == set(kernel.writes)
    with dispatch.use_backend("cupy"):
        assert kernels._error(kernel, tensors, exact) <= kernel.tolerance
        for name, array in exact.items():
            wrong = exact | {name: array + 1}
            assert kernels._error(kernel, tensors, wrong) > kernel.tolerance, name


def test_weights_are_in_c_order_as_networks_keep_them(measuring: Any) -> None:
    kernel = families.conv2d(2, 4, 6, 8, 3, 1)[0]
    given: dict[str, Any] = {}
    with mock.patch.object(sys.modules["cupy"], "from_dlpack", lambda x: x):
        call = measuring("kernels")._refkd_call(kernel, drawn(kernel))
        given = dict(zip(("x", "weight"), call.args, strict=False))
    assert given["x"].is_contiguous(memory_format=torch.channels_last)
    assert given["weight"].is_contiguous()


def test_without_memory_for_the_peer_refkd_s_times_stay(measuring: Any) -> None:
    peer = mock.Mock()
    peer.steps.side_effect = torch.OutOfMemoryError("no more memory")
    training = measuring("training")
    with mock.patch.object(training, "_milliseconds", return_value=1.0):
        found = list(training._measure_peer(peer, "vgg", 0.5))
    assert len(found) == 4
    assert all("no more memory" in words for part in found for words in part.values())


def test_a_step_that_is_not_captured_is_not_measured_as_one(measuring: Any) -> None:
    data = SimpleNamespace(
        images=torch.zeros((4, 784), dtype=torch.uint8),
        labels=torch.zeros(4, dtype=torch.int64),
        rows=[],
        batch_size=4,
    )
    side = measuring("training")._Refkd("mlp_student_b32", data)
    failing = mock.Mock(side_effect=RuntimeError("not permitted"))
    with dispatch.use_backend("cupy"):
        assert side.verified(captured=True).keys() == side.verified(captured=False).keys()
        with (
            mock.patch.object(host.host_device, "capture", failing),
            pytest.raises(RuntimeError, match=r"the step was not captured: .*not permitted"),
        ):
            side.verified(captured=True)
