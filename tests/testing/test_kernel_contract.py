"""What every kernel keeps to, on all cases: dtype, layout, purity, fresh outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.testing.layouts import LAYOUTS
from refkd.testing.pairs import PairCase, all_cases, backward, forward
from refkd.testing.tolerances import tolerance

every_case = pytest.mark.parametrize("case", all_cases(), ids=str)


def both_directions(case: PairCase, inputs: dict[str, Any], cotangent: Any) -> list[Any]:
    outputs = forward(case, inputs)
    return [*outputs, *backward(case, cotangent, inputs, outputs)]


def drawn(case: PairCase) -> tuple[dict[str, Any], Any]:
    rng = case.generator(0)
    inputs = case.inputs(rng)
    return inputs, np.asarray(rng.standard_normal(np.shape(forward(case, inputs)[0])))


def arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}


def to_float32(value: Any) -> Any:
    is_floating = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(np.float32) if is_floating else value


def assert_close(actual: Any, expected: Any, allowed: float) -> None:
    scale = np.max(np.abs(expected), initial=0)
    assert np.max(np.abs(actual - expected), initial=0) <= allowed * scale


@every_case
def test_float32_stays_float32_and_near_float64(case: PairCase) -> None:
    inputs, cotangent = drawn(case)
    single = {name: to_float32(value) for name, value in inputs.items()}
    # The float64 result is taken at the very same, rounded inputs.
    double = {
        name: value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value
        for name, value in single.items()
    }
    cotangent = cotangent.astype(np.float32)
    actual = both_directions(case, single, cotangent)
    expected = both_directions(case, double, cotangent.astype(np.float64))
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None and e.dtype == np.int64:
            np.testing.assert_array_equal(a, e, strict=True)  # indices of maxima
        elif e is not None:
            assert a.dtype == np.float32
            assert e.dtype == np.float64
            assert a.shape == e.shape
            assert_close(a, e, tolerance("float32", "product"))


@pytest.mark.parametrize(
    "case",
    [c for c in all_cases() if c.outputs[0] == "loss" and c.options.get("reduction") != "none"],
    ids=str,
)
def test_a_number_as_cotangent_of_a_loss_does_not_widen_float32(case: PairCase) -> None:
    inputs, _ = drawn(case)
    single = {name: to_float32(value) for name, value in inputs.items()}
    for gradient in backward(case, 0.7, single, forward(case, single)):
        assert gradient is None or gradient.dtype == np.float32


@every_case
def test_any_memory_layout_gives_the_same_result(case: PairCase) -> None:
    inputs, cotangent = drawn(case)
    expected = both_directions(case, inputs, cotangent)
    for relay in LAYOUTS.values():
        relaid = {**inputs, **{name: relay(a) for name, a in arrays(inputs).items()}}
        actual = both_directions(case, relaid, relay(cotangent))
        for a, e in zip(actual, expected, strict=True):
            assert (a is None) == (e is None)
            if e is not None:
                assert a.shape == e.shape
                assert_close(a, e, tolerance("float64", "reduction"))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_a_layout_changes_strides_and_nothing_else(shape: tuple[int, ...], dtype: str) -> None:
    x = np.asarray(10 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    for relay in LAYOUTS.values():
        relaid = relay(x)
        assert (relaid.shape, relaid.dtype) == (x.shape, x.dtype)
        assert not np.shares_memory(relaid, x)
        np.testing.assert_array_equal(relaid, x)
    if x.ndim > 1 and x.size:
        strides = {relay(x).strides for name, relay in LAYOUTS.items() if name != "read-only"}
        assert len(strides | {x.strides}) == 4


@every_case
def test_no_kernel_writes_into_its_arguments(case: PairCase) -> None:
    inputs, cotangent = drawn(case)
    outputs = forward(case, inputs)
    given = [*arrays(inputs).values(), cotangent, *outputs]
    before = [np.copy(array) for array in given]
    again = backward(case, cotangent, inputs, outputs)
    forward(case, inputs)
    assert len(again) == len(case.gradients)
    for array, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@every_case
def test_outputs_share_no_memory_with_arguments_or_each_other(case: PairCase) -> None:
    inputs, cotangent = drawn(case)
    outputs = forward(case, inputs)
    fresh = [[*outputs], [a for a in backward(case, cotangent, inputs, outputs) if a is not None]]
    given = [[*arrays(inputs).values()], [*arrays(inputs).values(), cotangent, *outputs]]
    for returned, arguments in zip(fresh, given, strict=True):
        assert returned
        for i, array in enumerate(returned):
            others = arguments + returned[:i]
            assert not any(np.shares_memory(array, other) for other in others)


@pytest.mark.parametrize(
    ("pair", "flag", "position"),
    [("linear", "need_dx", 0), ("softmax_kl", "need_dp", 0), ("softmax_kl", "need_dq", 1)],
)
def test_a_gradient_that_is_not_needed_is_none(pair: str, flag: str, position: int) -> None:
    (case,) = [c for c in all_cases() if c.pair == pair and flag in c.backward_only]
    inputs, cotangent = drawn(case)
    returned = backward(case, cotangent, inputs, forward(case, inputs))
    assert [value is None for value in returned] == [
        i == position for i in range(len(case.gradients))
    ]
