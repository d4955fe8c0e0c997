"""Layer norm: what its output and gradient keep to, accuracy in float32, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import layer_norm_backward, layer_norm_forward
from refkd.testing.layouts import LAYOUTS
from refkd.testing.tolerances import tolerance

ROUNDINGS = tolerance("float64", "reduction")
few = settings(max_examples=25)
SEED = st.integers(0, 2**32 - 1)
LEADING = st.lists(st.integers(1, 4), max_size=3).map(tuple)
SHAPE = st.builds(lambda leading, width: (*leading, width), LEADING, st.integers(3, 9))
LAYOUT = st.sampled_from([np.ascontiguousarray, *LAYOUTS.values()])


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return dy, x, weight and bias."""
    dy, x = rng.standard_normal(shape), 0.5 + 2 * rng.standard_normal(shape)
    return dy, x, rng.uniform(0.5, 2, shape[-1]), rng.standard_normal(shape[-1])


def both(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: float
) -> dict[str, Any]:
    """Return the outputs and gradients."""
    y, mean, rstd = layer_norm_forward(x, weight, bias, **options)
    gradients = layer_norm_backward(dy, x, weight, mean, rstd)
    names = ("y", "mean", "rstd", "dx", "dweight", "dbias")
    return dict(zip(names, (y, mean, rstd, *gradients), strict=True))


def assert_close(actual: Any, expected: Any, allowed: float, scale: Any = 0) -> None:
    """Require max|a − e| <= allowed · max(|e|, scale)."""
    assert np.shape(actual) == np.shape(expected)
    size = max(np.max(np.abs(expected), initial=0), np.max(scale))
    assert np.max(np.abs(actual - expected), initial=0) <= allowed * size


@few
@given(SHAPE, SEED)
def test_every_row_of_x_hat_has_mean_zero_and_variance_one(
    shape: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, eps=1e-30)
    x_hat = (out["y"] - bias) / weight
    size = 1 + np.abs(bias).max()
    assert_close(x_hat.mean(axis=-1), np.zeros(shape[:-1]), ROUNDINGS, size)
    assert_close(x_hat.var(axis=-1), np.ones(shape[:-1]), ROUNDINGS, size)
    assert_close(out["mean"], x.mean(axis=-1), ROUNDINGS, np.abs(x))
    assert_close(out["rstd"], 1 / x.std(axis=-1), ROUNDINGS)


@few
@given(SHAPE, LAYOUT, SEED)
def test_backward_is_the_complex_step_in_a_random_direction(
    shape: tuple[int, ...], relay: Callable[..., np.ndarray], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dy, x, weight, bias = map(relay, draw(rng, shape))
    out = both(dy, x, weight, bias, eps=0.1)
    for name, place in (("dx", 0), ("dweight", 1), ("dbias", 2)):
        point = [x, weight, bias]
        u = rng.standard_normal(point[place].shape)
        point[place] = point[place] + 1e-30j * u
        slope = (dy * layer_norm_forward(*point, eps=0.1)[0].imag / 1e-30).sum()
        size = np.abs(dy).sum() * (np.abs(weight).max() * 10 + np.abs(x).max()) * np.abs(u).max()
        assert abs((out[name] * u).sum() - slope) <= ROUNDINGS * size


@few
@given(SHAPE, SEED)
def test_the_gradient_is_orthogonal_to_ones_and_to_x_hat_in_every_row(
    shape: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, eps=1e-30)
    x_hat = (x - out["mean"][..., None]) * out["rstd"][..., None]
    unit = np.abs(dy).max() * shape[-1] * weight.max() * np.max(out["rstd"])
    for direction in (np.ones_like(x), x_hat):
        along = (out["dx"] * direction).sum(axis=-1)
        assert np.max(np.abs(along)) <= ROUNDINGS * unit * np.abs(direction).max()


@few
@given(SHAPE, SEED, st.floats(0.01, 10))
def test_along_x_hat_the_gradient_is_what_eps_leaves(
    shape: tuple[int, ...], seed: int, eps: float
) -> None:
    # Σ x̂² = D v r², hence Σ dx x̂ = r (1 − v r²) Σ w dy x̂ = r³ ε Σ w dy x̂.
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, eps=eps)
    x_hat = (x - out["mean"][..., None]) * out["rstd"][..., None]
    expected = out["rstd"] ** 3 * eps * (weight * dy * x_hat).sum(axis=-1)
    unit = np.abs(dy).max() * shape[-1] * weight.max() * np.abs(x_hat).max() * np.max(out["rstd"])
    assert_close((out["dx"] * x_hat).sum(axis=-1), expected, ROUNDINGS, unit)


@few
@given(SHAPE, SEED, st.integers(-20, 20))
def test_a_scale_of_x_changes_no_bit_of_y_and_divides_the_gradient(
    shape: tuple[int, ...], seed: int, exponent: int
) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    scale = 2.0**exponent
    here = both(dy, x, weight, bias, eps=1e-3)
    there = both(dy, scale * x, weight, bias, eps=1e-3 * scale**2)
    for name in ("y", "dweight", "dbias"):
        np.testing.assert_array_equal(there[name], here[name])
    np.testing.assert_array_equal(there["dx"] * scale, here["dx"])


@few
@given(SHAPE, SEED, st.integers(-10_000, 10_000))
def test_a_shift_of_x_changes_neither_y_nor_the_gradient(
    shape: tuple[int, ...], seed: int, shift: int
) -> None:
    rng = np.random.default_rng(seed)
    dy, _, weight, bias = draw(rng, shape)
    x = rng.integers(-16, 17, shape) / 8  # multiples of 1/8 are shifted without rounding
    here, there = both(dy, x, weight, bias), both(dy, x + shift, weight, bias)
    unit = np.max(here["rstd"]) * 8 * max(1, np.abs(dy).max())
    for name in ("y", "dx", "dweight", "dbias"):
        assert_close(there[name], here[name], ROUNDINGS, unit)


@few
@given(SHAPE, SEED)
def test_a_row_does_not_see_the_others(shape: tuple[int, ...], seed: int) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias)
    totals = np.zeros((2, shape[-1]))
    for row in np.ndindex(shape[:-1]):
        alone = both(dy[row], x[row], weight, bias)
        for name in ("y", "mean", "rstd", "dx"):
            assert_close(out[name][row], alone[name], ROUNDINGS, np.abs(dy).max())
        totals += alone["dweight"], alone["dbias"]
    assert_close(np.stack([out["dweight"], out["dbias"]]), totals, ROUNDINGS, np.abs(dy).sum())


def test_of_one_feature_it_is_the_bias_with_gradient_zero() -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (4, 1))
    out = both(dy, x, weight, bias)
    np.testing.assert_array_equal(out["y"], np.broadcast_to(bias, (4, 1)))
    np.testing.assert_array_equal(out["dweight"], [0])
    assert_close(out["dx"], np.zeros((4, 1)), ROUNDINGS, np.abs(dy).max() / np.sqrt(1e-5))


@pytest.mark.parametrize("relay", [np.ascontiguousarray, LAYOUTS["transposed"]])
@pytest.mark.parametrize("shape", [(500, 384), (8, 64, 384)])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_float32_is_as_accurate_far_from_zero_and_in_any_layout(
    relay: Callable[..., np.ndarray], shape: tuple[int, ...], mean: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(np.float32) for a in draw(rng, shape))
    dy, x = relay(dy + np.float32(0.5)), relay(x + np.float32(mean))
    single = both(dy, x, weight, bias)
    double = both(*(a.astype(np.float64) for a in (dy, x, weight, bias)))
    for name, exact in double.items():
        assert single[name].dtype == np.float32
        size = 1.0 if name == "mean" else 0.0
        assert_close(single[name], exact, tolerance("float32", "reduction"), size)


@pytest.mark.parametrize("relay", [np.ascontiguousarray, LAYOUTS["transposed"]])
def test_the_mean_is_right_to_the_last_bit_but_one(relay: Callable[..., np.ndarray]) -> None:
    x = relay((1e3 + np.random.default_rng(0).standard_normal((30, 1500))).astype(np.float32))
    one = np.ones(1500, np.float32)
    _, mean, _ = layer_norm_forward(x, one, one)
    exact = x.astype(np.float64).mean(axis=1)
    assert np.abs(mean - exact).max() <= np.spacing(np.float32(1e3))


@pytest.mark.parametrize("leading", [(300, 333), (99_900,)])
def test_a_long_sum_over_the_rows_does_not_drift(leading: tuple[int, ...]) -> None:
    # One after another, so many numbers of one sign lose four digits in float32.
    x = np.random.default_rng(0).standard_normal((*leading, 3)).astype(np.float32)
    dy, one = np.full_like(x, 0.1), np.ones(3, np.float32)
    _, mean, rstd = layer_norm_forward(x, one, one)
    _, _, dbias = layer_norm_backward(dy, x, one, mean, rstd)
    assert_close(dbias, np.full(3, 9990.0), tolerance("float32", "reduction"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e10])
def test_a_constant_row_gives_bias_and_finite_gradients(
    dtype: type[np.floating], value: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(dtype) for a in draw(rng, (3, 50)))
    x[1] = value
    out = both(dy, x, weight, bias)
    assert all(np.isfinite(array).all() for array in out.values())
    left = float(np.finfo(dtype).eps) * abs(value) * out["rstd"][1]
    assert_close(out["y"][1], bias, tolerance(dtype, "pointwise"), left)


def test_nan_spreads_over_its_row_and_no_further() -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (2, 3, 4))
    x[1, 2, 0] = np.nan
    out = both(dy, x, weight, bias)
    row = np.zeros((2, 3), bool)
    row[1, 2] = True
    for name in ("mean", "rstd"):
        np.testing.assert_array_equal(np.isnan(out[name]), row)
    for name in ("y", "dx"):
        np.testing.assert_array_equal(np.isnan(out[name]), np.stack([row] * 4, axis=-1))
    assert np.isnan(out["dweight"]).all()
    assert np.isfinite(out["dbias"]).all()


def test_any_input_may_be_complex_alone() -> None:
    given = draw(np.random.default_rng(0), (2, 3, 4))
    expected = both(*given)
    for place in range(4):
        out = both(*(a + 0j if i == place else a for i, a in enumerate(given)))
        for name, value in expected.items():
            assert_close(out[name], value, ROUNDINGS)


def test_what_does_not_fit_together_is_refused() -> None:
    x, one, statistic = np.ones((2, 3, 4)), np.ones(4), np.ones((2, 3))
    for empty in (np.ones(()), np.ones((2, 0))):
        with pytest.raises(ShapeError, match=r"x must have shape \(\.\.\., D\), D > 0"):
            layer_norm_forward(empty, one, one)
    for name in ("weight", "bias"):
        arguments = {"weight": one, "bias": one, name: np.ones(3)}
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(4,\) .* got \(3,\)"):
            layer_norm_forward(x, **arguments)
        arguments[name] = np.ones(4, np.float32)
        with pytest.raises(DtypeError, match=f"{name} float32"):
            layer_norm_forward(x, **arguments)
    for name in ("mean", "rstd"):
        given = {"mean": statistic, "rstd": statistic, name: np.ones((2, 3, 1))}
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(2, 3\)"):
            layer_norm_backward(x, x, one, **given)
    with pytest.raises(ShapeError, match=r"dy \(3, 4\), x \(2, 3, 4\)"):
        layer_norm_backward(x[0], x, one, statistic, statistic)
    with pytest.raises(ConfigError, match="eps must be a finite number > 0"):
        layer_norm_forward(x, one, one, eps=0)
