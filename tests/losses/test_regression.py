"""Mean squared error and Huber loss: limits, the tangent, reductions and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.losses import huber_backward, huber_forward, mse_backward, mse_forward

EPS = np.finfo(np.float64).eps
SHAPE = st.lists(st.integers(1, 5), max_size=3).map(tuple)
SEED = st.integers(0, 2**32 - 1)
PAIRS = {"mse": (mse_forward, mse_backward), "huber": (huber_forward, huber_backward)}
each = pytest.mark.parametrize("name", PAIRS)


def draw(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.asarray(3 * rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))


@each
@given(shape=SHAPE, seed=SEED, reduction=st.sampled_from(["mean", "sum"]))
@settings(max_examples=30, deadline=None)
def test_backward_is_the_complex_step_in_random_directions(
    name: str, shape: tuple[int, ...], seed: int, reduction: str
) -> None:
    forward, backward = PAIRS[name]
    x, y = draw(seed, shape)
    u, w = draw(seed + 1, shape)
    dx, dy = backward(0.7, x, y, reduction=reduction)
    loss = forward(x + 1e-30j * u, y + 1e-30j * w, reduction=reduction)
    ours = (dx * u).sum() + (dy * w).sum()
    scale = np.abs(dx * u).sum() + np.abs(dy * w).sum()
    assert abs(ours - 0.7 * loss.imag / 1e-30) <= 50 * EPS * scale


@each
@given(shape=SHAPE, seed=SEED)
@settings(max_examples=30, deadline=None)
def test_reductions_relate_by_the_number_of_elements(
    name: str, shape: tuple[int, ...], seed: int
) -> None:
    forward, backward = PAIRS[name]
    x, y = draw(seed, shape)
    loss = {r: forward(x, y, reduction=r) for r in ("mean", "sum", "none")}
    assert loss["none"].shape == shape
    assert loss["sum"] == loss["none"].sum()
    assert loss["mean"] == loss["sum"] / x.size
    dx = {r: backward(1.0, x, y, reduction=r)[0] for r in ("mean", "sum")}
    np.testing.assert_allclose(dx["mean"], dx["sum"] / x.size, rtol=4 * EPS)
    np.testing.assert_array_equal(backward(np.ones(shape), x, y, reduction="none")[0], dx["sum"])


@each
@given(shape=SHAPE, seed=SEED)
def test_loss_is_even_and_the_gradients_are_opposite(
    name: str, shape: tuple[int, ...], seed: int
) -> None:
    forward, backward = PAIRS[name]
    x, y = draw(seed, shape)
    assert forward(x, y) == forward(y, x)
    dx, dy = backward(1.0, x, y)
    np.testing.assert_array_equal(dx, -dy)
    np.testing.assert_array_equal(dx, backward(1.0, y, x)[1])


def test_mse_values() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 1.0])
    assert mse_forward(x, y, reduction="sum") == 13
    np.testing.assert_array_equal(mse_backward(1.0, x, y, reduction="sum")[0], [0, 4, 6])


def test_huber_values_on_both_sides_of_delta() -> None:
    x, y = np.array([0.5, -2.0, 3.0]), np.zeros(3)
    loss = huber_forward(x, y, delta=2.0, reduction="none")
    np.testing.assert_array_equal(loss, [0.125, 2, 4])
    dx, _ = huber_backward(np.ones(3), x, y, delta=2.0, reduction="none")
    np.testing.assert_array_equal(dx, [0.5, -2, 2])


@given(st.floats(1e-3, 1e3))
def test_huber_joins_its_tangent_in_value_and_slope(delta: float) -> None:
    x = np.array([np.nextafter(delta, 0), delta, np.nextafter(delta, np.inf)])
    loss = huber_forward(x, np.zeros(3), delta=delta, reduction="none")
    assert np.abs(loss - delta**2 / 2).max() <= 4 * EPS * delta**2
    slope, _ = huber_backward(np.ones(3), x, np.zeros(3), delta=delta, reduction="none")
    np.testing.assert_allclose(slope, delta, rtol=2 * EPS)
    assert slope.max() == delta


@given(SHAPE, SEED)
def test_huber_with_a_wide_delta_is_half_the_squared_error(
    shape: tuple[int, ...], seed: int
) -> None:
    x, y = draw(seed, shape)
    assert huber_forward(x, y, delta=1e300, reduction="none") == pytest.approx(
        mse_forward(x, y, reduction="none") / 2, rel=2 * EPS
    )
    half = mse_backward(0.5, x, y)[0]
    np.testing.assert_allclose(huber_backward(1.0, x, y, delta=1e300)[0], half, rtol=4 * EPS)


@given(SHAPE, SEED)
def test_huber_with_a_narrow_delta_is_delta_times_the_absolute_error(
    shape: tuple[int, ...], seed: int
) -> None:
    x, y = draw(seed, shape)
    delta = 1e-300
    loss = huber_forward(x, y, delta=delta, reduction="none")
    np.testing.assert_allclose(loss / delta, np.abs(x - y), rtol=4 * EPS)
    slope = huber_backward(1.0, x, y, delta=delta, reduction="sum")[0]
    np.testing.assert_array_equal(slope / delta, np.sign(x - y))


@each
def test_nan_is_passed_on(name: str) -> None:
    forward, backward = PAIRS[name]
    x, y = np.array([np.nan, 1.0]), np.zeros(2)
    np.testing.assert_array_equal(np.isnan(forward(x, y, reduction="none")), [True, False])
    dx, _ = backward(np.ones(2), x, y, reduction="none")
    np.testing.assert_array_equal(np.isnan(dx), [True, False])


@each
def test_dtype_is_kept(name: str) -> None:
    forward, backward = PAIRS[name]
    for dtype in (np.float32, np.float64):
        x, y = np.arange(4, dtype=dtype), np.ones(4, dtype)
        for reduction in ("mean", "sum"):
            outputs = (
                forward(x, y, reduction=reduction),
                *backward(1.0, x, y, reduction=reduction),
            )
            assert {a.dtype for a in outputs} == {np.dtype(dtype)}


def test_huber_keeps_float32_for_any_kind_of_delta() -> None:
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    for delta in (1, 1.0, np.float64(1), np.float32(1)):
        dx, _ = huber_backward(1.0, x, y, delta=delta)
        assert huber_forward(x, y, delta=delta).dtype == dx.dtype == np.float32


@pytest.mark.parametrize("delta", [0, -1.0, math.nan, math.inf, "1", None])
def test_a_delta_that_is_no_positive_number_is_refused(delta) -> None:
    for call in (huber_forward, lambda x, y, delta: huber_backward(1.0, x, y, delta=delta)):
        with pytest.raises(ConfigError, match="delta must be a finite number > 0"):
            call(np.ones(2), np.ones(2), delta=delta)


@each
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    forward, backward = PAIRS[name]
    with pytest.raises(DtypeError, match=f"{name}_forward: target must be an array, got list"):
        forward(np.ones(2), [1.0, 1.0])
    with pytest.raises(DtypeError, match="input float64, target float32"):
        forward(np.ones(2), np.ones(2, np.float32))
    with pytest.raises(ShapeError, match=r"input \(2,\), target \(1,\)"):
        forward(np.ones(2), np.ones(1))
    with pytest.raises(ShapeError, match=rf"{name}_backward: .*input \(2,\)"):
        backward(1.0, np.ones(2), np.ones(3))
    with pytest.raises(ShapeError, match="the mean of an empty batch"):
        forward(np.ones(0), np.ones(0))
    with pytest.raises(ConfigError, match=r"reduction must be one of .* got 'batchmean'"):
        forward(np.ones(2), np.ones(2), reduction="batchmean")
