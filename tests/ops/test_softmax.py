"""Softmax and log-softmax: normalisation, limits, extreme logits, derivatives, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)

EPS = np.finfo(np.float64).eps
SHAPE = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
SEED = st.integers(0, 2**32 - 1)
TEMPERATURE = st.floats(0.1, 50)
both = pytest.mark.parametrize("forward", [softmax_forward, log_softmax_forward])


@given(SHAPE, SEED, TEMPERATURE, st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=50, deadline=None)
def test_probabilities_sum_to_one_along_every_axis(
    shape: tuple[int, ...], seed: int, temperature: float, scale: float
) -> None:
    x = scale * np.random.default_rng(seed).standard_normal(shape)
    for axis in range(-len(shape), len(shape)):
        q = softmax_forward(x, axis=axis, temperature=temperature)
        assert (q >= 0).all()
        assert np.abs(q.sum(axis=axis) - 1).max() <= 4 * EPS


@given(SHAPE, SEED, TEMPERATURE)
@settings(max_examples=50, deadline=None)
def test_an_axis_is_the_last_axis_of_the_moved_array(
    shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    for axis in range(len(shape)):
        for forward, backward in (
            (softmax_forward, softmax_backward),
            (log_softmax_forward, log_softmax_backward),
        ):
            y = forward(x, axis=axis, temperature=temperature)
            dx = backward(dy, y, axis=axis, temperature=temperature)
            moved_y = forward(np.moveaxis(x, axis, -1), temperature=temperature)
            moved_dx = backward(np.moveaxis(dy, axis, -1), moved_y, temperature=temperature)
            np.testing.assert_allclose(np.moveaxis(y, axis, -1), moved_y, rtol=0, atol=1e-13)
            np.testing.assert_allclose(np.moveaxis(dx, axis, -1), moved_dx, rtol=0, atol=1e-13)


@given(st.integers(1, 8), SEED, st.integers(-10_000, 10_000))
def test_a_shift_of_all_logits_changes_nothing(classes: int, seed: int, shift: int) -> None:
    # Multiples of 1/8 below 2^20 are shifted without rounding.
    x = np.random.default_rng(seed).integers(-200, 200, classes) / 8
    np.testing.assert_array_equal(softmax_forward(x + shift), softmax_forward(x))
    np.testing.assert_array_equal(log_softmax_forward(x + shift), log_softmax_forward(x))


@given(SHAPE, SEED, TEMPERATURE)
def test_temperature_divides_the_logits(
    shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    expected = softmax_forward(x / temperature)
    q = softmax_forward(x, temperature=temperature)
    assert (np.abs(q - expected) <= 300 * EPS * expected).all()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1, [0.2104, 0.2325, 0.3468, 0.2104]),
        (2, [0.2307, 0.2425, 0.2962, 0.2307]),
        (3, [0.2372, 0.2453, 0.2803, 0.2372]),
        (4, [0.2405, 0.2466, 0.2725, 0.2405]),
        (5, [0.2424, 0.2473, 0.2679, 0.2424]),
    ],
)
def test_softened_probabilities_of_the_published_example(
    temperature: float, expected: list[float]
) -> None:
    q = softmax_forward(np.array([0.0, 0.1, 0.5, 0.0]), temperature=temperature)
    np.testing.assert_array_equal(q.round(4), expected)


def test_low_temperature_tends_to_the_maximum_and_high_to_uniform() -> None:
    x = np.array([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(softmax_forward(x, temperature=1e-3), [0, 1, 0])
    np.testing.assert_allclose(softmax_forward(x, temperature=1e9), 1 / 3, rtol=1e-8)


def test_ties_share_the_mass() -> None:
    np.testing.assert_array_equal(
        softmax_forward(np.array([7.0, -7.0, 7.0]), temperature=1e-3), [0.5, 0, 0.5]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_extreme_logits_are_exact(dtype: type[np.floating], magnitude: float) -> None:
    m = dtype(magnitude)
    x = np.array([[m, -m], [-m, -m], [0, m]], dtype)
    np.testing.assert_array_equal(softmax_forward(x), [[1, 0], [0.5, 0.5], [0, 1]])
    half = dtype(-math.log(2))
    np.testing.assert_array_equal(log_softmax_forward(x), [[0, -2 * m], [half, half], [-m, 0]])


def test_log_softmax_is_finite_where_the_logarithm_of_softmax_is_not() -> None:
    x = np.array([0.0, 1e4])
    assert softmax_forward(x)[0] == 0
    np.testing.assert_array_equal(log_softmax_forward(x), [-1e4, 0])


def test_an_impossible_class_has_probability_zero() -> None:
    q = softmax_forward(np.array([0.0, -np.inf, 0.0]))
    np.testing.assert_array_equal(q, [0.5, 0, 0.5])


@given(SHAPE, SEED, TEMPERATURE)
def test_log_softmax_is_the_logarithm_of_softmax(
    shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    log_q = log_softmax_forward(x, temperature=temperature)
    expected = np.log(softmax_forward(x, temperature=temperature))
    assert (np.abs(log_q - expected) <= 8 * EPS * (1 + np.abs(expected))).all()


@pytest.mark.parametrize(
    ("forward", "backward"),
    [(softmax_forward, softmax_backward), (log_softmax_forward, log_softmax_backward)],
)
@given(shape=SHAPE, seed=SEED, temperature=st.floats(0.3, 20))
@settings(max_examples=30, deadline=None)
def test_backward_is_the_complex_step_in_a_random_direction(
    forward, backward, shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy, u = (rng.standard_normal(shape) for _ in range(3))
    axis = int(rng.integers(len(shape)))
    options = {"axis": axis, "temperature": temperature}
    dx = backward(dy, forward(x, **options), **options)
    directional = (dy * forward(x + 1e-30j * u, **options).imag / 1e-30).sum()
    scale = (np.abs(dx * u)).sum() + np.abs(dy).sum() / temperature
    assert abs((dx * u).sum() - directional) <= 50 * EPS * scale


@given(SHAPE, SEED, TEMPERATURE)
@settings(max_examples=50, deadline=None)
def test_gradients_are_orthogonal_to_ones(
    shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    # Because neither function sees a shift of the logits.
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    for forward, backward in (
        (softmax_forward, softmax_backward),
        (log_softmax_forward, log_softmax_backward),
    ):
        y = forward(x, temperature=temperature)
        dx = backward(dy, y, temperature=temperature)
        scale = np.abs(dy).sum(axis=-1).max() / temperature
        assert np.abs(dx.sum(axis=-1)).max() <= 8 * EPS * scale


def test_nan_stays_in_its_row() -> None:
    x = np.array([[0.0, np.nan], [0.0, 0.0]])
    for forward in (softmax_forward, log_softmax_forward):
        np.testing.assert_array_equal(np.isnan(forward(x)).all(axis=1), [True, False])


@both
def test_dtype_is_kept_for_any_kind_of_temperature(forward) -> None:
    for temperature in (2, 2.0, np.float64(2), np.float32(2), np.int64(2)):
        for dtype in (np.float32, np.float64, np.complex128):
            assert forward(np.ones((2, 3), dtype), temperature=temperature).dtype == dtype


@both
@pytest.mark.parametrize("axis", [2, -3, 10**9])
def test_an_axis_out_of_range_is_refused(forward, axis: int) -> None:
    with pytest.raises(ShapeError, match=rf"axis {axis} is out of range for shape \(2, 3\)"):
        forward(np.ones((2, 3)), axis=axis)


@both
@pytest.mark.parametrize("axis", [1.0, True, None, (0,)])
def test_an_axis_is_an_integer(forward, axis) -> None:
    with pytest.raises(ConfigError, match="axis must be an integer, got"):
        forward(np.ones((2, 3)), axis=axis)


@both
def test_an_empty_axis_is_refused_and_an_empty_batch_is_not(forward) -> None:
    with pytest.raises(ShapeError, match=r"axis -1 is empty in shape \(2, 0\)"):
        forward(np.ones((2, 0)))
    with pytest.raises(ShapeError, match=r"axis 0 is out of range for shape \(\)"):
        forward(np.ones(()), axis=0)
    assert forward(np.ones((0, 3))).shape == (0, 3)


@both
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "2", None, True])
def test_a_temperature_that_is_no_positive_number_is_refused(forward, temperature) -> None:
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        forward(np.ones(3), temperature=temperature)


@both
def test_what_is_no_floating_array_is_refused(forward) -> None:
    with pytest.raises(DtypeError, match="x must be an array, got list"):
        forward([1.0, 2.0])
    with pytest.raises(DtypeError, match="x int64"):
        forward(np.arange(3))


@pytest.mark.parametrize("backward", [softmax_backward, log_softmax_backward])
def test_backward_refuses_what_does_not_fit(backward) -> None:
    with pytest.raises(ShapeError, match=r"dy \(2, 3\), y \(3,\)"):
        backward(np.ones((2, 3)), np.ones(3))
    with pytest.raises(DtypeError, match="dy float32, y float64"):
        backward(np.ones(3, np.float32), np.ones(3))
    with pytest.raises(ConfigError, match="temperature"):
        backward(np.ones(3), np.ones(3), temperature=0)
