"""Max-pooling: its definition, ties, NaN and −∞, overlap, layouts, memory, errors."""

from __future__ import annotations

import itertools
import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import max_pool2d_backward, max_pool2d_forward
from refkd.testing.layouts import LAYOUTS
from tests.ops.pool_geometries import Geometry, channels_last, geometries

SEED = st.integers(0, 2**32 - 1)
EVERY_LAYOUT = {**LAYOUTS, "channels last": channels_last}


def integers(rng: np.random.Generator, shape: tuple[int, ...], largest: int = 9) -> np.ndarray:
    # Sums of small integers are exact in float64, in any order; and few values make many ties.
    return rng.integers(-largest, largest + 1, shape).astype(np.float64)


def by_definition(x: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Search every window entry by entry, row by row."""
    y, indices = np.empty(geometry.output_shape), np.empty(geometry.output_shape, np.int64)
    rows, columns = geometry.rows.inside(), geometry.columns.inside()
    for n, c, p, q in np.ndindex(y.shape):
        entries = list(itertools.product(rows[p], columns[q]))
        best = entries[0]
        for entry in entries:
            if x[n, c][entry] > x[n, c][best] or np.isnan(x[n, c][entry]):
                best = entry
        y[n, c, p, q], indices[n, c, p, q] = x[n, c][best], best[0] * x.shape[3] + best[1]
    return y, indices


def gathered(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    planes = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    flat = indices.reshape(*x.shape[:2], math.prod(indices.shape[2:]))
    return np.take_along_axis(planes, flat, axis=2).reshape(indices.shape)


@given(geometries(), SEED, st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.7]))
@settings(max_examples=60, deadline=None)
def test_the_first_maximum_of_every_window_is_found_and_the_last_nan(
    geometry: Geometry, seed: int, nans: float, minus_infinities: float
) -> None:
    rng = np.random.default_rng(seed)
    x = integers(rng, geometry.shape, largest=2)
    x[rng.random(x.shape) < minus_infinities] = -np.inf
    x[rng.random(x.shape) < nans] = np.nan
    y, indices = max_pool2d_forward(x, **geometry.options)
    expected_y, expected_indices = by_definition(x, geometry)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(indices, expected_indices)
    assert indices.dtype == np.int64


def test_a_window_in_words() -> None:
    x = np.array([[[[1.0, 7, 2, 7], [7, 3, 0, 0]]]])
    y, indices = max_pool2d_forward(x, kernel_size=2)
    np.testing.assert_array_equal(y, [[[[7, 7]]]])
    np.testing.assert_array_equal(indices, [[[[1, 3]]]])
    dx = max_pool2d_backward(np.array([[[[5.0, -2]]]]), indices, input_shape=(1, 1, 2, 4))
    np.testing.assert_array_equal(dx, [[[[0, 5, 0, -2], [0, 0, 0, 0]]]])


def test_padding_is_never_chosen_not_even_by_windows_of_minus_infinity() -> None:
    x = np.full((1, 1, 3, 3), -np.inf)
    y, indices = max_pool2d_forward(x, kernel_size=3, stride=1, padding=1)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(indices[0, 0], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])


def test_a_nan_reaches_the_windows_that_hold_it_and_no_other() -> None:
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 1, 2] = np.nan
    y, indices = max_pool2d_forward(x, kernel_size=2, stride=1)
    reached = np.zeros((4, 4), bool)
    reached[:2, 1:3] = True
    np.testing.assert_array_equal(np.isnan(y[0, 0]), reached)
    np.testing.assert_array_equal(indices[0, 0][reached], 7)


@given(geometries(), SEED)
@settings(max_examples=60, deadline=None)
def test_backward_is_the_exact_adjoint_of_gathering_the_maxima(
    geometry: Geometry, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, u = integers(rng, geometry.shape, largest=2), integers(rng, geometry.shape)
    dy = integers(rng, geometry.output_shape)
    _, indices = max_pool2d_forward(x, **geometry.options)
    dx = max_pool2d_backward(dy, indices, input_shape=geometry.shape)
    assert dx.shape == x.shape
    assert (dx * u).sum() == (dy * gathered(u, indices)).sum()


def test_an_entry_that_is_the_maximum_of_several_windows_collects_from_all() -> None:
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1
    _, indices = max_pool2d_forward(x, kernel_size=2, stride=1)
    dy = np.array([[[[1.0, 20], [300, 4000]]]])
    dx = max_pool2d_backward(dy, indices, input_shape=x.shape)
    np.testing.assert_array_equal(dx, 4321 * x)


@given(geometries(), SEED)
@settings(max_examples=30, deadline=None)
def test_complex_numbers_are_ordered_by_their_real_part(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, u = integers(rng, geometry.shape, largest=2), integers(rng, geometry.shape)
    y, indices = max_pool2d_forward(x, **geometry.options)
    z, same_indices = max_pool2d_forward(x + 1j * u, **geometry.options)
    np.testing.assert_array_equal(indices, same_indices)
    np.testing.assert_array_equal(z, y + 1j * gathered(u, indices))


@given(st.integers(1, 3), st.integers(1, 3), SEED)
@settings(max_examples=20, deadline=None)
def test_pooling_twice_is_pooling_over_windows_of_windows(first: int, then: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 2, 12, 18))
    once, _ = max_pool2d_forward(x, kernel_size=first * then)
    half_way, _ = max_pool2d_forward(x, kernel_size=first)
    np.testing.assert_array_equal(max_pool2d_forward(half_way, kernel_size=then)[0], once)


@pytest.mark.parametrize("width", [64, 127, 128, 300, 40_000, 70_000])
def test_a_distance_of_any_size_is_found(width: int) -> None:
    # Two rows below the start and one column to the right: beyond 2^8, and beyond 2^16.
    x = np.zeros((1, 1, 3, width), np.float32)
    x[0, 0, 2, width - 1] = 1
    y, indices = max_pool2d_forward(x, kernel_size=(3, 2), stride=1)
    assert y[0, 0, 0, -1] == 1
    assert indices[0, 0, 0, -1] == 3 * width - 1
    np.testing.assert_array_equal(indices[0, 0, 0, :-1], np.arange(width - 2))


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@given(geometry=geometries(), seed=SEED)
@settings(max_examples=15, deadline=None)
def test_strides_do_not_matter(layout: str, geometry: Geometry, seed: int) -> None:
    rng, relay = np.random.default_rng(seed), EVERY_LAYOUT[layout]
    x, dy = integers(rng, geometry.shape, largest=2), integers(rng, geometry.output_shape)
    y, indices = max_pool2d_forward(x, **geometry.options)
    relaid_y, relaid_indices = max_pool2d_forward(relay(x), **geometry.options)
    np.testing.assert_array_equal(relaid_y, y)
    np.testing.assert_array_equal(relaid_indices, indices)
    np.testing.assert_array_equal(
        max_pool2d_backward(relay(dy), relay(indices), input_shape=x.shape),
        max_pool2d_backward(dy, indices, input_shape=x.shape),
    )


def test_maxima_of_channels_last_images_are_channels_last() -> None:
    x = channels_last(np.random.default_rng(0).standard_normal((2, 3, 6, 8)))
    y, _ = max_pool2d_forward(x, kernel_size=3, stride=2, padding=1)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(dtype: type[np.generic]) -> None:
    y, indices = max_pool2d_forward(np.ones((2, 3, 4, 4), dtype), kernel_size=2)
    dx = max_pool2d_backward(y, indices, input_shape=(2, 3, 4, 4))
    assert {y.dtype, dx.dtype} == {np.dtype(dtype)}


def test_windows_are_never_laid_out_in_memory() -> None:
    x = np.random.default_rng(0).standard_normal((4, 8, 32, 32)).astype(np.float32)
    tracemalloc.start()
    max_pool2d_forward(x, kernel_size=7, stride=1, padding=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * x.nbytes  # all windows would be 49 of them


IMAGES = np.ones((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((3, 4, 5)), ShapeError, r"batch of images \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (np.ones((1, 2, 3, 4, 5)), ShapeError, r"got shape \(1, 2, 3, 4, 5\)"),
        (np.ones((2, 3, 0, 5)), ShapeError, r"images with pixels, got \(2, 3, 0, 5\)"),
        (np.ones((2, 3, 4, 0)), ShapeError, r"images with pixels, got \(2, 3, 4, 0\)"),
        (np.ones((2, 3, 4, 5), np.int64), DtypeError, "x int64"),
        (np.ones((2, 3, 4, 5), np.uint8), DtypeError, "x uint8"),
        ([[[[1.0]]]], DtypeError, "x must be an array, got list"),
    ],
)
def test_what_is_no_floating_batch_of_images_is_refused(
    x: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"max_pool2d_forward: .*{words}"):
        max_pool2d_forward(x, kernel_size=2, padding=1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel_size": 0}, ConfigError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": (2, 2, 2)}, ConfigError, "kernel_size must be an integer or a pair"),
        ({"kernel_size": 2.0}, ConfigError, "kernel_size must be an integer or a pair"),
        ({"kernel_size": 2, "stride": 0}, ConfigError, "stride must be at least 1, got 0"),
        ({"kernel_size": 2, "dilation": 0}, ConfigError, "dilation must be at least 1, got 0"),
        ({"kernel_size": 2, "padding": -1}, ConfigError, "padding must be at least 0, got -1"),
        (
            {"kernel_size": 3, "padding": 2},
            ConfigError,
            "padding must be at most half the kernel, got padding=2 with kernel_size=3",
        ),
        (
            {"kernel_size": (4, 3), "padding": (1, 2), "dilation": 2},
            ConfigError,
            r"at most half the kernel, got padding=\(1, 2\) with kernel_size=\(4, 3\)",
        ),
        ({"kernel_size": (5, 2)}, ShapeError, r"kernel of \(5, 2\).*input \(4, 5\)"),
        ({"kernel_size": 3, "dilation": 2}, ShapeError, r"dilation \(2, 2\) does not fit"),
        (
            {"kernel_size": 2, "padding": 1, "dilation": (5, 1)},
            ShapeError,
            r"on images of \(4, 5\) reads nothing but padding",
        ),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"max_pool2d_forward: .*{words}"):
        max_pool2d_forward(IMAGES, **options)


@pytest.mark.parametrize(
    ("dy", "indices", "input_shape", "error", "words"),
    [
        ((2, 3, 2), (2, 3, 2), (2, 3, 4, 4), ShapeError, r"dy must be a batch of images"),
        ((2, 3, 2, 2), (2, 3, 2, 1), (2, 3, 4, 4), ShapeError, r"indices \(2, 3, 2, 1\)"),
        ((2, 3, 2, 2), (2, 3, 2, 2), (2, 4, 4, 4), ShapeError, r"got \(2, 4, 4, 4\)"),
        ((2, 3, 2, 2), (2, 3, 2, 2), (3, 4, 4), ShapeError, r"got \(3, 4, 4\)"),
        ((2, 3, 2, 2), (2, 3, 2, 2), (2, 3, 0, 4), ShapeError, r"input_shape .*pixels"),
    ],
)
def test_backward_refuses_shapes_that_do_not_fit(
    dy: tuple[int, ...],
    indices: tuple[int, ...],
    input_shape: Any,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=f"max_pool2d_backward: .*{words}"):
        max_pool2d_backward(np.ones(dy), np.zeros(indices, np.int64), input_shape=input_shape)


@pytest.mark.parametrize("indices", [np.zeros((1, 1, 1, 1), np.int32), np.zeros((1, 1, 1, 1)), [0]])
def test_indices_of_another_dtype_are_refused(indices: Any) -> None:
    with pytest.raises(DtypeError, match="indices must be an int64 array, got"):
        max_pool2d_backward(np.ones((1, 1, 1, 1)), indices, input_shape=(1, 1, 2, 2))


@pytest.mark.parametrize(
    "input_shape", [None, 3, "2344", (2, 3, 4), (2, 3, 4.0, 4), (2, 3, "4", 4), (2, 3, -4, 4)]
)
def test_an_input_shape_that_is_none_is_refused(input_shape: Any) -> None:
    dy, indices = np.ones((2, 3, 2, 2)), np.zeros((2, 3, 2, 2), np.int64)
    words = f"input_shape must be .*four integers >= 0 .*got {re.escape(repr(input_shape))}"
    with pytest.raises(ShapeError, match=f"max_pool2d_backward: {words}"):
        max_pool2d_backward(dy, indices, input_shape=input_shape)
