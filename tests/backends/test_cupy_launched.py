"""Which kernels the tests on a device launch: every one of every source, on a device of any size.

``test_cupy_device.py`` runs on GPUs only; here its calls go as far as the launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import refkd_cupy
from refkd import dispatch
from refkd.train.optim import SGD, Adam
from tests.backends import calls as calls_module
from tests.backends import cuda_host as host
from tests.backends.calls import PARTS, Call, calls, make
from tests.backends.override import Override
from tests.backends.trained import trained
from tests.backends.ways import ways

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

BACKEND = host.host_backend(*refkd_cupy._MODULES)
step_module = host.launchers("step")["step"]
STEPS = (("dropout", SGD(0.1)), ("vgg", Adam(0.01)))


def declared() -> set[tuple[str, str]]:
    """Return source and name of every kernel."""
    stems = [path.stem for path in Path(refkd_cupy.__file__).parent.glob("*.cu")]
    return {(stem, name) for stem in stems for name in host.kernels_of(stem)}


@contextmanager
def launches() -> Iterator[set[tuple[str, str]]]:
    """Note source and name of what is launched. Nothing is computed: all results are 0."""
    found: set[tuple[str, str]] = set()

    def note(stem: str, name: str, *_: Any, **__: Any) -> None:
        found.add((stem, name))

    def empty(shape: Any, dtype: Any = np.float32) -> Any:
        return np.zeros(shape, dtype)

    def gemm(*_: Any, **__: Any) -> None:
        pass

    with (
        mock.patch.dict(dispatch._loaded, {BACKEND.name: BACKEND}),
        host.on_the_host(),
        mock.patch.multiple(host.host_device, launch=note, gemm=gemm, empty=empty),
        mock.patch.object(host, "empty", empty),
    ):
        yield found


def make_all(kernel: str) -> None:
    """Make the calls of an override in all ways."""
    reference, override = calls_module.reference, Override(BACKEND, kernel)

    def outputs(call: Call) -> tuple[Any, ...]:
        """Return arrays such as the reference returns, for a backward to take."""
        results = make(BACKEND.kernels[call.kernel], override.moved(call))
        return reference(call) if results[0] is NotImplemented else results

    with mock.patch.object(calls_module, "reference", outputs):
        moved = [override.moved(call) for call in calls(kernel)]
    for way in ways(kernel).values():
        with way.around():
            for call in moved:
                make(BACKEND.kernels[kernel], call)


def test_the_tests_on_a_device_launch_every_kernel() -> None:
    with launches() as found:
        for kernel in BACKEND.kernels:
            if kernel not in PARTS:  # which launch what the whole backward does
                make_all(kernel)
        for name, optimizer in STEPS:
            trained(name, optimizer, step_module.compile_step, steps=1)
    assert sorted(declared() - found) == []
