"""The CuPy backend on a GPU: its kernels against the reference in float64. Else skipped.

``test_conformance.py`` asks more of every backend; this is what is asked in a minute, and of the
kernels that a device of that size would not choose. ``test_cupy_launched.py`` shows that they are
all there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, use_backend
from refkd.distill import Batch
from refkd.errors import NonFiniteError
from refkd.train.optim import SGD, Adam
from refkd.train.step import EagerStep
from tests.backends.calls import LAYOUTS, Call, calls, pair_of
from tests.backends.checks import check_drawn, check_not_finite, planted
from tests.backends.drawn import PAIRS
from tests.backends.judge import check_accuracy, in_bits, judged_calls
from tests.backends.override import BACKENDS, Override, overrides
from tests.backends.trained import trained
from tests.backends.ways import check_way, ways

if "cupy" not in BACKENDS:
    pytest.skip("the device part needs CuPy and a GPU", allow_module_level=True)

import cupy

from refkd_cupy import device
from refkd_cupy import settings as backend_settings
from refkd_cupy.step import compile_step

_MOST_ENTRIES = 40_000
OVERRIDES = [override for override in overrides() if override.backend.name == "cupy"]

each_override = pytest.mark.parametrize("override", OVERRIDES, ids=str)


def is_small(call: Call) -> bool:
    return sum(array.size for array in call.arrays.values()) <= _MOST_ENTRIES


@each_override
def test_float32_is_nearly_as_accurate_as_the_reference(override: Override) -> None:
    for i, judged in enumerate(judged_calls(override.kernel)):
        check_accuracy(override, judged, "C")
        check_accuracy(override, judged, list(LAYOUTS)[1 + i % (len(LAYOUTS) - 1)])


@each_override
def test_whatever_way_a_launcher_chooses_gives_the_right_results(override: Override) -> None:
    for way in ways(override.kernel).values():
        for judged in judged_calls(override.kernel):
            check_way(override, judged, way)


@each_override
def test_the_same_call_gives_the_same_bits(override: Override) -> None:
    for call in calls(override.kernel):
        first, again = (in_bits(override.results(call)) for _ in range(2))
        assert first == again, call


@each_override
def test_nan_and_infinity_come_out_where_the_reference_has_them(override: Override) -> None:
    if override.kernel.startswith(("conv2d", "linear")):
        return  # zeros beyond a border, or a tile's, are multiplied or not: ∞ may come to NaN
    small = list(filter(is_small, calls(override.kernel)))
    rng = np.random.default_rng(0)
    for call in small[:: max(1, len(small) // 4)]:
        for name in call.floating:
            if call.arrays[name].size:
                for special in (np.nan, np.inf):
                    check_not_finite(override, planted(call, name, special, rng))


@pytest.mark.parametrize("override", [o for o in OVERRIDES if pair_of(o.kernel) in PAIRS], ids=str)
@settings(max_examples=6, derandomize=True, database=None)
@given(data=st.data())
def test_drawn_calls_give_what_the_reference_gives(override: Override, data: st.DataObject) -> None:
    check_drawn(override, data)


def test_an_array_of_another_kind_is_refused() -> None:
    x = cupy.zeros((4, 6), "float32")
    number = np.int64(24)
    with pytest.raises(Exception, match="must be C-contiguous"):
        device.launch("activation", "relu_forward", 1, 32, [x.T, x, number])
    with pytest.raises(Exception, match=r"must be a numpy\.int64 scalar"):
        device.launch("activation", "relu_forward", 1, 32, [x, x, 24])


@pytest.mark.parametrize("tf32", [False, True])
def test_matrix_products_have_the_precision_that_is_asked_for(tf32: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((256, 256)) for _ in range(2))
    out = cupy.empty((256, 256), "float32")
    before = backend_settings.tf32
    backend_settings.tf32 = tf32
    try:
        device.gemm(cupy.asarray(a, "float32"), cupy.asarray(b, "float32"), out)
    finally:
        backend_settings.tf32 = before
    error = np.abs(cupy.asnumpy(out) - a @ b).max()
    assert (1e-3 < error < 0.5) if tf32 else error < 2e-4


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.01)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "kd", "vgg"])
def test_a_captured_step_does_what_the_kernels_do(name: str, optimizer: Any) -> None:
    captured = trained(name, optimizer, compile_step)
    eager = trained(name, optimizer, EagerStep)
    assert not captured[-1].reason_against
    assert captured[0] == eager[0]
    for group, expected in zip(captured[1:4], eager[1:4], strict=True):
        assert group.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(*map(cupy.asnumpy, (group[key], array)), key)


def test_a_captured_step_draws_its_dropout() -> None:
    one, other = (trained("dropout", SGD(0.1), compile_step) for _ in range(2))
    assert not one[-1].reason_against
    assert one[0] == other[0]
    assert len({terms["loss"] for terms in one[0]}) == len(one[0])


def test_a_captured_step_that_is_refused_writes_nothing() -> None:
    _, params, state, moments, step = trained("vgg", Adam(0.01), compile_step)
    before = {key: cupy.asnumpy(array) for key, array in (params | state | moments).items()}
    images = cupy.full((20, 3, 16, 16), cupy.nan, "float32")
    batch = Batch(images, cupy.zeros(20, "int64"), None, 20)
    with use_backend("cupy"), pytest.raises(NonFiniteError, match="loss term 'loss' is nan"):
        step(params, state, moments, batch, np.random.default_rng(0), lr=0.05, where="here")
    for key, array in (params | state | moments).items():
        np.testing.assert_array_equal(cupy.asnumpy(array), before[key], key)


def test_the_backend_says_that_it_works() -> None:
    backend = get_backend("cupy")
    assert backend.unavailable_reason is None
    x = backend.asarray(np.arange(6.0).reshape(2, 3))
    backend.synchronize()
    np.testing.assert_array_equal(backend.to_numpy(x), np.arange(6.0).reshape(2, 3))
