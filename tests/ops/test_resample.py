"""Nearest-neighbour upsampling: what it copies, its exact adjoint, layouts, accuracy, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    upsample_nearest2d_backward,
    upsample_nearest2d_forward,
)
from refkd.testing import check_adjoint
from refkd.testing.layouts import LAYOUTS
from refkd.testing.strategies import VALUES, seeded_array
from refkd.testing.tolerances import tolerance
from tests.ops.pool_geometries import channels_last

SHAPE = st.tuples(*(st.integers(0 if axis == 0 else 1, 4) for axis in range(4)))
FACTORS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SEED = st.integers(0, 2**32 - 1)
EVERY_LAYOUT = {"C": np.ascontiguousarray, **LAYOUTS, "channels last": channels_last}
RELAY = st.sampled_from(list(EVERY_LAYOUT.values()))
some = settings(max_examples=50, deadline=None)

Factors = tuple[int, int]


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    # Sums of products of small integers are exact in float64, in any order.
    return rng.integers(-9, 10, shape).astype(np.float64)


def enlarged(shape: tuple[int, ...], factors: Factors) -> tuple[int, ...]:
    return (*shape[:2], shape[2] * factors[0], shape[3] * factors[1])


@some
@given(SHAPE, FACTORS, RELAY, SEED)
def test_every_entry_of_y_is_the_one_of_x_its_formula_says(
    shape: tuple[int, ...], factors: Factors, relay: Any, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    y = upsample_nearest2d_forward(relay(x), scale_factor=factors)
    assert y.shape == enlarged(shape, factors)
    for p, q in np.ndindex(y.shape[2:]):
        np.testing.assert_array_equal(y[:, :, p, q], x[:, :, p // factors[0], q // factors[1]])


@some
@given(SHAPE, FACTORS, RELAY, SEED)
def test_every_entry_of_dx_is_the_sum_over_its_block(
    shape: tuple[int, ...], factors: Factors, relay: Any, seed: int
) -> None:
    dy = integers(np.random.default_rng(seed), *enlarged(shape, factors))
    dx = upsample_nearest2d_backward(relay(dy), scale_factor=factors)
    assert dx.shape == shape
    rows, columns = factors
    for h, w in np.ndindex(shape[2:]):
        block = dy[:, :, h * rows : (h + 1) * rows, w * columns : (w + 1) * columns]
        np.testing.assert_array_equal(dx[:, :, h, w], block.sum(axis=(2, 3)))


@some
@given(SHAPE, FACTORS, RELAY, SEED)
def test_backward_is_the_exact_adjoint(
    shape: tuple[int, ...], factors: Factors, relay: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = integers(rng, *shape), integers(rng, *enlarged(shape, factors))
    y = upsample_nearest2d_forward(relay(x), scale_factor=factors)
    dx = upsample_nearest2d_backward(relay(dy), scale_factor=factors)
    assert (dx * x).sum() == (dy * y).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backward_is_the_adjoint_of_real_numbers(dtype: type[np.floating]) -> None:
    check_adjoint(
        lambda x: upsample_nearest2d_forward(x, scale_factor=(2, 3)),
        lambda dy: upsample_nearest2d_backward(dy, scale_factor=(2, 3)),
        np.zeros((2, 3, 4, 5), dtype),
    ).raise_if_failed()


@some
@given(SHAPE, FACTORS, SEED)
def test_an_average_pool_undoes_it_and_their_backwards_are_each_others(
    shape: tuple[int, ...], factors: Factors, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, size = integers(rng, *shape), factors[0] * factors[1]
    y = upsample_nearest2d_forward(x, scale_factor=factors)
    np.testing.assert_array_equal(avg_pool2d_forward(y, kernel_size=factors), x)
    dy = size * integers(rng, *y.shape)  # so that a division by the size is exact
    np.testing.assert_array_equal(
        upsample_nearest2d_backward(dy, scale_factor=factors),
        size * avg_pool2d_forward(dy, kernel_size=factors),
    )
    np.testing.assert_array_equal(
        size * avg_pool2d_backward(size * x, input_shape=y.shape, kernel_size=factors),
        size * y,
    )


@some
@given(SHAPE, FACTORS, FACTORS, SEED)
def test_twice_in_a_row_multiplies_the_factors(
    shape: tuple[int, ...], first: Factors, second: Factors, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    both = (first[0] * second[0], first[1] * second[1])
    x = integers(rng, *shape)
    y = upsample_nearest2d_forward(x, scale_factor=first)
    np.testing.assert_array_equal(
        upsample_nearest2d_forward(y, scale_factor=second),
        upsample_nearest2d_forward(x, scale_factor=both),
    )
    dy = integers(rng, *enlarged(shape, both))
    dx = upsample_nearest2d_backward(dy, scale_factor=second)
    np.testing.assert_array_equal(
        upsample_nearest2d_backward(dx, scale_factor=first),
        upsample_nearest2d_backward(dy, scale_factor=both),
    )


def test_one_number_stands_for_both() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    y = upsample_nearest2d_forward(x, scale_factor=3)
    np.testing.assert_array_equal(y, upsample_nearest2d_forward(x, scale_factor=(3, 3)))
    np.testing.assert_array_equal(
        upsample_nearest2d_backward(y, scale_factor=3),
        upsample_nearest2d_backward(y, scale_factor=[3, 3]),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(SHAPE, FACTORS, st.sampled_from(list(VALUES)), st.sampled_from(["C", *LAYOUTS]), SEED)
@settings(max_examples=40, deadline=None)
def test_no_bit_of_a_pixel_changes(
    dtype: str, shape: tuple[int, ...], factors: Factors, values: str, layout: str, seed: int
) -> None:
    x = seeded_array(shape, dtype, values=values, layout=layout, seed=seed)
    y = upsample_nearest2d_forward(x, scale_factor=factors)
    rows, columns = factors
    bits = f"u{x.dtype.itemsize}"
    for i, j in np.ndindex(rows, columns):
        copy = np.ascontiguousarray(y[:, :, i::rows, j::columns])
        np.testing.assert_array_equal(copy.view(bits), np.ascontiguousarray(x).view(bits))


def test_nan_spreads_over_its_block_and_a_nan_of_dy_to_its_pixel() -> None:
    x = np.zeros((1, 2, 3, 3))
    x[0, 1, 2, 0] = np.nan
    y = upsample_nearest2d_forward(x, scale_factor=2)
    assert np.isnan(y).sum() == np.isnan(y[0, 1, 4:, :2]).sum() == 4
    dx = upsample_nearest2d_backward(y, scale_factor=(2, 3))
    assert np.isnan(dx).sum() == np.isnan(dx[0, 1, 2, 0]).sum() == 1


@pytest.mark.parametrize("factor", [1, 2, (3, 1), (1, 3)])
def test_channels_last_in_is_channels_last_out(factor: Any) -> None:
    x = channels_last(np.random.default_rng(0).standard_normal((2, 3, 6, 9)))
    y = upsample_nearest2d_forward(x, scale_factor=factor)
    for array in (y, upsample_nearest2d_backward(y, scale_factor=factor)):
        assert array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last])
def test_a_factor_of_one_gives_a_copy(layout: Any) -> None:
    x = layout(np.random.default_rng(0).standard_normal((2, 3, 4, 5)))
    for function in (upsample_nearest2d_forward, upsample_nearest2d_backward):
        y = function(x, scale_factor=1)
        np.testing.assert_array_equal(y, x)
        assert not np.shares_memory(y, x)


@pytest.mark.parametrize("layout", EVERY_LAYOUT.values(), ids=EVERY_LAYOUT)
def test_large_blocks_are_summed_accurately_in_float32(layout: Any) -> None:
    # One after another, the 4,096 numbers of a block would lose three digits.
    dy = layout(np.full((1, 2, 64, 128), 0.1, np.float32))
    dx = upsample_nearest2d_backward(dy, scale_factor=64)
    exact = 4096 * float(np.float32(0.1))
    assert np.abs(dx - exact).max() <= tolerance("float32", "reduction") * exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(dtype: type[np.generic]) -> None:
    y = upsample_nearest2d_forward(np.ones((1, 2, 3, 4), dtype), scale_factor=2)
    assert y.dtype == upsample_nearest2d_backward(y, scale_factor=2).dtype == dtype


@pytest.mark.parametrize(
    "factor", [0, -1, (2, 0), 2.0, (2, 2.0), "2", None, True, (2,), (2, 2, 2), np.int64(2)]
)
def test_a_factor_that_is_no_whole_number_is_refused(factor: Any) -> None:
    for name, function in (
        ("forward", upsample_nearest2d_forward),
        ("backward", upsample_nearest2d_backward),
    ):
        words = f"upsample_nearest2d_{name}: scale_factor must be .*got {re.escape(repr(factor))}"
        with pytest.raises(ConfigError, match=words):
            function(np.ones((1, 1, 4, 4)), scale_factor=factor)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (np.ones((3, 4, 4)), ShapeError, r"batch of images \(N, C, H, W\), got shape \(3, 4, 4\)"),
        (np.ones((2, 3, 0, 4)), ShapeError, r"images with pixels, got \(2, 3, 0, 4\)"),
        (np.ones((2, 3, 4, 4), np.int64), DtypeError, "int64"),
        ([[[[1.0]]]], DtypeError, "must be an array, got list"),
    ],
)
def test_what_is_no_floating_batch_of_images_is_refused(
    given: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=rf"^upsample_nearest2d_forward: .*\bx\b.*{words}"):
        upsample_nearest2d_forward(given, scale_factor=2)
    with pytest.raises(error, match=rf"^upsample_nearest2d_backward: .*\bdy\b.*{words}"):
        upsample_nearest2d_backward(given, scale_factor=2)


@pytest.mark.parametrize("shape", [(1, 2, 5, 6), (1, 2, 4, 7), (1, 2, 1, 1)])
def test_a_cotangent_that_is_no_whole_number_of_blocks_is_refused(shape: tuple[int, ...]) -> None:
    words = "height is a multiple of 2 and whose width is one of 3"
    with pytest.raises(ShapeError, match=f"{words}, got {re.escape(str(shape))}"):
        upsample_nearest2d_backward(np.ones(shape), scale_factor=(2, 3))
