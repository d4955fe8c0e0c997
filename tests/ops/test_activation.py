"""Activations: derivatives by complex step, tails, kinks, symmetries, NaN and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops
from refkd.errors import ConfigError, DtypeError, ShapeError

EPS = np.finfo(np.float64).eps
gelu_tanh_forward = partial(ops.gelu_forward, approximate="tanh")
gelu_tanh_backward = partial(ops.gelu_backward, approximate="tanh")

# name: forward, backward, whether the backward takes the output
PAIRS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray], bool]] = {
    "relu": (ops.relu_forward, ops.relu_backward, True),
    "sigmoid": (ops.sigmoid_forward, ops.sigmoid_backward, True),
    "tanh": (ops.tanh_forward, ops.tanh_backward, True),
    "silu": (ops.silu_forward, ops.silu_backward, False),
    "gelu": (ops.gelu_forward, ops.gelu_backward, False),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward, False),
}
each = pytest.mark.parametrize("name", PAIRS)
GATED = pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])


def slope(name: str, x: np.ndarray, dy: np.ndarray | None = None) -> np.ndarray:
    forward, backward, takes_output = PAIRS[name]
    dy = np.ones_like(x) if dy is None else dy
    return backward(dy, forward(x) if takes_output else x)


@each
@given(shape=st.lists(st.integers(1, 6), max_size=3).map(tuple), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_backward_is_the_complex_step_derivative(
    name: str, shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.asarray(3 * rng.standard_normal(shape))
    dy = np.asarray(rng.standard_normal(shape))
    derivative = PAIRS[name][0](x + 1e-30j).imag / 1e-30
    assert np.abs(slope(name, x, dy) - dy * derivative).max() <= 20 * EPS * np.abs(dy).max()


@each
def test_dtype_and_shape_are_kept(name: str) -> None:
    for dtype in (np.float32, np.float64, np.complex128):
        x = np.linspace(-3, 3, 6).reshape(2, 3).astype(dtype)
        for y in (PAIRS[name][0](x), slope(name, x)):
            assert (y.dtype, y.shape) == (x.dtype, x.shape)


@each
def test_nan_passes_through_forward_and_backward(name: str) -> None:
    forward, backward, _ = PAIRS[name]
    x, nan = np.array([-1.0, 2.0]), np.array([np.nan, np.nan])
    np.testing.assert_array_equal(np.isnan(forward(np.array([-1.0, np.nan, 2.0]))), [0, 1, 0])
    assert np.isnan(backward(nan, x)).all()
    if name != "relu":  # whose slope is 0 wherever y > 0 does not hold
        assert np.isnan(backward(np.ones(2), nan)).all()


@each
def test_infinity_and_the_largest_numbers_do_not_overflow(name: str) -> None:
    x = np.array([1e100, 1e308, np.inf])
    if name.startswith("gelu"):  # squares and cubes its argument
        x = np.array([1e3, 1e50, 1e100])
    limit = 1.0 if name in ("sigmoid", "tanh") else x
    np.testing.assert_array_equal(PAIRS[name][0](x), limit)


def test_relu_slope_at_zero_of_either_sign_is_zero() -> None:
    np.testing.assert_array_equal(
        slope("relu", np.array([-1.0, -0.0, 0.0, 5e-324, 1.0])), [0, 0, 0, 1, 1]
    )


def test_relu_is_idempotent_and_splits_the_identity() -> None:
    x = np.random.default_rng(0).standard_normal(50)
    y = ops.relu_forward(x)
    np.testing.assert_array_equal(ops.relu_forward(y), y)
    np.testing.assert_array_equal(y - ops.relu_forward(-x), x)


def test_relu_of_a_complex_number_branches_on_the_real_part() -> None:
    x = np.array([1 - 5j, -1 + 5j, 0 + 5j])
    np.testing.assert_array_equal(ops.relu_forward(x), [1 - 5j, 0, 0])


def test_sigmoid_left_tail_is_the_exponential_to_the_last_bit() -> None:
    x = -np.linspace(40, 745, 200)
    np.testing.assert_array_equal(ops.sigmoid_forward(x), np.exp(x))
    assert ops.sigmoid_forward(np.array(-745.0)) == math.exp(-745) == 5e-324


def test_sigmoid_far_out_is_zero_and_one_without_a_warning() -> None:
    x = np.array([-np.inf, -1e308, -1e4, -746.0, 37.0, 1e4, 1e308, np.inf])
    np.testing.assert_array_equal(ops.sigmoid_forward(x), [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(slope("sigmoid", x), np.zeros(8))


def test_sigmoid_in_float32_has_the_tail_of_float32() -> None:
    x = np.array([-1e4, -103.0, -88.0, 1e4], np.float32)
    np.testing.assert_array_equal(ops.sigmoid_forward(x)[[0, 1, 3]], [0, np.exp(x[1]), 1])
    assert ops.sigmoid_forward(x)[2] == pytest.approx(math.exp(-88), rel=1e-6)


@given(st.floats(-1e3, 1e3))
def test_sigmoid_of_x_and_of_minus_x_sum_to_one(x: float) -> None:
    total = ops.sigmoid_forward(np.array(x)) + ops.sigmoid_forward(np.array(-x))
    assert abs(total - 1) <= EPS


def test_tanh_saturates_exactly_with_slope_zero() -> None:
    x = np.array([-1e308, -20.0, 20.0, 1e308])
    np.testing.assert_array_equal(ops.tanh_forward(x), [-1, -1, 1, 1])
    np.testing.assert_array_equal(slope("tanh", x), np.zeros(4))


def test_tanh_is_the_shifted_sigmoid() -> None:
    x = np.linspace(-15, 15, 301)
    error = ops.tanh_forward(x) - (2 * ops.sigmoid_forward(2 * x) - 1)
    assert np.abs(error).max() <= 2 * EPS


@GATED
def test_a_gated_identity_minus_its_mirror_is_the_identity(name: str) -> None:
    # x g(x) with g(x) + g(−x) = 1, hence f(x) − f(−x) = x and f'(x) + f'(−x) = 1.
    x = np.linspace(-50, 50, 1001)
    forward = PAIRS[name][0]
    assert np.abs(forward(x) - forward(-x) - x).max() <= 50 * EPS
    assert np.abs(slope(name, x) + slope(name, -x) - 1).max() <= 100 * EPS


@GATED
def test_a_gated_identity_is_zero_on_the_left_and_the_identity_on_the_right(name: str) -> None:
    x = np.array([-1e4, -800.0, 800.0, 1e4])
    np.testing.assert_array_equal(PAIRS[name][0](x), [0, 0, 800, 1e4])
    np.testing.assert_array_equal(slope(name, x), [0, 0, 1, 1])


@GATED
def test_a_gated_identity_has_slope_one_half_at_zero(name: str) -> None:
    assert PAIRS[name][0](np.array(0.0)) == 0
    assert slope(name, np.array(0.0)) == 0.5


def test_gelu_values_of_the_normal_distribution() -> None:
    # Φ(1) = .8413447460685429 and φ(1) = .24197072451914337 (tables of the normal law).
    assert ops.gelu_forward(np.array(1.0)) == pytest.approx(0.8413447460685429, rel=2 * EPS)
    expected = 0.8413447460685429 + 0.24197072451914337
    assert slope("gelu", np.array(1.0)) == pytest.approx(expected, rel=2 * EPS)


def test_the_two_forms_of_gelu_differ_by_less_than_five_ten_thousandths() -> None:
    x = np.linspace(-6, 6, 2001)
    difference = np.abs(ops.gelu_forward(x) - gelu_tanh_forward(x)).max()
    assert 4e-4 < difference < 5e-4


def test_exact_gelu_is_the_default() -> None:
    x = np.linspace(-3, 3, 7)
    np.testing.assert_array_equal(ops.gelu_forward(x), ops.gelu_forward(x, approximate="none"))


def test_an_unknown_gelu_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"approximate must be one of .* did you mean 'tanh'"):
        ops.gelu_forward(np.ones(2), approximate="tahn")
    with pytest.raises(ConfigError, match="gelu_backward: approximate"):
        ops.gelu_backward(np.ones(2), np.ones(2), approximate=True)  # type: ignore[arg-type]


@each
def test_what_is_no_floating_array_is_refused(name: str) -> None:
    forward, backward, _ = PAIRS[name]
    with pytest.raises(DtypeError, match="got list"):
        forward([1.0])
    with pytest.raises(DtypeError, match="x int64"):
        forward(np.ones(2, np.int64))
    with pytest.raises(DtypeError, match="dy float32"):
        backward(np.ones(2, np.float32), np.ones(2))
    with pytest.raises(ShapeError, match=r"dy \(2,\)"):
        backward(np.ones(2), np.ones(1))
