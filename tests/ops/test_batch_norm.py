"""Batch norm: what its output and gradient keep to, accuracy in float32, modes, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import (
    batch_norm_backward,
    batch_norm_backward_stepwise,
    batch_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    running_statistics,
)
from refkd.testing.layouts import LAYOUTS
from refkd.testing.tolerances import tolerance

ROUNDINGS = tolerance("float64", "reduction")
few = settings(max_examples=25)
SEED = st.integers(0, 2**32 - 1)
SPACE = st.lists(st.integers(1, 4), max_size=3).map(tuple)


def channels_last(x: np.ndarray) -> np.ndarray:
    """Return an equal array whose channels are adjacent in memory."""
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


LAYOUT = st.sampled_from([np.ascontiguousarray, channels_last, *LAYOUTS.values()])


@st.composite
def shapes(draw: st.DrawFn, least: int = 3) -> tuple[int, ...]:
    """Draw (N, C, ...) with at least ``least`` values per channel."""
    space = draw(SPACE)
    batch = draw(st.integers(-(-least // int(np.prod(space))), 6))
    return (batch, draw(st.integers(1, 4)), *space)


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return dy, x, weight and bias."""
    dy, x = rng.standard_normal(shape), 0.5 + 2 * rng.standard_normal(shape)
    return dy, x, rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1])


def trained(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: float
) -> dict[str, Any]:
    """Return the outputs and gradients with statistics of the batch."""
    y, mean, var, rstd = batch_norm_forward(x, weight, bias, None, None, **options)
    dx, dweight, dbias = batch_norm_backward(dy, x, weight, mean, rstd, batch_statistics=True)
    names = ("y", "mean", "var", "rstd", "dx", "dweight", "dbias")
    return dict(zip(names, (y, mean, var, rstd, dx, dweight, dbias), strict=True))


def by_channel(x: np.ndarray) -> np.ndarray:
    """Return (C, M): the values of each channel in a row."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def spread(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def assert_close(actual: np.ndarray, expected: np.ndarray, allowed: float, scale: Any = 0) -> None:
    """Require max|a − e| <= allowed · max(|e|, scale)."""
    assert actual.shape == expected.shape
    size = max(np.max(np.abs(expected), initial=0), np.max(scale))
    assert np.max(np.abs(actual - expected), initial=0) <= allowed * size


@few
@given(shapes(), SEED)
def test_a_channel_of_y_has_mean_bias_and_deviation_weight(
    shape: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    y = by_channel(trained(dy, x, weight, bias, eps=1e-30)["y"])
    assert_close(y.mean(axis=1), bias, ROUNDINGS, weight)
    assert_close(y.std(axis=1), weight, ROUNDINGS, np.abs(bias))


@few
@given(shapes(), SEED)
def test_the_statistics_are_mean_biased_variance_and_one_over_the_root(
    shape: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out, values = trained(dy, x, weight, bias, eps=0.125), by_channel(x)
    assert_close(out["mean"], values.mean(axis=1), ROUNDINGS, np.abs(values))
    assert_close(out["var"], values.var(axis=1), ROUNDINGS)
    assert_close(out["rstd"], 1 / np.sqrt(values.var(axis=1) + 0.125), ROUNDINGS)


@few
@given(shapes(), LAYOUT, SEED)
def test_backward_is_the_complex_step_in_a_random_direction(
    shape: tuple[int, ...], relay: Callable[..., np.ndarray], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dy, x, weight, bias = draw(rng, shape)
    dy, x = relay(dy), relay(x)
    out = trained(dy, x, weight, bias, eps=0.1)
    for name, place in (("dx", 0), ("dweight", 1), ("dbias", 2)):
        point = [x, weight, bias]
        u = rng.standard_normal(point[place].shape)
        point[place] = point[place] + 1e-30j * u
        slope = (dy * batch_norm_forward(*point, None, None, eps=0.1)[0].imag / 1e-30).sum()
        size = np.abs(dy).sum() * (np.abs(weight).max() * 10 + np.abs(x).max()) * np.abs(u).max()
        assert abs((out[name] * u).sum() - slope) <= ROUNDINGS * size


@few
@given(shapes(), SEED)
def test_the_gradient_is_orthogonal_to_ones_and_to_x_hat_in_every_channel(
    shape: tuple[int, ...], seed: int
) -> None:
    # Because y sees neither a shift nor, where eps vanishes, a scale of its channel.
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = trained(dy, x, weight, bias, eps=1e-30)
    x_hat = (x - spread(out["mean"], x)) * spread(out["rstd"], x)
    unit = (np.abs(by_channel(dy)).sum(axis=1) * weight * out["rstd"]).max()
    for direction in (np.ones_like(x), x_hat):
        along = by_channel(out["dx"] * direction).sum(axis=1)
        assert np.abs(along).max() <= ROUNDINGS * unit * np.abs(direction).max()


@few
@given(shapes(), SEED, st.floats(0.01, 10))
def test_along_x_hat_the_gradient_is_what_eps_leaves(
    shape: tuple[int, ...], seed: int, eps: float
) -> None:
    # Σ x̂² = M v/(v + ε), hence Σ dx x̂ = w r dw (1 − v r²) = w r³ ε dw.
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = trained(dy, x, weight, bias, eps=eps)
    x_hat = (x - spread(out["mean"], x)) * spread(out["rstd"], x)
    along = by_channel(out["dx"] * x_hat).sum(axis=1)
    unit = np.abs(by_channel(dy)).sum(axis=1).max() * np.abs(x_hat).max() * out["rstd"].max()
    expected = weight * out["rstd"] ** 3 * eps * out["dweight"]
    assert_close(along, expected, ROUNDINGS, unit * weight.max())


@few
@given(shapes(), SEED, st.integers(-10_000, 10_000))
def test_a_shift_of_a_channel_changes_neither_y_nor_the_gradient(
    shape: tuple[int, ...], seed: int, shift: int
) -> None:
    rng = np.random.default_rng(seed)
    dy, _, weight, bias = draw(rng, shape)
    x = rng.integers(-16, 17, shape) / 8  # multiples of 1/8 are shifted without rounding
    here, there = trained(dy, x, weight, bias), trained(dy, x + shift, weight, bias)
    unit = spread(weight * here["rstd"], x).max() * max(1, np.abs(dy).max())
    for name in ("y", "dx", "dweight", "dbias"):
        assert_close(there[name], here[name], ROUNDINGS, unit * np.abs(by_channel(x)).max())


@few
@given(shapes(), SEED, st.integers(-20, 20))
def test_a_scale_of_a_channel_changes_no_bit_of_y_and_divides_the_gradient(
    shape: tuple[int, ...], seed: int, exponent: int
) -> None:
    # By powers of two and with eps in proportion, not even the rounding changes.
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    scale = 2.0**exponent
    here = trained(dy, x, weight, bias, eps=1e-3)
    there = trained(dy, scale * x, weight, bias, eps=1e-3 * scale**2)
    for name in ("y", "dweight", "dbias"):
        np.testing.assert_array_equal(there[name], here[name])
    np.testing.assert_array_equal(there["dx"] * scale, here["dx"])


@few
@given(shapes(), SEED)
def test_closed_form_and_step_by_step_are_equal(shape: tuple[int, ...], seed: int) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = trained(dy, x, weight, bias, eps=0.1)
    steps = batch_norm_backward_stepwise(dy, x, weight, out["mean"], out["rstd"])
    unit = np.abs(by_channel(dy)).sum(axis=1).max() * np.abs(x).max() * out["rstd"].max()
    for name, step in zip(("dx", "dweight", "dbias"), steps, strict=True):
        assert_close(out[name], step, ROUNDINGS, unit)


@few
@given(shapes(2), SEED)
def test_of_a_table_it_is_layer_norm_of_the_transposed(shape: tuple[int, ...], seed: int) -> None:
    dy, x, *_ = draw(np.random.default_rng(seed), shape)
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    out = trained(dy, x, ones, zeros, eps=0.5)
    rows, cotangent = by_channel(x), by_channel(dy)
    one, zero = np.ones(rows.shape[1]), np.zeros(rows.shape[1])
    y, mean, rstd = layer_norm_forward(rows, one, zero, eps=0.5)
    dx, *_ = layer_norm_backward(cotangent, rows, one, mean, rstd)
    assert_close(by_channel(out["y"]), y, ROUNDINGS)
    assert_close(by_channel(out["dx"]), dx, ROUNDINGS, np.abs(dy))
    assert_close(out["rstd"], rstd, ROUNDINGS)


# Running statistics


@few
@given(shapes(1), LAYOUT, SEED)
def test_with_running_statistics_the_backward_is_the_exact_adjoint(
    shape: tuple[int, ...], relay: Callable[..., np.ndarray], seed: int
) -> None:
    # Integers, and powers of two for 1/√(v + ε): every product and sum is exact.
    rng = np.random.default_rng(seed)
    x, dy = (rng.integers(-9, 10, shape).astype(float) for _ in range(2))
    weight, bias, mean = rng.integers(-9, 10, (3, shape[1])).astype(float)
    var = rng.choice([0.5, 3.5, 15.5], shape[1])
    x, dy = relay(x), relay(dy)
    forward = [batch_norm_forward(z, weight, bias, mean, var, eps=0.5) for z in (x, 0 * x)]
    (y, _, _, rstd), (at_zero, *_) = forward
    dx, dweight, dbias = batch_norm_backward(dy, x, weight, mean, rstd, batch_statistics=False)
    assert (dx * x).sum() == (dy * (y - at_zero)).sum()
    assert (dweight * weight).sum() == (dy * (y - spread(bias, x))).sum()
    assert (dbias * bias).sum() == (dy * spread(bias, x)).sum()


@few
@given(shapes(), SEED)
def test_the_statistics_of_the_batch_given_as_running_ones_give_the_same_y(
    shape: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = trained(dy, x, weight, bias)
    y, mean, var, rstd = batch_norm_forward(x, weight, bias, out["mean"], out["var"])
    assert_close(y, out["y"], ROUNDINGS, np.abs(x).max() * out["rstd"].max())
    for name, value in (("mean", mean), ("var", var), ("rstd", rstd)):
        np.testing.assert_array_equal(value, out[name])


def test_an_example_does_not_see_the_others_with_running_statistics_alone() -> None:
    rng = np.random.default_rng(0)
    _, x, weight, bias = draw(rng, (4, 3, 2, 2))
    other = np.concatenate([x[:1], rng.standard_normal((3, 3, 2, 2))])
    running = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    for statistics, seen in ((running, False), ((None, None), True)):
        y, z = (batch_norm_forward(a, weight, bias, *statistics)[0][0] for a in (x, other))
        assert np.array_equal(y, z) is not seen


# Accuracy


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("shape", [(32, 4, 24, 24), (2048, 4)])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_float32_is_as_accurate_far_from_zero_and_in_any_layout(
    relay: Callable[..., np.ndarray], shape: tuple[int, ...], mean: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(np.float32) for a in draw(rng, shape))
    # A cotangent with a mean: what the rounding of μ leaves of Σ (x − μ) multiplies it.
    dy, x = relay(dy + np.float32(0.5)), relay(x + np.float32(mean))
    single = trained(dy, x, weight, bias)
    double = trained(*(a.astype(np.float64) for a in (dy, x, weight, bias)))
    size = {"mean": 1.0, "dweight": np.sqrt(dy.size / shape[1]), "dbias": 0.0}
    for name, exact in double.items():
        assert single[name].dtype == np.float32
        assert_close(single[name], exact, tolerance("float32", "reduction"), size.get(name, 0.0))


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
def test_the_mean_is_right_to_the_last_bit_but_one(relay: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    x = relay((1e3 + rng.standard_normal((4, 3, 40, 40))).astype(np.float32))
    one = np.ones(3, np.float32)
    _, mean, *_ = batch_norm_forward(x, one, one, None, None)
    exact = by_channel(x).astype(np.float64).mean(axis=1)
    assert np.abs(mean - exact).max() <= np.spacing(np.float32(1e3))


def test_a_long_sum_over_the_batch_does_not_drift() -> None:
    # One after another, so many numbers of one sign lose four digits in float32.
    x = np.random.default_rng(0).standard_normal((100_000, 2)).astype(np.float32)
    dy, one = np.full_like(x, 0.1), np.ones(2, np.float32)
    _, _, dbias = batch_norm_backward(dy, x, one, 0 * one, one, batch_statistics=True)
    assert_close(dbias, np.full(2, 1e4), tolerance("float32", "pointwise"))


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("size", [17, 32, 34, 41])
def test_no_rounding_makes_the_variance_of_a_nearly_constant_channel_negative(
    relay: Callable[..., np.ndarray], size: int
) -> None:
    # Entries of 2^20 to 2^21, all equal but one, which is off by the last bit.
    values = 2**20 * np.random.default_rng(0).uniform(1, 2, 50).astype(np.float32)
    x = relay(np.broadcast_to(values[:, None, None], (1, 50, size, size)).copy())
    x[0, :, 3, 3] = np.nextafter(values, np.float32(np.inf))
    one = np.ones(50, np.float32)
    out = trained(x, x, one, one)
    assert (out["var"] >= 0).all()
    assert all(np.isfinite(array).all() for array in out.values())


def test_the_variance_takes_two_passes() -> None:
    # E[x²] − E[x]² of these numbers in float32 has not a digit that is right.
    x = (1e4 + np.random.default_rng(0).uniform(-1, 1, (512, 1))).astype(np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    _, _, var, _ = batch_norm_forward(x, one, zero, None, None)
    assert_close(var, x.astype(np.float64).var(axis=0), tolerance("float32", "pointwise"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e10])
def test_a_constant_channel_gives_bias_and_finite_gradients(
    dtype: type[np.floating], value: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(dtype) for a in draw(rng, (8, 3, 5, 5)))
    x[:, 1] = value
    out = trained(dy, x, weight, bias)
    assert all(np.isfinite(array).all() for array in out.values())
    # What is left of x − μ is a rounding of a rounding, times 1/√ε.
    left = float(np.finfo(dtype).eps) * abs(value) * out["rstd"][1]
    assert_close(out["y"][:, 1], np.full((8, 5, 5), bias[1]), tolerance(dtype, "pointwise"), left)
    assert out["mean"][1] == pytest.approx(value, rel=float(np.finfo(dtype).eps))
    assert 0 <= out["var"][1] <= (4 * np.finfo(dtype).eps * value) ** 2


# NaN, dtypes, layout


def test_nan_spreads_over_its_channel_and_no_further() -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (4, 3, 2))
    x[2, 1, 0] = np.nan
    out = trained(dy, x, weight, bias)
    for name in ("mean", "var", "rstd", "dweight"):
        np.testing.assert_array_equal(np.isnan(out[name]), [False, True, False])
    for name in ("y", "dx"):
        np.testing.assert_array_equal(np.isnan(out[name]).any(axis=(0, 2)), [False, True, False])
        assert np.isnan(out[name][:, 1]).all()
    assert np.isfinite(out["dbias"]).all()


def test_nan_stays_where_it_is_with_running_statistics() -> None:
    _, x, weight, bias = draw(np.random.default_rng(0), (4, 3, 2))
    x[2, 1, 0] = np.nan
    y, *_ = batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.parametrize("running", [False, True])
def test_any_input_may_be_complex_alone(running: bool) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (4, 3, 2))
    statistics = [np.full(3, 0.5), np.full(3, 2.0)] if running else [None, None]
    inputs = [x, weight, bias, *statistics]
    expected = batch_norm_forward(*inputs)
    for place in range(5 if running else 3):
        mixed = [a + 0j if i == place else a for i, a in enumerate(inputs)]
        for a, e in zip(batch_norm_forward(*mixed), expected, strict=True):
            assert_close(a, e, ROUNDINGS)
    given = [dy, x, weight, expected[1], expected[3]]
    gradients = batch_norm_backward(*given, batch_statistics=not running)
    for place in range(5):
        mixed = [a + 0j if i == place else a for i, a in enumerate(given)]
        actual = batch_norm_backward(*mixed, batch_statistics=not running)
        for a, e in zip(actual, gradients, strict=True):
            assert_close(a, e, ROUNDINGS)


@pytest.mark.parametrize("eps", [np.float64(1e-3), np.float32(1e-3), 1])
def test_no_kind_of_eps_widens_float32(eps: Any) -> None:
    x, one = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.ones(3, "f")
    assert all(a.dtype == np.float32 for a in batch_norm_forward(x, one, one, None, None, eps=eps))


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
def test_outputs_have_the_memory_layout_of_the_input(
    relay: Callable[..., np.ndarray], running: bool
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (2, 3, 4, 5))
    statistics = (np.zeros(3), np.ones(3)) if running else (None, None)
    y, mean, _, rstd = batch_norm_forward(relay(x), weight, bias, *statistics)
    dx, *_ = batch_norm_backward(
        relay(dy), relay(x), weight, mean, rstd, batch_statistics=not running
    )
    assert y.strides == dx.strides == relay(x).strides


# Errors


@pytest.mark.parametrize(("shape", "count"), [((1, 3), 1), ((1, 3, 1, 1), 1), ((0, 3, 2), 0)])
def test_statistics_of_a_single_value_are_refused_and_the_message_says_why(
    shape: tuple[int, ...], count: int
) -> None:
    x, one = np.ones(shape), np.ones(3)
    because = rf"at least 2 values per channel, but x .* has {count}; .* y would be bias whatever"
    with pytest.raises(ShapeError, match=rf"batch_norm_forward: .*{because}"):
        batch_norm_forward(x, one, one, None, None)
    with pytest.raises(ShapeError, match=rf"batch_norm_backward: .*{because}"):
        batch_norm_backward(x, x, one, one, one, batch_statistics=True)
    assert batch_norm_forward(x, one, one, one, one)[0].shape == shape
    assert batch_norm_backward(x, x, one, one, one, batch_statistics=False)[0].shape == shape


def test_one_running_statistic_without_the_other_is_refused() -> None:
    x, one = np.ones((4, 3)), np.ones(3)
    for statistics in ((one, None), (None, one)):
        with pytest.raises(ConfigError, match=r"both \(evaluation\) or neither"):
            batch_norm_forward(x, one, one, *statistics)


@pytest.mark.parametrize("eps", [0, -1e-5, np.nan, np.inf, None, "1e-5"])
def test_an_eps_that_is_no_positive_number_is_refused(eps: Any) -> None:
    x, one = np.ones((4, 3)), np.ones(3)
    with pytest.raises(ConfigError, match="eps must be a finite number > 0"):
        batch_norm_forward(x, one, one, None, None, eps=eps)


def test_what_does_not_fit_together_is_refused() -> None:
    x, one = np.ones((4, 3, 2)), np.ones(3)
    with pytest.raises(ShapeError, match=r"x must have shape \(N, C, \.\.\.\), got \(3,\)"):
        batch_norm_forward(one, one, one, None, None)
    for place, name in ((1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var")):
        arguments = [x, one, one, one, one]
        arguments[place] = np.ones(2)
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(3,\) .* got \(2,\)"):
            batch_norm_forward(*arguments)
        arguments[place] = np.ones(3, np.float32)
        with pytest.raises(DtypeError, match=f"{name} float32"):
            batch_norm_forward(*arguments)
    for place, name in ((2, "weight"), (3, "mean"), (4, "rstd")):
        arguments = [x, x, one, one, one]
        arguments[place] = np.ones((3, 1))
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(3,\)"):
            batch_norm_backward(*arguments, batch_statistics=True)
    with pytest.raises(ShapeError, match=r"dy \(4, 3\), x \(4, 3, 2\)"):
        batch_norm_backward(np.ones((4, 3)), x, one, one, one, batch_statistics=True)
    with pytest.raises(DtypeError, match="dy float32"):
        batch_norm_backward(x.astype("f"), x, one, one, one, batch_statistics=True)


def test_running_statistics_of_other_shapes_or_dtypes_are_refused() -> None:
    one, other = np.ones(3, np.float32), np.ones(4, np.float32)
    options = {"momentum": 0.1, "count": 5}
    with pytest.raises(ShapeError, match=r"^running_statistics: "):
        running_statistics(one, one, other, other, **options)
    with pytest.raises(DtypeError, match=r"^running_statistics: "):
        running_statistics(one, one, one, one.astype("d"), **options)
    with pytest.raises(ShapeError, match="a count of at least 2, got 1"):
        running_statistics(one, one, one, one, momentum=0.1, count=1)


def test_running_statistics_keep_float32_whatever_number_the_momentum_is() -> None:
    arrays = np.random.default_rng(0).uniform(1, 2, (4, 3)).astype(np.float32)
    found, expected = (
        running_statistics(*arrays, momentum=momentum, count=5)
        for momentum in (np.float64(0.1), 0.1)
    )
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, e)
