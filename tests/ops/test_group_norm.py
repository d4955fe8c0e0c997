"""Group norm: its ends (layer and instance norm), invariances, accuracy in float32, errors."""

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
    batch_norm_forward,
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from refkd.testing.layouts import LAYOUTS
from refkd.testing.tolerances import tolerance

ROUNDINGS = tolerance("float64", "reduction")
few = settings(max_examples=25)
SEED = st.integers(0, 2**32 - 1)


def channels_last(x: np.ndarray) -> np.ndarray:
    """Return an equal array whose channels are adjacent in memory."""
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


LAYOUT = st.sampled_from([np.ascontiguousarray, channels_last, *LAYOUTS.values()])


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """Draw a shape (N, C, ...) and G, with at least three values in a group."""
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    space = draw(st.lists(st.integers(1, 3), max_size=2).map(tuple))
    if each * int(np.prod(space)) < 3:
        space = (*space, 3)
    return (draw(st.integers(1, 3)), groups * each, *space), groups


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return dy, x, weight and bias."""
    dy, x = rng.standard_normal(shape), 0.5 + 2 * rng.standard_normal(shape)
    return dy, x, rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1])


def both(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: Any
) -> dict[str, np.ndarray]:
    """Return the outputs and gradients."""
    y, mean, rstd = group_norm_forward(x, weight, bias, **options)
    options.pop("eps", None)
    gradients = group_norm_backward(dy, x, weight, mean, rstd, **options)
    names = ("y", "mean", "rstd", "dx", "dweight", "dbias")
    return dict(zip(names, (y, mean, rstd, *gradients), strict=True))


def grouped(x: np.ndarray, groups: int) -> np.ndarray:
    """Return (N, G, M): the values of each group in a row."""
    return np.ascontiguousarray(x).reshape(x.shape[0], groups, -1)


def spread(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Repeat (N, G) over the values of its groups, or (C,) over batch and space."""
    if values.ndim == 2:
        values = values.repeat(x.shape[1] // values.shape[1], axis=1)
    return values.reshape(*values.shape, *[1] * (x.ndim - 2))


def assert_close(actual: np.ndarray, expected: np.ndarray, allowed: float, scale: Any = 0) -> None:
    """Require max|a − e| <= allowed · max(|e|, scale)."""
    assert actual.shape == expected.shape
    size = max(np.max(np.abs(expected), initial=0), np.max(scale))
    assert np.max(np.abs(actual - expected), initial=0) <= allowed * size


@few
@given(geometries(), SEED)
def test_every_group_of_x_hat_has_mean_zero_and_variance_one(
    geometry: tuple[tuple[int, ...], int], seed: int
) -> None:
    shape, groups = geometry
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, num_groups=groups, eps=1e-30)
    x_hat = grouped((out["y"] - spread(bias, x)) / spread(weight, x), groups)
    size = 1 + np.abs(bias).max()
    assert_close(x_hat.mean(axis=2), np.zeros((shape[0], groups)), ROUNDINGS, size)
    assert_close(x_hat.var(axis=2), np.ones((shape[0], groups)), ROUNDINGS, size)
    values = grouped(x, groups)
    assert_close(out["mean"], values.mean(axis=2), ROUNDINGS, np.abs(x))
    assert_close(out["rstd"], 1 / values.std(axis=2), ROUNDINGS)


@few
@given(geometries(), LAYOUT, SEED)
def test_backward_is_the_complex_step_in_a_random_direction(
    geometry: tuple[tuple[int, ...], int], relay: Callable[..., np.ndarray], seed: int
) -> None:
    shape, groups = geometry
    options = {"num_groups": groups, "eps": 0.1}
    rng = np.random.default_rng(seed)
    dy, x, weight, bias = draw(rng, shape)
    dy, x = relay(dy), relay(x)
    out = both(dy, x, weight, bias, **options)
    for name, place in (("dx", 0), ("dweight", 1), ("dbias", 2)):
        point = [x, weight, bias]
        u = rng.standard_normal(point[place].shape)
        point[place] = point[place] + 1e-30j * u
        slope = (dy * group_norm_forward(*point, **options)[0].imag / 1e-30).sum()
        size = np.abs(dy).sum() * (np.abs(weight).max() * 10 + np.abs(x).max()) * np.abs(u).max()
        assert abs((out[name] * u).sum() - slope) <= ROUNDINGS * size


@few
@given(geometries(), SEED)
def test_the_gradient_is_orthogonal_to_ones_and_to_x_hat_in_every_group(
    geometry: tuple[tuple[int, ...], int], seed: int
) -> None:
    shape, groups = geometry
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, num_groups=groups, eps=1e-30)
    x_hat = (x - spread(out["mean"], x)) * spread(out["rstd"], x)
    unit = np.abs(dy).sum() * weight.max() * out["rstd"].max()
    for direction in (np.ones_like(x), x_hat):
        along = grouped(out["dx"] * direction, groups).sum(axis=2)
        assert np.abs(along).max() <= ROUNDINGS * unit * np.abs(direction).max()


@few
@given(geometries(), SEED, st.integers(-20, 20))
def test_a_scale_of_x_changes_no_bit_of_y_and_divides_the_gradient(
    geometry: tuple[tuple[int, ...], int], seed: int, exponent: int
) -> None:
    shape, groups = geometry
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    scale = 2.0**exponent
    here = both(dy, x, weight, bias, num_groups=groups, eps=1e-3)
    there = both(dy, scale * x, weight, bias, num_groups=groups, eps=1e-3 * scale**2)
    for name in ("y", "dweight", "dbias"):
        np.testing.assert_array_equal(there[name], here[name])
    np.testing.assert_array_equal(there["dx"] * scale, here["dx"])


@few
@given(geometries(), SEED, st.integers(-10_000, 10_000))
def test_a_shift_of_x_changes_neither_y_nor_the_gradient(
    geometry: tuple[tuple[int, ...], int], seed: int, shift: int
) -> None:
    shape, groups = geometry
    rng = np.random.default_rng(seed)
    dy, _, weight, bias = draw(rng, shape)
    x = rng.integers(-16, 17, shape) / 8  # multiples of 1/8 are shifted without rounding
    here = both(dy, x, weight, bias, num_groups=groups)
    there = both(dy, x + shift, weight, bias, num_groups=groups)
    unit = here["rstd"].max() * 8 * max(1, np.abs(dy).max())
    for name in ("y", "dx", "dweight", "dbias"):
        assert_close(there[name], here[name], ROUNDINGS, unit)


@few
@given(geometries(), SEED)
def test_one_group_is_layer_norm_over_an_example(
    geometry: tuple[tuple[int, ...], int], seed: int
) -> None:
    shape, _ = geometry
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, num_groups=1, eps=0.5)
    rows, cotangent = x.reshape(shape[0], -1), dy.reshape(shape[0], -1)
    wide = [np.broadcast_to(spread(v, x), x.shape)[0].ravel() for v in (weight, bias)]
    y, mean, rstd = layer_norm_forward(rows, *wide, eps=0.5)
    dx, dweight, dbias = layer_norm_backward(cotangent, rows, wide[0], mean, rstd)
    unit = np.abs(dy).sum() * weight.max()
    for name, value in (("y", y), ("dx", dx)):
        assert_close(out[name].reshape(value.shape), value, ROUNDINGS, unit)
    for name, value in (("dweight", dweight), ("dbias", dbias)):
        assert_close(out[name], value.reshape(shape[1], -1).sum(axis=1), ROUNDINGS, unit)
    assert_close(out["rstd"][:, 0], rstd, ROUNDINGS)


@few
@given(geometries(), SEED)
def test_a_group_for_each_channel_is_batch_norm_of_every_example_alone(
    geometry: tuple[tuple[int, ...], int], seed: int
) -> None:
    shape = (*geometry[0], 3)
    dy, x, weight, bias = draw(np.random.default_rng(seed), shape)
    out = both(dy, x, weight, bias, num_groups=shape[1], eps=0.5)
    totals = []
    for n in range(shape[0]):
        one, cotangent = x[n : n + 1], dy[n : n + 1]
        y, mean, _, rstd = batch_norm_forward(one, weight, bias, None, None, eps=0.5)
        dx, *rest = batch_norm_backward(cotangent, one, weight, mean, rstd, batch_statistics=True)
        totals.append(rest)
        assert_close(out["y"][n], y[0], ROUNDINGS)
        assert_close(out["dx"][n], dx[0], ROUNDINGS, np.abs(dy).max())
        assert_close(out["mean"][n], mean, ROUNDINGS, np.abs(x).max())
    for name, value in zip(("dweight", "dbias"), map(sum, zip(*totals, strict=True)), strict=True):
        assert_close(out[name], value, ROUNDINGS, np.abs(dy).sum())


@few
@given(geometries(), SEED)
def test_an_example_does_not_see_the_others(
    geometry: tuple[tuple[int, ...], int], seed: int
) -> None:
    (_, *rest), groups = geometry
    dy, x, weight, bias = draw(np.random.default_rng(seed), (3, *rest))
    together = both(dy, x, weight, bias, num_groups=groups)
    alone = both(dy[1:2], x[1:2], weight, bias, num_groups=groups)
    for name in ("y", "dx", "mean", "rstd"):
        assert_close(together[name][1], alone[name][0], ROUNDINGS)


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("shape", [(4, 8, 24, 24), (8, 512)])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_float32_is_as_accurate_far_from_zero_and_in_any_layout(
    relay: Callable[..., np.ndarray], shape: tuple[int, ...], mean: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(np.float32) for a in draw(rng, shape))
    dy, x = relay(dy + np.float32(0.5)), relay(x + np.float32(mean))
    single = both(dy, x, weight, bias, num_groups=4)
    double = both(*(a.astype(np.float64) for a in (dy, x, weight, bias)), num_groups=4)
    size = {"mean": 1.0, "dweight": np.sqrt(dy.size / shape[1])}
    for name, exact in double.items():
        assert single[name].dtype == np.float32
        assert_close(single[name], exact, tolerance("float32", "reduction"), size.get(name, 0.0))


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
def test_the_mean_is_right_to_the_last_bit_but_one(relay: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    x = relay((1e3 + rng.standard_normal((3, 4, 40, 40))).astype(np.float32))
    one = np.ones(4, np.float32)
    _, mean, _ = group_norm_forward(x, one, one, num_groups=2)
    exact = grouped(x, 2).astype(np.float64).mean(axis=2)
    assert np.abs(mean - exact).max() <= np.spacing(np.float32(1e3))


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("size", [17, 32, 34, 41])
def test_no_rounding_makes_the_variance_of_a_nearly_constant_group_negative(
    relay: Callable[..., np.ndarray], size: int
) -> None:
    # Entries of 2^20 to 2^21, all equal but one of a channel, which is off by the last bit.
    values = 2**20 * np.random.default_rng(0).uniform(1, 2, 50).astype(np.float32)
    x = relay(np.broadcast_to(values[:, None, None], (1, 50, size, size)).copy())
    x[0, :, 3, 3] = np.nextafter(values, np.float32(np.inf))
    one = np.ones(50, np.float32)
    out = both(x, x, one, one, num_groups=50)
    assert all(np.isfinite(array).all() for array in out.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e10])
def test_a_constant_group_gives_bias_and_finite_gradients(
    dtype: type[np.floating], value: float
) -> None:
    rng = np.random.default_rng(0)
    dy, x, weight, bias = (a.astype(dtype) for a in draw(rng, (2, 6, 5, 5)))
    x[1, 2:4] = value
    out = both(dy, x, weight, bias, num_groups=3)
    assert all(np.isfinite(array).all() for array in out.values())
    left = float(np.finfo(dtype).eps) * abs(value) * out["rstd"][1, 1]
    expected = np.broadcast_to(bias[2:4, None, None], (2, 5, 5))
    assert_close(out["y"][1, 2:4], expected, tolerance(dtype, "pointwise"), left)


def test_nan_spreads_over_its_group_and_no_further() -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (2, 6, 3))
    x[1, 2, 0] = np.nan
    out = both(dy, x, weight, bias, num_groups=3)
    group = np.zeros((2, 6, 3), bool)
    group[1, 2:4] = True
    for name in ("y", "dx"):
        np.testing.assert_array_equal(np.isnan(out[name]), group)
    for name in ("mean", "rstd"):
        np.testing.assert_array_equal(np.isnan(out[name]), group[:, ::2, 0])
    np.testing.assert_array_equal(np.isnan(out["dweight"]), group[1, :, 0])


def test_any_input_may_be_complex_alone() -> None:
    given = draw(np.random.default_rng(0), (2, 4, 3))
    expected = both(*given, num_groups=2)
    for place in range(4):
        out = both(*(a + 0j if i == place else a for i, a in enumerate(given)), num_groups=2)
        for name, value in expected.items():
            assert_close(out[name], value, ROUNDINGS)


@pytest.mark.parametrize("relay", [np.ascontiguousarray, channels_last])
def test_outputs_have_the_memory_layout_of_the_input(relay: Callable[..., np.ndarray]) -> None:
    dy, x, weight, bias = draw(np.random.default_rng(0), (2, 4, 5, 6))
    out = both(relay(dy), relay(x), weight, bias, num_groups=2)
    assert out["y"].strides == out["dx"].strides == relay(x).strides


@pytest.mark.parametrize("groups", [4, 7, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(groups: int) -> None:
    x, one, statistic = np.ones((2, 6, 3)), np.ones(6), np.ones((2, groups))
    message = rf"num_groups must divide the 6 channels of x \(2, 6, 3\), got {groups}"
    with pytest.raises(ConfigError, match=f"group_norm_forward: {message}"):
        group_norm_forward(x, one, one, num_groups=groups)
    with pytest.raises(ConfigError, match=f"group_norm_backward: {message}"):
        group_norm_backward(x, x, one, statistic, statistic, num_groups=groups)


@pytest.mark.parametrize("groups", [0, -2, 2.0, True, None, "2"])
def test_groups_that_are_no_positive_integer_are_refused(groups: Any) -> None:
    with pytest.raises(ConfigError, match="num_groups must be an integer >= 1"):
        group_norm_forward(np.ones((2, 6)), np.ones(6), np.ones(6), num_groups=groups)


def test_what_does_not_fit_together_is_refused() -> None:
    x, one, statistic = np.ones((2, 6, 3)), np.ones(6), np.ones((2, 2))
    with pytest.raises(ShapeError, match=r"x must have shape \(N, C, \.\.\.\), got \(6,\)"):
        group_norm_forward(one, one, one, num_groups=2)
    with pytest.raises(ShapeError, match=r"x \(2, 6, 0\) has no values"):
        group_norm_forward(np.ones((2, 6, 0)), one, one, num_groups=2)
    for name in ("weight", "bias"):
        arguments = {"weight": one, "bias": one, name: np.ones(3)}
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(6,\) .* got \(3,\)"):
            group_norm_forward(x, **arguments, num_groups=2)
        arguments[name] = np.ones(6, np.float32)
        with pytest.raises(DtypeError, match=f"{name} float32"):
            group_norm_forward(x, **arguments, num_groups=2)
    for name in ("mean", "rstd"):
        given = {"mean": statistic, "rstd": statistic, name: np.ones((2, 3))}
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(2, 2\) .* got \(2, 3\)"):
            group_norm_backward(x, x, one, **given, num_groups=2)
    with pytest.raises(ShapeError, match=r"dy \(2, 6\), x \(2, 6, 3\)"):
        group_norm_backward(np.ones((2, 6)), x, one, statistic, statistic, num_groups=2)
    with pytest.raises(ConfigError, match="eps must be a finite number > 0"):
        group_norm_forward(x, one, one, num_groups=2, eps=0)
