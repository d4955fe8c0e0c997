"""The CuPy backend without a GPU: every launcher and kernel, run on the host by an emulation.

What is asked of them is what ``test_conformance.py`` asks of a backend that is installed, on
fewer calls and layouts; ``-m slow`` has them all. ``cuda_host.h`` says what the emulation sees.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refkd_cupy
from refkd import dispatch
from tests.backends import cuda_host as host
from tests.backends.calls import LAYOUTS, Call, calls, pair_of, reference
from tests.backends.checks import check_drawn, check_mistakes, check_not_finite, planted
from tests.backends.drawn import PAIRS
from tests.backends.judge import Judged, check_accuracy, in_bits, judge, judged_calls
from tests.backends.override import Override

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

_ROW_LOSSES = ("softmax", "log_softmax")
_MOST_ENTRIES = 40_000  # of all arrays of a call, in the default suite
_FEW_ENTRIES = 2_000  # of a call that is made in more than one way

BACKEND = host.host_backend(*refkd_cupy._MODULES)
OVERRIDES = [Override(BACKEND, kernel) for kernel in sorted(BACKEND.kernels)]

each_override = pytest.mark.parametrize("override", OVERRIDES, ids=str)


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with mock.patch.dict(dispatch._loaded, {BACKEND.name: BACKEND}), host.on_the_host():
        yield


def entries(call: Call) -> int:
    return sum(array.size for array in call.arrays.values())


@functools.cache
def small_calls(kernel: str) -> list[Call]:
    return [call for call in calls(kernel) if entries(call) <= _MOST_ENTRIES]


@functools.lru_cache(maxsize=1)
def judged_small_calls(kernel: str) -> list[Judged]:
    small = small_calls(kernel)
    labels = {call.label for call in small}
    return judge([small, *(calls(kernel, seed=seed, labels=labels) for seed in (1, 2))])


@each_override
def test_an_override_runs_on_some_call(override: Override) -> None:
    assert any(override.runs_on(call) for call in calls(override.kernel, large=False))


@each_override
def test_float32_is_nearly_as_accurate_as_the_reference(override: Override) -> None:
    layouts = itertools.cycle(LAYOUTS)
    for judged in judged_small_calls(override.kernel):
        for layout in itertools.islice(layouts, 1 if entries(judged.call) > _FEW_ENTRIES else 2):
            check_accuracy(override, judged, layout)


@pytest.mark.slow
@each_override
def test_float32_is_nearly_as_accurate_on_every_call_in_every_layout(override: Override) -> None:
    for judged in judged_calls(override.kernel):
        for layout in LAYOUTS:
            check_accuracy(override, judged, layout)


@each_override
def test_other_dtypes_are_the_reference_s(override: Override) -> None:
    call = calls(override.kernel, "float64", large=False)[0]
    for a, e in zip(override.results(call), reference(call), strict=True):
        if e is not None:
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9, err_msg=str(call))


@each_override
def test_arguments_stay_as_they_are_and_the_same_call_gives_the_same_bits(
    override: Override,
) -> None:
    small = small_calls(override.kernel)
    for call in small[:: max(1, len(small) // 8)]:
        moved = override.moved(call)
        outputs = override.make(moved)
        if outputs and outputs[0] is next(iter(moved.arrays.values())):
            continue  # an update
        for name, array in moved.arrays.items():
            np.testing.assert_array_equal(array, call.arguments[name], str(call))
        arrays = [output for output in outputs if output is not None]
        for i, output in enumerate(arrays):
            for other in (*moved.arrays.values(), *arrays[:i]):
                assert not np.may_share_memory(output, other), call
        again = in_bits(override.results(call))
        assert in_bits([None if o is None else np.asarray(o) for o in outputs]) == again, call


@each_override
def test_nan_and_infinity_come_out_where_the_reference_has_them(override: Override) -> None:
    if override.kernel.startswith(("conv2d", "linear")):
        return  # zeros beyond a border, or a tile's, are multiplied or not: ∞ may come to NaN
    small, specials = small_calls(override.kernel), itertools.cycle((np.nan, np.inf, -np.inf))
    rng = np.random.default_rng(0)
    for call in small[:: max(1, len(small) // 8)]:
        for name in call.floating:
            for special in itertools.islice(specials, 1 if entries(call) > _FEW_ENTRIES else 3):
                if call.arrays[name].size:
                    check_not_finite(override, planted(call, name, special, rng))


@each_override
def test_a_mistake_comes_to_what_the_reference_makes_of_it(override: Override) -> None:
    check_mistakes(override, calls(override.kernel, large=False)[::8])


@pytest.mark.slow
@each_override
def test_any_mistake_comes_to_what_the_reference_makes_of_it(override: Override) -> None:
    check_mistakes(override, calls(override.kernel, large=False))


drawn_overrides = pytest.mark.parametrize(
    "override", [o for o in OVERRIDES if pair_of(o.kernel) in PAIRS], ids=str
)


@drawn_overrides
@settings(max_examples=4, derandomize=True, database=None)
@given(data=st.data())
def test_drawn_calls_give_what_the_reference_gives(override: Override, data: st.DataObject) -> None:
    check_drawn(override, data)


@pytest.mark.slow
@drawn_overrides
@settings(max_examples=150, derandomize=True, database=None)
@given(data=st.data())
def test_many_drawn_calls_give_what_the_reference_gives(
    override: Override, data: st.DataObject
) -> None:
    check_drawn(override, data)


@pytest.mark.parametrize("team", ["8", "32", "block"])
@pytest.mark.parametrize(
    "kernel", [k for k in sorted(BACKEND.kernels) if k.startswith(_ROW_LOSSES)]
)
def test_rows_are_computed_alike_by_lanes_and_by_blocks(kernel: str, team: str) -> None:
    limits = {"8": (1 << 20, 1 << 20), "32": (0, 1 << 20), "block": (0, 0)}[team]
    rows = host.launchers("rows")["rows"]
    override = Override(BACKEND, kernel)
    with mock.patch.multiple(rows, _NARROW=limits[0], _WIDE=limits[1], _FEW=0):
        for judged in judged_small_calls(kernel)[::3]:
            check_accuracy(override, judged, "C")


def test_every_module_of_launchers_is_in_the_backend() -> None:
    folder = Path(refkd_cupy.__file__).parent
    launching = {p.stem for p in folder.glob("*.py") if "\nKERNELS = {" in p.read_text("utf-8")}
    assert launching == set(refkd_cupy._MODULES)


def test_losses_of_a_cotangent_on_the_device_do_not_fetch_it() -> None:
    kernels = BACKEND.kernels
    rng = np.random.default_rng(0)
    log_q = host.asarray(rng.standard_normal((5, 7)).astype("f"))
    labels = host.asarray(rng.integers(7, size=5))
    dloss = host.asarray(np.float32(0.5))
    name = "softmax_cross_entropy_backward"
    given: Any = kernels[name](dloss, log_q, labels)
    np.testing.assert_array_equal(given, kernels[name](0.5, log_q, labels))
