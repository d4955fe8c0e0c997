"""Joining and parting: each undoes the other and is its adjoint, exactly."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import concatenate_backward, concatenate_forward, split_backward, split_forward
from refkd.testing.layouts import LAYOUTS
from tests.arch.fake_device import DeviceArray, to_device, to_host

SEED = st.integers(0, 2**32 - 1)


@st.composite
def joints(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int]:
    """Draw shapes that differ along one axis, and that axis."""
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shapes = []
    for size in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)):
        shape[axis] = size
        shapes.append(tuple(shape))
    return shapes, axis


def drawn(rng: np.random.Generator, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    # Sums of products of small integers are exact.
    return [rng.integers(-9, 10, shape).astype(np.float64) for shape in shapes]


def sizes_of(shapes: list[tuple[int, ...]], axis: int) -> list[int]:
    return [shape[axis] for shape in shapes]


def inner(a: Any, b: Any) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@given(joints(), SEED)
@settings(max_examples=50, deadline=None)
def test_backward_is_the_exact_adjoint(joint: Any, seed: int) -> None:
    (shapes, axis), rng = joint, np.random.default_rng(seed)
    xs, us = drawn(rng, shapes), drawn(rng, shapes)
    y = concatenate_forward(xs, axis=axis)
    dy = rng.integers(-9, 10, y.shape).astype(np.float64)
    dxs = concatenate_backward(dy, sizes=sizes_of(shapes, axis), axis=axis)
    assert [dx.shape for dx in dxs] == shapes
    assert inner(dxs, xs) == inner([dy], [y])
    ys = split_forward(dy, sizes=sizes_of(shapes, axis), axis=axis)
    assert inner([split_backward(us, axis=axis)], [dy]) == inner(us, ys)


@given(joints(), SEED)
@settings(max_examples=50, deadline=None)
def test_parting_undoes_joining(joint: Any, seed: int) -> None:
    shapes, axis = joint
    xs = drawn(np.random.default_rng(seed), shapes)
    for join, part in (
        (concatenate_forward, split_forward),
        (split_backward, concatenate_backward),
    ):
        parts = part(join(xs, axis=axis), sizes=sizes_of(shapes, axis), axis=axis)
        assert type(parts) is tuple
        for given_part, x in zip(parts, xs, strict=True):
            np.testing.assert_array_equal(given_part, x, strict=True)


def test_the_parts_stand_in_their_order() -> None:
    a, b = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(concatenate_forward((a, b), axis=1), [[1, 3, 4], [2, 5, 6]])
    first, second = split_forward(np.array([7.0, 8.0, 9.0]), sizes=(1, 2), axis=0)
    np.testing.assert_array_equal(first, [7])
    np.testing.assert_array_equal(second, [8, 9])


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_returned_shares_memory_with_what_was_given(count: int) -> None:
    xs = drawn(np.random.default_rng(0), count * [(2, 3)])
    for join in (concatenate_forward, split_backward):
        assert not any(np.shares_memory(join(xs, axis=0), x) for x in xs)
    y = concatenate_forward(xs, axis=0)
    for part in (concatenate_backward, split_forward):
        assert not any(np.shares_memory(y, x) for x in part(y, sizes=count * [2], axis=0))


@pytest.mark.parametrize("relay", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_do_not_matter(relay: Any) -> None:
    a, b = drawn(np.random.default_rng(0), [(2, 3, 4, 5), (2, 1, 4, 5)])
    y = concatenate_forward([a, b], axis=1)
    np.testing.assert_array_equal(concatenate_forward([relay(a), b], axis=1), y)
    for ours, expected in zip(split_forward(relay(y), sizes=(3, 1), axis=1), (a, b), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(dtype: type[np.generic]) -> None:
    x = np.ones((2, 3), dtype)
    y = concatenate_forward([x, x], axis=1)
    assert {a.dtype for a in (y, *split_forward(y, sizes=(2, 4), axis=1))} == {np.dtype(dtype)}


def test_a_device_array_stays_on_its_device() -> None:
    xs = drawn(np.random.default_rng(0), [(2, 3), (2, 1)])
    y = concatenate_forward(to_device(xs), axis=-1)
    assert type(y) is DeviceArray
    np.testing.assert_array_equal(to_host(y), concatenate_forward(xs, axis=-1))
    for part, x in zip(concatenate_backward(y, sizes=(3, 1), axis=-1), xs, strict=True):
        assert type(part) is DeviceArray
        np.testing.assert_array_equal(to_host(part), x)


A, B = np.ones((2, 3)), np.ones((2, 4))


@pytest.mark.parametrize(
    ("xs", "axis", "error", "words"),
    [
        ([], 0, ConfigError, "xs must be a list of one or more arrays, got none"),
        (A, 0, ConfigError, "xs must be a list of one or more arrays, got ndarray"),
        ([A, B], 0, ShapeError, r"may differ in length along axis 0 only.*\(2, 3\), \(2, 4\)"),
        ([A, np.ones(3)], 0, ShapeError, r"got \(2, 3\), \(3,\)"),
        ([A, np.ones((2, 3, 1))], 0, ShapeError, r"got \(2, 3\), \(2, 3, 1\)"),
        ([A, A], 2, ShapeError, r"axis 2 is out of range for shape \(2, 3\)"),
        ([A, A], -3, ShapeError, r"axis -3 is out of range for shape \(2, 3\)"),
        ([np.ones(())], 0, ShapeError, r"axis 0 is out of range for shape \(\)"),
        ([A, A.astype(np.float32)], 0, DtypeError, r"xs\[0\] float64, xs\[1\] float32"),
        ([A, [1.0]], 0, DtypeError, r"xs\[1\] must be an array, got list"),
        ([A.astype(int)], 0, DtypeError, r"xs\[0\] int64"),
    ],
)
def test_arrays_that_cannot_be_joined_are_refused(
    xs: Any, axis: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"concatenate_forward: .*{words}"):
        concatenate_forward(xs, axis=axis)
    with pytest.raises(error, match=f"split_backward: .*{words.replace('xs', 'dys')}"):
        split_backward(xs, axis=axis)


@pytest.mark.parametrize(
    ("sizes", "axis", "error", "words"),
    [
        ((1, 1), 1, ShapeError, r"sizes \(1, 1\) must sum.*axis 1 of {} \(2, 3\), got 2"),
        ((2, 2), 1, ShapeError, "got 4"),
        ((3, 1, -1), 1, ConfigError, "each of sizes must be an integer >= 0, got -1"),
        ((1.0, 2.0), 1, ConfigError, "each of sizes must be an integer >= 0, got 1.0"),
        ((), 1, ConfigError, r"one or more integers >= 0, got \(\)"),
        (3, 1, ConfigError, "one or more integers >= 0, got 3"),
        ((3,), 2, ShapeError, r"axis 2 is out of range for shape \(2, 3\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    sizes: Any, axis: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"split_forward: .*{words.format('x')}"):
        split_forward(A, sizes=sizes, axis=axis)
    with pytest.raises(error, match=f"concatenate_backward: .*{words.format('dy')}"):
        concatenate_backward(A, sizes=sizes, axis=axis)


def test_what_is_no_floating_array_is_not_parted() -> None:
    with pytest.raises(DtypeError, match=r"split_forward: .*x int64"):
        split_forward(np.arange(3), sizes=(1, 2), axis=0)
    with pytest.raises(DtypeError, match="concatenate_backward: dy must be an array, got list"):
        concatenate_backward([1.0], sizes=(1,), axis=0)


@pytest.mark.parametrize("axis", ["a", 1.0, None, True, (1,)])
def test_the_axis_is_an_integer(axis: Any) -> None:
    calls = (
        ("concatenate_forward", lambda: concatenate_forward([A, A], axis=axis)),
        ("split_backward", lambda: split_backward([A, A], axis=axis)),
        ("split_forward", lambda: split_forward(A, sizes=(1, 2), axis=axis)),
        ("concatenate_backward", lambda: concatenate_backward(A, sizes=(1, 2), axis=axis)),
    )
    for name, call in calls:
        words = f"^{name}: axis must be an integer, got {re.escape(repr(axis))}$"
        with pytest.raises(ConfigError, match=words):
            call()
