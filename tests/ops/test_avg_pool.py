"""Average pooling, fixed and adaptive: definitions, adjoints, layouts, accuracy, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import (
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool2d_forward,
    avg_pool2d_backward,
    avg_pool2d_forward,
)
from refkd.testing import check_adjoint
from refkd.testing.layouts import LAYOUTS
from refkd.testing.tolerances import tolerance
from tests.ops.pool_geometries import Geometry, channels_last, geometries

SEED = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 8), st.integers(1, 8))
EVERY_LAYOUT = {**LAYOUTS, "channels last": channels_last}
EPS = float(np.finfo(np.float64).eps)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    # Their sums are exact, and one division rounds as another.
    return rng.integers(-9, 10, shape).astype(np.float64)


def by_definition(x: np.ndarray, geometry: Geometry, *, count_include_pad: bool) -> np.ndarray:
    """Take window by window; entries beyond the padding are no part of any."""
    y = np.empty(geometry.output_shape)
    for p, q in np.ndindex(y.shape[2:]):
        rows, columns = geometry.rows.inside()[p], geometry.columns.inside()[q]
        count = len(rows) * len(columns)
        if count_include_pad:
            count = 1
            for axis, window in ((geometry.rows, p), (geometry.columns, q)):
                end = axis.size + axis.padding
                count *= sum(i < end for i in axis.windows()[window])
        y[:, :, p, q] = x[:, :, rows][:, :, :, columns].sum(axis=(2, 3)) / count
    return y


@given(geometries(max_dilation=1), SEED, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_entry_is_the_mean_its_formula_says(
    geometry: Geometry, seed: int, count_include_pad: bool
) -> None:
    x = integers(np.random.default_rng(seed), *geometry.shape)
    y = avg_pool2d_forward(
        x, **geometry.options_without_dilation, count_include_pad=count_include_pad
    )
    expected = by_definition(x, geometry, count_include_pad=count_include_pad)
    np.testing.assert_array_equal(y, expected)


@given(SIZES, SIZES, SEED)
@settings(max_examples=40, deadline=None)
def test_every_adaptive_entry_is_the_mean_its_formula_says(
    plane: tuple[int, int], output: tuple[int, int], seed: int
) -> None:
    x = integers(np.random.default_rng(seed), 2, 3, *plane)
    y = adaptive_avg_pool2d_forward(x, output_size=output)
    assert y.shape == (2, 3, *output)
    for p, q in np.ndindex(*output):
        part = x[
            :,
            :,
            p * plane[0] // output[0] : -(-(p + 1) * plane[0] // output[0]),
            q * plane[1] // output[1] : -(-(q + 1) * plane[1] // output[1]),
        ]
        count = part.shape[2] * part.shape[3]
        np.testing.assert_array_equal(y[:, :, p, q], part.sum(axis=(2, 3)) / count)


@given(geometries(max_dilation=1), SEED, st.booleans())
@settings(max_examples=60, deadline=None)
def test_backward_is_the_adjoint(geometry: Geometry, seed: int, count_include_pad: bool) -> None:
    options = {**geometry.options_without_dilation, "count_include_pad": count_include_pad}
    if not geometry.batch:
        dy = np.zeros(geometry.output_shape)
        assert avg_pool2d_backward(dy, input_shape=geometry.shape, **options).size == 0
        return
    check_adjoint(
        lambda x: avg_pool2d_forward(x, **options),
        lambda dy: avg_pool2d_backward(dy, input_shape=geometry.shape, **options),
        np.zeros(geometry.shape),
        rng=seed,
    ).raise_if_failed()


@given(SIZES, SIZES, SEED)
@settings(max_examples=40, deadline=None)
def test_the_adaptive_backward_is_the_adjoint(
    plane: tuple[int, int], output: tuple[int, int], seed: int
) -> None:
    check_adjoint(
        lambda x: adaptive_avg_pool2d_forward(x, output_size=output),
        lambda dy: adaptive_avg_pool2d_backward(dy, input_shape=(2, 3, *plane)),
        np.zeros((2, 3, *plane)),
        rng=seed,
    ).raise_if_failed()


@given(geometries(max_dilation=1), SEED)
@settings(max_examples=30, deadline=None)
def test_backward_spreads_all_of_a_cotangent_where_padding_is_not_counted(
    geometry: Geometry, seed: int
) -> None:
    dy = np.random.default_rng(seed).standard_normal(geometry.output_shape)
    options = geometry.options_without_dilation
    dx = avg_pool2d_backward(dy, input_shape=geometry.shape, count_include_pad=False, **options)
    assert abs(dx.sum() - dy.sum()) <= 64 * EPS * np.abs(dy).sum()


def test_a_constant_image_is_its_own_mean_unless_zeros_are_counted() -> None:
    x = np.full((1, 1, 3, 3), 18.0)
    options = {"kernel_size": 3, "stride": 1, "padding": 1}
    y = avg_pool2d_forward(x, **options, count_include_pad=False)
    np.testing.assert_array_equal(y, x)
    y = avg_pool2d_forward(x, **options)
    np.testing.assert_array_equal(y[0, 0], [[8, 12, 8], [12, 18, 12], [8, 12, 8]])


@given(SIZES, SIZES, SEED)
@settings(max_examples=20, deadline=None)
def test_adaptive_windows_that_divide_the_image_are_those_of_a_plain_pool(
    kernel: tuple[int, int], output: tuple[int, int], seed: int
) -> None:
    plane = (kernel[0] * output[0], kernel[1] * output[1])
    x = integers(np.random.default_rng(seed), 1, 2, *plane)
    np.testing.assert_array_equal(
        adaptive_avg_pool2d_forward(x, output_size=output),
        avg_pool2d_forward(x, kernel_size=kernel),
    )


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_an_adaptive_pool_to_the_size_of_the_image_is_the_identity(plane: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, *plane))
    np.testing.assert_array_equal(adaptive_avg_pool2d_forward(x, output_size=plane), x)
    np.testing.assert_array_equal(adaptive_avg_pool2d_backward(x, input_shape=x.shape), x)


@pytest.mark.parametrize("relay", EVERY_LAYOUT.values(), ids=EVERY_LAYOUT)
@given(geometry=geometries(max_dilation=1), seed=SEED)
@settings(max_examples=10, deadline=None)
def test_strides_do_not_matter(relay: Any, geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, dy = integers(rng, *geometry.shape), integers(rng, *geometry.output_shape)
    options = geometry.options_without_dilation
    backward = {"input_shape": x.shape, **options}
    np.testing.assert_array_equal(
        avg_pool2d_forward(relay(x), **options), avg_pool2d_forward(x, **options)
    )
    np.testing.assert_array_equal(
        avg_pool2d_backward(relay(dy), **backward), avg_pool2d_backward(dy, **backward)
    )
    for output_size in (1, 2):
        np.testing.assert_array_equal(
            adaptive_avg_pool2d_forward(relay(x), output_size=output_size),
            adaptive_avg_pool2d_forward(x, output_size=output_size),
        )
    np.testing.assert_array_equal(
        adaptive_avg_pool2d_backward(relay(dy), input_shape=x.shape),
        adaptive_avg_pool2d_backward(dy, input_shape=x.shape),
    )


def test_means_of_channels_last_images_are_channels_last() -> None:
    x = channels_last(np.random.default_rng(0).standard_normal((2, 3, 6, 8)))
    y = avg_pool2d_forward(x, kernel_size=2)
    for array in (y, avg_pool2d_backward(y, input_shape=x.shape, kernel_size=2)):
        assert array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last], ids=["NCHW", "NHWC"])
def test_a_global_mean_in_float32_is_accurate_in_either_layout(layout: Any) -> None:
    x = 1 + np.random.default_rng(0).standard_normal((2, 16, 64, 64)).astype(np.float32)
    y = adaptive_avg_pool2d_forward(layout(x), output_size=1)
    exact = x.astype(np.float64).mean(axis=(2, 3), keepdims=True)
    assert np.abs(y - exact).max() <= tolerance("float32", "pointwise") * np.abs(exact).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(dtype: type[np.generic]) -> None:
    x = np.ones((2, 3, 4, 5), dtype)
    options = {"kernel_size": 3, "padding": 1, "count_include_pad": False}
    y = avg_pool2d_forward(x, **options)
    arrays = [y, avg_pool2d_backward(y, input_shape=x.shape, **options)]
    for output_size in (1, 3):
        y = adaptive_avg_pool2d_forward(x, output_size=output_size)
        arrays += [y, adaptive_avg_pool2d_backward(y, input_shape=x.shape)]
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("avg_pool2d", lambda x: avg_pool2d_forward(x, kernel_size=2, padding=1)),
        ("adaptive_avg_pool2d", lambda x: adaptive_avg_pool2d_forward(x, output_size=1)),
    ],
)
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((3, 4, 5)), ShapeError, r"batch of images \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (np.ones((2, 3, 0, 5)), ShapeError, r"images with pixels, got \(2, 3, 0, 5\)"),
        (np.ones((2, 3, 4, 5), np.int64), DtypeError, "x int64"),
        ([[[[1.0]]]], DtypeError, "x must be an array, got list"),
    ],
)
def test_what_is_no_floating_batch_of_images_is_refused(
    name: str, forward: Any, x: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"{name}_forward: .*{words}"):
        forward(x)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel_size": 0}, ConfigError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": 2, "stride": (1, 0)}, ConfigError, "stride must be at least 1"),
        ({"kernel_size": 2, "padding": -1}, ConfigError, "padding must be at least 0, got -1"),
        ({"kernel_size": 3, "padding": 2}, ConfigError, "padding must be at most half"),
        ({"kernel_size": (5, 2)}, ShapeError, r"kernel of \(5, 2\).*input \(4, 5\)"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"avg_pool2d_forward: .*{words}"):
        avg_pool2d_forward(np.ones((2, 3, 4, 5)), **options)
    with pytest.raises(error, match=f"avg_pool2d_backward: .*{words}"):
        avg_pool2d_backward(np.ones((2, 3, 4, 5)), input_shape=(2, 3, 4, 5), **options)


@pytest.mark.parametrize("output_size", [0, -1, (1, 0), None, 1.0, (1, 2, 3), True])
def test_an_output_size_that_makes_no_sense_is_refused(output_size: Any) -> None:
    with pytest.raises(ConfigError, match="adaptive_avg_pool2d_forward: output_size must be"):
        adaptive_avg_pool2d_forward(np.ones((2, 3, 4, 5)), output_size=output_size)


@pytest.mark.parametrize(
    ("dy", "input_shape", "words"),
    [
        ((2, 3, 2), (2, 3, 4, 4), "dy must be a batch of images"),
        ((2, 3, 2, 2), (2, 4, 4, 4), r"N and C of dy \(2, 3, 2, 2\), got \(2, 4, 4, 4\)"),
        ((2, 3, 2, 2), (1, 3, 4, 4), r"got \(1, 3, 4, 4\)"),
        ((2, 3, 2, 2), (3, 4, 4), r"got \(3, 4, 4\)"),
        ((2, 3, 2, 2), (2, 3, 4, 0), r"input_shape must hold images with pixels"),
    ],
)
def test_backward_refuses_shapes_that_do_not_fit(
    dy: tuple[int, ...], input_shape: Any, words: str
) -> None:
    with pytest.raises(ShapeError, match=f"^avg_pool2d_backward: .*{words}"):
        avg_pool2d_backward(np.ones(dy), input_shape=input_shape, kernel_size=2)
    with pytest.raises(ShapeError, match=f"adaptive_avg_pool2d_backward: .*{words}"):
        adaptive_avg_pool2d_backward(np.ones(dy), input_shape=input_shape)


def test_a_cotangent_of_another_number_of_windows_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 5\) have \(2, 2\) windows, got dy \(1, 1, 2, 3\)"):
        avg_pool2d_backward(np.ones((1, 1, 2, 3)), input_shape=(1, 1, 4, 5), kernel_size=2)
    with pytest.raises(ShapeError, match=r"dy must have windows, got shape \(1, 1, 0, 3\)"):
        adaptive_avg_pool2d_backward(np.ones((1, 1, 0, 3)), input_shape=(1, 1, 4, 5))


@pytest.mark.parametrize(
    "input_shape", [None, 3, "2344", (2, 3, 4), (2, 3, 4.0, 4), (2, 3, "4", 4), (2, 3, -4, 4)]
)
def test_an_input_shape_that_is_none_is_refused(input_shape: Any) -> None:
    words = f"input_shape must be .*four integers >= 0 .*got {re.escape(repr(input_shape))}"
    with pytest.raises(ShapeError, match=f"^avg_pool2d_backward: {words}"):
        avg_pool2d_backward(np.ones((2, 3, 2, 2)), input_shape=input_shape, kernel_size=2)
    with pytest.raises(ShapeError, match=f"adaptive_avg_pool2d_backward: {words}"):
        adaptive_avg_pool2d_backward(np.ones((2, 3, 2, 2)), input_shape=input_shape)
