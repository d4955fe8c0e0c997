"""The linear map: exact adjoint identities on integers, layouts, and its errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import DtypeError, ShapeError
from refkd.ops import linear_backward, linear_forward
from refkd.testing.tolerances import tolerance

LEADING = st.lists(st.integers(0, 4), max_size=2).map(tuple)
WIDTH = st.integers(1, 6)
SEED = st.integers(0, 2**32 - 1)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    # Sums of products of small integers are exact in float64, in any order.
    return rng.integers(-9, 10, shape).astype(np.float64)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum())


@given(LEADING, WIDTH, WIDTH, SEED)
@settings(max_examples=50, deadline=None)
def test_backward_is_the_exact_adjoint_in_x_weight_and_bias(
    leading: tuple[int, ...], fan_in: int, fan_out: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = integers(rng, *leading, fan_in), integers(rng, fan_out, fan_in)
    bias, dy = integers(rng, fan_out), integers(rng, *leading, fan_out)
    dx, dweight, dbias = linear_backward(dy, x, weight)
    product = inner(dy, linear_forward(x, weight, None))
    assert inner(dx, x) == product
    assert inner(dweight, weight) == product
    assert inner(dbias, bias) == inner(dy, linear_forward(x, weight, bias)) - product
    assert (dx.shape, dweight.shape, dbias.shape) == (x.shape, weight.shape, bias.shape)


@given(WIDTH, WIDTH, WIDTH, SEED)
@settings(max_examples=25, deadline=None)
def test_every_entry_is_the_sum_its_formula_says(
    batch: int, fan_in: int, fan_out: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = integers(rng, batch, fan_in), integers(rng, fan_out, fan_in), integers(rng, 1)
    y = linear_forward(x, weight, np.repeat(bias, fan_out))
    for n, o in np.ndindex(batch, fan_out):
        assert y[n, o] == sum(x[n, i] * weight[o, i] for i in range(fan_in)) + bias[0]


def test_without_need_dx_only_dx_is_missing() -> None:
    rng = np.random.default_rng(0)
    dy, x, weight = integers(rng, 4, 2), integers(rng, 4, 3), integers(rng, 2, 3)
    dx, dweight, dbias = linear_backward(dy, x, weight, need_dx=False)
    _, expected_dweight, expected_dbias = linear_backward(dy, x, weight)
    assert dx is None
    np.testing.assert_array_equal(dweight, expected_dweight)
    np.testing.assert_array_equal(dbias, expected_dbias)


def test_strides_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    x, weight, dy = integers(rng, 3, 4, 5), integers(rng, 2, 5), integers(rng, 3, 4, 2)
    views = [np.asfortranarray(x), x[::-1].copy()[::-1], x.repeat(2, axis=2)[..., ::2]]
    for view in views:
        np.testing.assert_array_equal(
            linear_forward(view, np.asfortranarray(weight), None), linear_forward(x, weight, None)
        )
        for ours, expected in zip(
            linear_backward(np.asfortranarray(dy), view, weight),
            linear_backward(dy, x, weight),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, expected)


def test_an_empty_batch_has_empty_dx_and_zero_parameter_gradients() -> None:
    weight = np.ones((2, 3))
    assert linear_forward(np.ones((0, 3)), weight, np.ones(2)).shape == (0, 2)
    dx, dweight, dbias = linear_backward(np.ones((0, 2)), np.ones((0, 3)), weight)
    assert dx.shape == (0, 3)
    assert not dweight.any()
    assert not dbias.any()


@pytest.mark.parametrize("leading", [(300, 333), (99_900,)])
def test_the_gradient_of_the_bias_does_not_drift_over_many_rows(leading: tuple[int, ...]) -> None:
    x, weight = np.ones((*leading, 1), np.float32), np.ones((3, 1), np.float32)
    _, _, dbias = linear_backward(np.full((*leading, 3), 0.1, np.float32), x, weight)
    np.testing.assert_allclose(dbias, 9990, rtol=tolerance("float32", "reduction"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(dtype: type[np.generic]) -> None:
    x, weight, bias = np.ones((2, 3), dtype), np.ones((4, 3), dtype), np.ones(4, dtype)
    y = linear_forward(x, weight, bias)
    assert {a.dtype for a in (y, *linear_backward(y, x, weight))} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("x", "weight", "bias", "words"),
    [
        ((4, 3), (2, 5), None, r"x \(4, 3\) and weight \(2, 5\)"),
        ((4, 3), (3,), None, r"weight \(3,\)"),
        ((), (2, 3), None, r"x \(\)"),
        ((4, 3), (2, 3), (3,), r"bias must have shape \(2,\).*got \(3,\)"),
        ((4, 3), (2, 3), (1, 2), r"bias must have shape \(2,\).*got \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, words: str
) -> None:
    with pytest.raises(ShapeError, match=f"linear_forward: .*{words}"):
        linear_forward(np.ones(x), np.ones(weight), None if bias is None else np.ones(bias))


@pytest.mark.parametrize("dy", [(4, 3), (2,), (1, 2), (4, 1, 2)])
def test_a_cotangent_of_another_shape_is_refused(dy: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"linear_backward: dy must have shape \(4, 2\)"):
        linear_backward(np.ones(dy), np.ones((4, 3)), np.ones((2, 3)))


def test_a_list_is_refused_by_name() -> None:
    with pytest.raises(DtypeError, match="linear_forward: x must be an array, got list"):
        linear_forward([[1.0]], np.ones((1, 1)), None)
    with pytest.raises(DtypeError, match="linear_backward: weight must be an array, got list"):
        linear_backward(np.ones((1, 1)), np.ones((1, 1)), [[1.0]])


def test_mixed_precision_is_refused() -> None:
    with pytest.raises(DtypeError, match="x float32, weight float64"):
        linear_forward(np.ones((1, 1), np.float32), np.ones((1, 1)), None)


def test_a_map_from_nothing_is_its_bias() -> None:
    bias = np.array([1.0, 2.0, 3.0])
    x, weight = np.zeros((2, 0)), np.zeros((3, 0))
    np.testing.assert_array_equal(linear_forward(x, weight, bias), [bias, bias])
    dx, dweight, dbias = linear_backward(np.ones((2, 3)), x, weight)
    assert (dx.shape, dweight.shape) == ((2, 0), (3, 0))
    np.testing.assert_array_equal(dbias, [2.0, 2.0, 2.0])
