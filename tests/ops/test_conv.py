"""Convolution: its formula, exact adjoints over any geometry, layouts, memory, errors."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import im2col
from refkd.ops.conv import (
    conv2d_backward,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
)
from refkd.testing.layouts import LAYOUTS
from refkd.testing.strategies import ConvGeometry, conv_geometries
from refkd.testing.tolerances import tolerance

SEED = st.integers(0, 2**32 - 1)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    # Sums of products of small integers are exact in float64, in any order.
    return rng.integers(-9, 10, shape).astype(np.float64)


def drawn(geometry: ConvGeometry, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return x, weight, bias and dy."""
    rng = np.random.default_rng(seed)
    shapes = (geometry.x_shape, geometry.weight_shape, geometry.bias_shape, geometry.y_shape)
    return tuple(integers(rng, *shape) for shape in shapes)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum())


def by_definition(x: np.ndarray, weight: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Sum tap by tap, entry by entry, skipping what lies outside of x."""
    y = np.zeros(g.y_shape)
    per_group, outputs_per_group = weight.shape[1], g.out_channels // g.groups
    for n, k, p, q in np.ndindex(g.y_shape):
        for c, i, j in np.ndindex(weight.shape[1:]):
            u = p * g.stride[0] + i * g.dilation[0] - g.padding[0]
            v = q * g.stride[1] + j * g.dilation[1] - g.padding[1]
            if 0 <= u < x.shape[2] and 0 <= v < x.shape[3]:
                channel = k // outputs_per_group * per_group + c
                y[n, k, p, q] += weight[k, c, i, j] * x[n, channel, u, v]
    return y


@given(conv_geometries(max_size=6), SEED)
@settings(max_examples=40, deadline=None)
def test_every_entry_is_the_sum_its_formula_says(geometry: ConvGeometry, seed: int) -> None:
    x, weight, bias, _ = drawn(geometry, seed)
    y = conv2d_forward(x, weight, None, **geometry.options)
    np.testing.assert_array_equal(y, by_definition(x, weight, geometry))
    with_bias = conv2d_forward(x, weight, bias, **geometry.options)
    np.testing.assert_array_equal(with_bias, y + bias[None, :, None, None])


@given(conv_geometries(), SEED)
@settings(max_examples=100, deadline=None)
def test_backward_is_the_exact_adjoint_in_x_weight_and_bias(
    geometry: ConvGeometry, seed: int
) -> None:
    x, weight, bias, dy = drawn(geometry, seed)
    dx, dweight, dbias = conv2d_backward(dy, x, weight, **geometry.options)
    product = inner(dy, conv2d_forward(x, weight, None, **geometry.options))
    assert inner(dx, x) == product
    assert inner(dweight, weight) == product
    assert inner(dbias, bias) == inner(dy, np.broadcast_to(bias[:, None, None], dy.shape[1:])[None])
    assert (dx.shape, dweight.shape, dbias.shape) == (x.shape, weight.shape, bias.shape)


@given(conv_geometries(), st.sampled_from(sorted(LAYOUTS)), SEED)
@settings(max_examples=60, deadline=None)
def test_memory_layout_does_not_matter(geometry: ConvGeometry, layout: str, seed: int) -> None:
    x, weight, bias, dy = drawn(geometry, seed)
    expected = (
        conv2d_forward(x, weight, bias, **geometry.options),
        *conv2d_backward(dy, x, weight, **geometry.options),
    )
    x, weight, bias, dy = (LAYOUTS[layout](a) for a in (x, weight, bias, dy))
    actual = (
        conv2d_forward(x, weight, bias, **geometry.options),
        *conv2d_backward(dy, x, weight, **geometry.options),
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_channels_last_memory_does_not_matter() -> None:
    geometry = ConvGeometry(2, 4, 6, (5, 6), (3, 3), padding=(1, 1), groups=2)
    x, weight, bias, dy = drawn(geometry)
    x_last, dy_last = (
        np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, dy)
    )
    assert not x_last.flags.c_contiguous
    np.testing.assert_array_equal(
        conv2d_forward(x_last, weight, bias, **geometry.options),
        conv2d_forward(x, weight, bias, **geometry.options),
    )
    for a, e in zip(
        conv2d_backward(dy_last, x_last, weight, **geometry.options),
        conv2d_backward(dy, x, weight, **geometry.options),
        strict=True,
    ):
        np.testing.assert_array_equal(a, e)


@given(conv_geometries(), SEED)
@settings(max_examples=25, deadline=None)
def test_the_parts_of_the_backward_are_the_backward(geometry: ConvGeometry, seed: int) -> None:
    x, weight, _, dy = drawn(geometry, seed)
    dx, dweight, dbias = conv2d_backward(dy, x, weight, **geometry.options)
    skipped, same_dweight, same_dbias = conv2d_backward(
        dy, x, weight, need_dx=False, **geometry.options
    )
    assert skipped is None
    np.testing.assert_array_equal(same_dweight, dweight)
    np.testing.assert_array_equal(same_dbias, dbias)
    size, taps = geometry.input_size, geometry.kernel_size
    np.testing.assert_array_equal(
        conv2d_backward_input(dy, weight, input_size=size, **geometry.options), dx
    )
    np.testing.assert_array_equal(
        conv2d_backward_weight(dy, x, kernel_size=taps, **geometry.options), dweight
    )


@given(conv_geometries(max_batch=7), SEED, st.integers(1, 4096))
@settings(max_examples=40, deadline=None)
def test_how_many_images_share_a_chunk_does_not_matter(
    geometry: ConvGeometry, seed: int, patch_bytes: int
) -> None:
    x, weight, bias, dy = drawn(geometry, seed)
    expected = [
        conv2d_forward(x, weight, bias, **geometry.options),
        *conv2d_backward(dy, x, weight, **geometry.options),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "_PATCH_BYTES", patch_bytes)
        chunked = [
            conv2d_forward(x, weight, bias, **geometry.options),
            *conv2d_backward(dy, x, weight, **geometry.options),
        ]
    for a, e in zip(chunked, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_memory_is_bounded_by_the_arrays_and_one_chunk() -> None:
    x = np.ones((64, 16, 32, 32), np.float32)
    weight = np.ones((16, 16, 3, 3), np.float32)
    patches = 9 * x.nbytes
    y = conv2d_forward(x, weight, None, padding=1)
    for call in (
        lambda: conv2d_forward(x, weight, None, padding=1),
        lambda: conv2d_backward_input(y, weight, input_size=(32, 32), padding=1),
        lambda: conv2d_backward_weight(y, x, kernel_size=(3, 3), padding=1),
    ):
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes + 3 * im2col._PATCH_BYTES < patches


def test_a_bias_is_added_in_place() -> None:
    x = np.ones((64, 16, 32, 32), np.float32)
    weight, bias = np.ones((16, 16, 1, 1), np.float32), np.ones(16, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "_PATCH_BYTES", 1 << 16)
        conv2d_forward(x, weight, bias)
        tracemalloc.start()
        try:
            y = conv2d_forward(x, weight, bias)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1.5 * y.nbytes


def test_each_argument_may_be_the_complex_one() -> None:
    geometry = ConvGeometry(2, 4, 6, (5, 6), (3, 3), padding=(1, 1), groups=2)
    arrays = drawn(geometry)[:3]
    y = conv2d_forward(*arrays, **geometry.options)
    for position in range(3):
        stepped = [a + (0j if i == position else 0) for i, a in enumerate(arrays)]
        complex_y = conv2d_forward(*stepped, **geometry.options)
        assert complex_y.dtype == np.complex128
        np.testing.assert_array_equal(complex_y, y)


@pytest.mark.parametrize(("batch", "size", "pieces"), [(64, 20, 4), (7, 96, 4), (64, 2, 1)])
def test_a_batch_that_is_worth_it_makes_pieces_for_several_threads(
    batch: int, size: int, pieces: int
) -> None:
    x_shape, weight_shape = (batch, 4, size, size), (4, 4, 3, 3)
    g = im2col.conv_sizes("here", x_shape, weight_shape, 1, 1, 1, 1)
    assert batch * g.taps * g.positions * 4 < im2col._PATCH_BYTES * pieces
    slices = list(im2col.in_chunks(np, lambda rows: rows, g, 4))
    assert len(slices) == pieces
    assert [row for rows in slices for row in range(batch)[rows]] == list(range(batch))


def test_a_group_is_a_convolution_of_its_own_channels() -> None:
    geometry = ConvGeometry(2, 6, 9, (5, 5), (3, 3), groups=3)
    x, weight, bias, _ = drawn(geometry)
    parts = [
        conv2d_forward(x[:, 2 * g : 2 * g + 2], weight[3 * g : 3 * g + 3], bias[3 * g : 3 * g + 3])
        for g in range(3)
    ]
    np.testing.assert_array_equal(
        conv2d_forward(x, weight, bias, groups=3), np.concatenate(parts, axis=1)
    )


def test_one_by_one_is_a_linear_map_of_the_channels() -> None:
    geometry = ConvGeometry(3, 4, 5, (3, 2), (1, 1))
    x, weight, _, _ = drawn(geometry)
    y = conv2d_forward(x, weight, None)
    np.testing.assert_array_equal(y, np.einsum("kc,nchw->nkhw", weight[:, :, 0, 0], x))


@given(conv_geometries(), SEED)
@settings(max_examples=30, deadline=None)
def test_float32_is_as_accurate_as_its_sums_allow(geometry: ConvGeometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = (geometry.x_shape, geometry.weight_shape, geometry.bias_shape, geometry.y_shape)
    x, weight, bias, dy = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    wide = [a.astype(np.float64) for a in (x, weight, bias, dy)]

    def both(x: Any, weight: Any, bias: Any, dy: Any) -> list[np.ndarray]:
        y = conv2d_forward(x, weight, bias, **geometry.options)
        return [y, *conv2d_backward(dy, x, weight, **geometry.options)]

    # Rounding is relative to the sum of the magnitudes, of which cancellation leaves less.
    sizes = both(*(np.abs(a) for a in wide))
    for actual, expected, size in zip(both(x, weight, bias, dy), both(*wide), sizes, strict=True):
        assert actual.dtype == np.float32
        assert np.abs(actual - expected).max() <= tolerance("float32", "product") * size.max()


def test_nan_and_infinity_reach_the_outputs_that_see_them_and_no_others() -> None:
    x = np.ones((2, 1, 5, 5))
    x[0, 0, 0, 0], x[1, 0, 4, 4] = np.nan, np.inf
    y = conv2d_forward(x, np.ones((2, 1, 2, 2)), None)
    expected = np.full((2, 2, 4, 4), 4.0)
    expected[0, :, 0, 0], expected[1, :, 3, 3] = np.nan, np.inf
    np.testing.assert_array_equal(y, expected)


def test_an_empty_batch_has_empty_dx_and_zero_parameter_gradients() -> None:
    x, weight = np.ones((0, 2, 4, 4)), np.ones((3, 2, 3, 3))
    y = conv2d_forward(x, weight, np.ones(3))
    assert y.shape == (0, 3, 2, 2)
    dx, dweight, dbias = conv2d_backward(y, x, weight)
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


X, W = (2, 4, 5, 6), (3, 4, 3, 3)


@pytest.mark.parametrize(
    ("x", "weight", "options", "error", "words"),
    [
        ((2, 4, 5), W, {}, ShapeError, r"x \(N, C, H, W\).*got \(2, 4, 5\)"),
        (X, (3, 4, 3), {}, ShapeError, r"weight \(K, C / groups, kH, kW\).*\(3, 4, 3\)"),
        (X, (3, 3, 3, 3), {}, ShapeError, r"weight has 3 input channels, x has 4 \(groups=1\)"),
        (X, W, {"groups": 2}, ConfigError, r"groups must be.* divides.*, 4 of x and 3 of y, got 2"),
        (X, W, {"groups": 0}, ConfigError, "groups must be an integer that divides.*got 0"),
        (X, W, {"groups": 1.0}, ConfigError, "groups must be an integer that divides.*got 1.0"),
        (X, (4, 4, 3, 3), {"groups": 2}, ShapeError, r"weight has 4 input .* \(groups=2\)"),
        (X, (3, 4, 6, 3), {}, ShapeError, r"kernel of \(6, 3\).*does not fit.*output would be"),
        (X, W, {"dilation": 3}, ShapeError, r"dilation \(3, 3\) does not fit"),
        (X, W, {"dilation": 0}, ConfigError, "dilation must be at least 1, got 0"),
        (X, W, {"stride": (1, 0)}, ConfigError, r"stride must be at least 1, got \(1, 0\)"),
        (X, W, {"padding": -1}, ConfigError, "padding must be at least 0, got -1"),
        (X, W, {"padding": 0.5}, ConfigError, "padding must be an integer or a pair"),
        (X, W, {"stride": (1, 1, 1)}, ConfigError, "stride must be an integer or a pair"),
        (X, W, {"stride": True}, ConfigError, "stride must be an integer or a pair"),
        (X, (3, 4, 0, 3), {}, ShapeError, r"weight \(3, 4, 0, 3\) holds no value"),
    ],
)
def test_what_does_not_fit_is_named(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=f"conv2d_forward: .*{words}"):
        conv2d_forward(np.ones(x), np.ones(weight), None, **options)


def test_a_bias_or_cotangent_of_another_shape_is_named() -> None:
    x, weight, dy = np.ones(X), np.ones(W), np.ones((2, 3, 3, 4))
    with pytest.raises(ShapeError, match=r"bias must have shape \(3,\).*got \(4,\)"):
        conv2d_forward(x, weight, np.ones(4))
    for wrong in (dy[:1], dy[:, :2], dy[:, :, 1:], dy[..., 1:]):
        with pytest.raises(ShapeError, match=r"conv2d_backward: dy must have shape \(2, 3, 3, 4\)"):
            conv2d_backward(wrong, x, weight, need_dx=False)
        with pytest.raises(ShapeError, match=r"conv2d_backward_input: dy must|weight has"):
            conv2d_backward_input(wrong, weight, input_size=(4, 5))
        with pytest.raises(ShapeError, match="conv2d_backward_weight: dy must"):
            conv2d_backward_weight(wrong[:1], x, kernel_size=(3, 3))


@pytest.mark.parametrize("groups", [0, -1, 2, 1.0, "1", True, None])
def test_groups_that_are_no_number_of_groups_are_named(groups: Any) -> None:
    x, weight, dy = np.ones(X), np.ones(W), np.ones((2, 3, 3, 4))
    for call in (
        lambda: conv2d_forward(x, weight, None, groups=groups),
        lambda: conv2d_backward(dy, x, weight, groups=groups),
        lambda: conv2d_backward_input(dy, weight, input_size=(5, 6), groups=groups),
        lambda: conv2d_backward_weight(dy, x, kernel_size=3, groups=groups),
    ):
        with pytest.raises(ConfigError, match=f"groups must be an integer.*got {groups!r}"):
            call()


def test_a_size_may_be_one_integer() -> None:
    geometry = ConvGeometry(2, 4, 6, (5, 5), (3, 3), padding=(1, 1))
    x, weight, _, dy = drawn(geometry)
    dx, dweight, _ = conv2d_backward(dy, x, weight, padding=1)
    np.testing.assert_array_equal(conv2d_backward_input(dy, weight, input_size=5, padding=1), dx)
    np.testing.assert_array_equal(conv2d_backward_weight(dy, x, kernel_size=3, padding=1), dweight)
    for wrong in (-1, 5.0, "5", (5,), (5, True)):
        with pytest.raises(ConfigError, match="conv2d_backward_input: input_size must be"):
            conv2d_backward_input(dy, weight, input_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="conv2d_backward_weight: kernel_size must be"):
            conv2d_backward_weight(dy, x, kernel_size=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dy", "weight"), [((), W), ((2, 3, 3), W), ((2, 3, 3, 4), (3,))])
def test_dx_of_arrays_with_too_few_axes_is_refused(
    dy: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeError, match=r"conv2d_backward_input: expected dy \(N, K, P, Q\)"):
        conv2d_backward_input(np.ones(dy), np.ones(weight), input_size=5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16])
def test_integer_and_half_precision_images_are_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(DtypeError, match=r"conv2d_forward: .*x"):
        conv2d_forward(np.ones(X, dtype), np.ones(W), None)


def test_precisions_are_not_mixed() -> None:
    for a, b in itertools.permutations([np.float32, np.float64]):
        with pytest.raises(DtypeError):
            conv2d_forward(np.ones(X, a), np.ones(W, b), None)
