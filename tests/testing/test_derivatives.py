"""Numeric derivatives: the truth lies within the error bar, and kinks are seen where they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.testing.derivatives import complex_entries, complex_step, moved, one_ulp_away
from refkd.testing.differences import Estimate, measure_noise, ridders
from refkd.testing.directions import RandomDirection, slope, unit
from refkd.testing.references import widest_float

SEED = st.integers(0, 2**32 - 1)
DTYPES = [np.float64, *filter(None, [widest_float()])]
EPS = float(np.finfo(np.float64).eps)
U = {"x": np.ones(1)}

# Each with its derivative, which np.longdouble evaluates beyond float64.
SMOOTH: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sine": (np.sin, np.cos),
    "tanh": (np.tanh, lambda u: np.cosh(u) ** -2),
    "logarithm": (lambda u: np.log(1 + u * u), lambda u: 2 * u / (1 + u * u)),
    "cubic": (lambda u: u * u * u - 2 * u, lambda u: 3 * u * u - 2),
    "quotient": (lambda u: 1 / (2 + np.sin(u)), lambda u: -np.cos(u) / (2 + np.sin(u)) ** 2),
    "root": (lambda u: np.sqrt(1 + u * u), lambda u: u / np.sqrt(1 + u * u)),
    "bell": (lambda u: np.exp(-u * u), lambda u: -2 * u * np.exp(-u * u)),
    "sigmoid": (lambda u: 1 / (1 + np.exp(-u)), lambda u: np.exp(-u) / (1 + np.exp(-u)) ** 2),
}


def at(x: float) -> dict[str, Any]:
    return {"x": np.array([x])}


def draw(seed: int) -> tuple[Callable[..., Any], float, float, float]:
    """Return c g(k x + b) + offset, x, the derivative, and the size of what f sums and divides."""
    rng = np.random.default_rng(seed)
    g, dg = SMOOTH[rng.choice(list(SMOOTH))]
    x = float(rng.choice([-1, 1]) * 10 ** rng.uniform(-6, 2))
    k = float(10 ** rng.uniform(-2, min(3, math.log10(20 / abs(x)))))
    b, c = float(rng.uniform(-2, 2)), float(10 ** rng.uniform(-8, 8))
    # Not 1: a saturated tanh would cancel to 0 exactly, and nothing be left to measure.
    offset = c * float(rng.choice([0, 0.7, 1e3, 1e8]))
    wide = np.longdouble
    truth = wide(c) * wide(k) * dg(wide(k) * wide(x) + wide(b))
    return (lambda x: (c * g(k * x + b) + offset).sum()), x, float(truth), c * k


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_truth_lies_within_the_error_bar_and_no_smooth_function_has_a_kink(dtype: Any) -> None:
    for seed in range(1500):
        f, x, truth, size = draw(seed)
        estimate = ridders(lambda p, f=f: f(p["x"]), at(x), U, dtype=dtype)
        rounded = EPS * (abs(truth) + 1e-12 * size)
        assert abs(estimate.value - truth) <= estimate.error_bar + rounded, (seed, truth, estimate)
        assert estimate.jump == 0, (seed, estimate)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_truth_lies_within_an_error_bar_that_is_large_enough_to_stop_at(dtype: Any) -> None:
    for seed in range(1000):
        f, x, truth, size = draw(seed)
        enough = 10.0 ** -(seed % 8) * max(abs(truth), 1e-3 * size)
        estimate = ridders(lambda p, f=f: f(p["x"]), at(x), U, dtype=dtype, enough=enough)
        rounded = EPS * (abs(truth) + 1e-12 * size)
        assert abs(estimate.value - truth) <= estimate.error_bar + rounded, (seed, truth, estimate)


def test_where_f_is_rough_at_the_finest_scale_the_error_bar_is_infinite() -> None:
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        estimate = ridders(lambda p, s=size: 2 + s * rng.standard_normal(), at(1.0), U)
        assert estimate.error_bar == math.inf


@given(SEED)
@settings(max_examples=100)
def test_the_error_bar_of_a_smooth_function_is_small(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, u = {"x": rng.uniform(0.2, 1, 5)}, {"x": rng.standard_normal(5)}
    for dtype, bar in zip(DTYPES, (1e-11, 2e-14), strict=False):
        estimate = ridders(lambda p: np.sin(p["x"]).sum(), x, u, dtype=dtype)
        assert estimate.error_bar <= bar * np.sum(np.abs(u["x"]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_frequency_is_mistaken_for_another(dtype: Any) -> None:
    for seed in range(400):
        rng = np.random.default_rng(seed)
        w = 2 * math.pi * 2.0 ** rng.integers(0, 18) if seed % 2 else 10 ** rng.uniform(0, 6)
        x = float(rng.choice([0.25, 0.3, 0.5, 1.0, 2.0, rng.uniform(0.1, 3)]))
        estimate = ridders(lambda p, w=w: np.sin(w * p["x"]).sum(), at(x), U, dtype=dtype)
        truth = w * math.cos(w * x)
        # w x itself is rounded.
        assert abs(estimate.value - truth) <= estimate.error_bar + 2 * EPS * w * w * x, (w, x)
        assert estimate.jump == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_periods_in_a_unit_are_resolved(dtype: Any) -> None:
    w = 32 * math.pi
    for x in (0.5, 1.0, 2.0):
        estimate = ridders(lambda p: np.sin(w * p["x"]).sum(), at(x), U, dtype=dtype)
        assert estimate.value == pytest.approx(w * math.cos(w * x), rel=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e6, 1e8, 1e9])
def test_a_large_constant_widens_the_error_bar_and_covers(size: float) -> None:
    for seed in range(50):
        x = float(np.random.default_rng(seed).uniform(-2, 2))
        estimate = ridders(lambda p: ((np.sin(p["x"]) + size) - size).sum(), at(x), U)
        assert abs(estimate.value - math.cos(x)) <= estimate.error_bar
        # No step gains more than its noise, eps size / h.
        assert estimate.error_bar >= EPS * size


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_function_rounded_to_float32_has_an_error_bar_that_says_so(dtype: Any) -> None:
    def f(p: Any) -> Any:
        return np.sin(p["x"]).astype(np.float32).astype(p["x"].dtype).sum()

    for seed in range(200):
        # Not where the slope is so small that f is constant nearby.
        x = float(np.random.default_rng(seed).uniform(-1.5, 1.5))
        estimate = ridders(f, at(x), U, dtype=dtype)
        assert abs(estimate.value - math.cos(x)) <= estimate.error_bar
        assert estimate.error_bar > 1e-7
        assert estimate.jump == 0


def test_a_jump_of_f_itself_at_the_point_has_an_infinite_or_huge_error_bar() -> None:
    # The slope of a step, were it seen as one, would be 1/h.
    for height in (1e-3, 1.0, 1e6):
        estimate = ridders(lambda p, a=height: a * np.heaviside(p["x"] - 1, 0.5).sum(), at(1.0), U)
        assert not estimate.error_bar < 1e-2 * height


KINKS: dict[str, tuple[Callable[[Any], Any], float, float, float]] = {
    "abs": (np.abs, 0.0, -1, 1),
    "relu": (lambda x: np.maximum(x, 0), 0.0, 0, 1),
    "shifted relu": (lambda x: np.maximum(x - 0.3, 0) + x, 0.3, 1, 2),
    "leaky": (lambda x: np.where(x > 0, x, 0.01 * x), 0.0, 0.01, 1),
    "clip": (lambda x: np.clip(x, -1, 1), 1.0, 1, 0),
    "minus abs": (lambda x: np.sin(x) - 3 * np.abs(x - 2), 2.0, math.cos(2) + 3, math.cos(2) - 3),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINKS)
def test_the_slopes_on_both_sides_of_a_kink_are_found(name: str, dtype: Any) -> None:
    f, x, left, right = KINKS[name]
    for scale in (1e-6, 1.0, 1e6):
        estimate = ridders(lambda p, s=scale: s * f(p["x"]).sum(), at(x), U, dtype=dtype)
        assert estimate.slopes == pytest.approx((scale * left, scale * right), abs=1e-4 * scale)
        # The jump is larger rather than smaller.
        assert abs(estimate.jump) >= abs(right - left) * scale


def test_a_maximum_of_ties_is_a_kink() -> None:
    x = {"x": np.array([1.0, 2.0, 2.0])}
    estimate = ridders(lambda p: p["x"].max(), x, {"x": unit((3,), 1)})
    assert estimate.slopes == pytest.approx((0, 1), abs=1e-4)
    assert ridders(lambda p: p["x"].max(), x, {"x": unit((3,), 0)}).slopes == (0, 0)


def test_a_kink_beside_the_point_is_no_kink_and_is_covered() -> None:
    for distance in 10.0 ** -np.arange(1.0, 6):
        for x in (1 - distance, 1 + distance):
            estimate = ridders(lambda p: np.abs(p["x"] - 1).sum(), at(x), U)
            truth = math.copysign(1, x - 1)
            assert abs(estimate.value - truth) <= estimate.error_bar + abs(estimate.jump) / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_at_larger_steps_is_left_out(bad: float, dtype: Any) -> None:
    def f(p: Any) -> Any:
        return np.where(np.abs(p["x"] - 1) > 0.01, bad, np.sin(p["x"])).sum()

    with np.errstate(invalid="ignore"):
        estimate = ridders(f, at(1.0), U, dtype=dtype)
    assert abs(estimate.value - math.cos(1)) <= estimate.error_bar <= 1e-8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_nothing_is_finite_the_error_bar_is_infinite(bad: float) -> None:
    def everywhere(p: Any) -> Any:
        return bad * p["x"].sum()

    def beside(p: Any) -> Any:
        return np.where(p["x"] == 1, 0.0, bad).sum()

    def on_the_right(p: Any) -> Any:
        return np.where(p["x"] <= 1, p["x"], bad).sum()

    for f in (everywhere, beside, on_the_right):
        with np.errstate(invalid="ignore"):
            estimate = ridders(f, at(1.0), U)
        assert estimate.error_bar == math.inf


def test_a_constant_has_the_derivative_zero_within_its_rounding() -> None:
    for value in (0.0, 1e-300, 3.7, 1e300):
        estimate = ridders(lambda p, v=value: v, at(2.0), U)
        assert (estimate.value, estimate.jump) == (0, 0)
        assert estimate.error_bar <= 1e-12 * value


def test_enough_stops_early() -> None:
    calls = 0

    def f(p: Any) -> Any:
        nonlocal calls
        calls += 1
        return np.sin(p["x"]).sum()

    exact = ridders(f, at(1.0), U)
    everything, calls = calls, 0
    coarse = ridders(f, at(1.0), U, enough=1e-3)
    assert calls < everything
    assert exact.error_bar < coarse.error_bar <= 1e-3
    assert abs(coarse.value - math.cos(1)) <= coarse.error_bar


def test_slopes_lie_half_the_jump_to_each_side() -> None:
    assert Estimate(3.0, 0.1, jump=4.0).slopes == (1.0, 5.0)
    assert Estimate(3.0, 0.1).slopes == (3.0, 3.0)


ANALYTIC = sorted(SMOOTH.keys() - {"tanh"})


@given(SEED, st.sampled_from(ANALYTIC), st.integers(-300, 250))
@settings(max_examples=200)
def test_the_complex_step_is_exact_to_rounding_at_any_size(
    seed: int, name: str, exponent: int
) -> None:
    g, dg = SMOOTH[name]
    rng = np.random.default_rng(seed)
    x, u = rng.uniform(0.2, 2, 4), rng.standard_normal(4)
    c = 10.0 ** max(exponent, -270)
    terms = c * dg(x) * u
    found = complex_step(lambda p: (c * g(p["x"])).sum(), {"x": x}, {"x": u})
    assert abs(found - math.fsum(terms)) <= 64 * EPS * (np.abs(terms).sum() + c * np.abs(u).sum())


def test_the_complex_step_moves_only_what_the_direction_names() -> None:
    point = {"x": np.array([1.0, 2.0]), "y": np.array(3.0)}

    def f(p: Any) -> Any:
        assert {z.dtype for z in p.values()} == {np.dtype(complex)}
        return p["x"].prod() * p["y"]

    assert complex_step(f, point, {"y": np.array(1.0)}) == 2.0
    assert complex_step(f, point, {"x": unit((2,), 0)}) == 6.0
    assert np.array_equal(complex_entries(f, point, "x"), [6.0, 3.0])
    assert np.array_equal(complex_entries(f, point, "y"), [2.0])


@given(SEED)
@settings(max_examples=30)
def test_the_complex_step_along_all_entries_is_that_along_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 4, size=rng.integers(0, 4)))
    x, w = rng.standard_normal(shape), rng.standard_normal(shape)
    for point in (x, np.asfortranarray(x), x[..., None][..., 0]):

        def f(p: Any) -> Any:
            return (w * np.exp(p["x"])).sum()

        each = [complex_step(f, {"x": point}, {"x": unit(shape, k)}) for k in range(x.size)]
        assert np.array_equal(complex_entries(f, {"x": point}, "x"), each)


@pytest.mark.parametrize(("size", "spacing"), [(1e-3, 3e-9), (1e-6, 3e-9), (1e-9, 2e-6)])
def test_noise_is_measured_as_large_as_it_is(size: float, spacing: float) -> None:
    ratios = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = float(rng.uniform(0.5, 2))
        noise = measure_noise(
            lambda p, rng=rng: np.sin(p["x"]).sum() + size * rng.standard_normal(), at(x), U
        )
        ratios.append((noise.fine / size, noise.coarse / size))
    # Four degrees of freedom scatter by a third.
    assert np.sqrt(np.mean(np.square(ratios), axis=0)) == pytest.approx(1, rel=0.25)


def test_a_smooth_function_has_no_noise_but_rounding() -> None:
    for seed in range(500):
        f, x, _, _ = draw(seed)
        value = abs(float(f(np.array([x]))))
        noise = measure_noise(lambda p, f=f: f(p["x"]), at(x), U)
        assert 0.9 * EPS * value <= noise.fine
        # The quotients and differences inside round by more than the value.
        largest = max(value, 30 * abs(float(f(np.array([x])) - f(np.array([x / 2])))))
        assert max(noise.fine, noise.coarse) <= 1e3 * EPS * max(largest, 1e-8)


def test_noise_of_a_constant_is_one_rounding_and_of_nan_infinite() -> None:
    noise = measure_noise(lambda p: 3.0, at(1.0), U)
    assert (noise.fine, noise.coarse) == (3 * EPS, 3 * EPS)
    noise = measure_noise(lambda p: math.nan, at(1.0), U)
    assert (noise.fine, noise.coarse) == (math.inf, math.inf)


@given(SEED, st.booleans())
@settings(max_examples=60)
def test_a_random_direction_moves_every_entry_in_proportion_to_its_parameter(
    seed: int, zero: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 6, size=rng.integers(0, 4)))
    x = np.zeros(shape) if zero else 10 ** rng.uniform(-5, 5) * rng.standard_normal(shape)
    point = {"x": x, "y": rng.standard_normal(3), "empty": np.zeros((0, 2))}
    direction = RandomDirection(point, ["x", "empty"], seed)
    assert list(direction) == ["x", "empty"]
    assert "y" not in direction
    assert direction["empty"].shape == (0, 2)
    u = direction["x"]
    largest = np.abs(x).max() or 1.0
    assert u.shape == shape
    assert np.all(np.abs(u) >= 0.5 * largest * (1 - EPS))
    assert np.all(np.abs(u) <= largest * (1 + EPS))
    assert np.array_equal(u, direction["x"])
    everything = RandomDirection(point, point, seed)
    assert np.array_equal(u, everything["x"])
    assert np.array_equal(RandomDirection(point, ["y"], seed)["y"], everything["y"])
    if x.size > 3:
        assert not np.array_equal(u, RandomDirection(point, ["x"], seed + 1)["x"])


def test_signs_of_a_random_direction_are_balanced() -> None:
    point = {"x": np.ones((3, 7))}
    signs = [np.sign(RandomDirection(point, ["x"], seed)["x"]) for seed in range(400)]
    assert np.all(np.abs(np.mean(signs, axis=0)) < 0.25)


@pytest.mark.parametrize("error", ["transposed", "permuted", "one entry"])
def test_a_random_direction_sees_every_error(error: str) -> None:
    for seed in range(100):
        g = np.random.default_rng(seed).standard_normal((6, 6))
        wrong = g.copy()
        wrong[seed % 6, 2] *= 1.01
        wrong = {"transposed": g.T, "permuted": np.roll(g, 1, axis=1), "one entry": wrong}[error]
        direction = RandomDirection({"x": g}, ["x"], seed)
        right, found = slope({"x": g}, direction), slope({"x": wrong}, direction)
        assert abs(right.value - found.value) > 1e-6 * right.size


def test_a_slope_is_the_sum_of_terms_and_their_size() -> None:
    g = {"x": np.array([[1.0, -2.0], [3.0, 4.0]]), "y": np.array(5.0), "z": np.array([9.0])}
    u = {"x": np.array([[1.0, 1.0], [-1.0, 0.5]]), "y": np.array(2.0)}
    assert slope(g, u) == (1 - 2 - 3 + 2 + 10, 1 + 2 + 3 + 2 + 10)
    assert np.array_equal(g["x"], [[1.0, -2.0], [3.0, 4.0]])


def test_moving_leaves_the_point_alone_and_keeps_the_dtype() -> None:
    point = {"x": np.arange(6.0).reshape(2, 3).T, "y": np.ones(2)}
    for dtype in DTYPES:
        there = moved(point, {"x": np.ones((3, 2))}, 0.5, dtype)
        assert np.array_equal(there["x"], point["x"] + 0.5)
        assert np.array_equal(there["y"], point["y"])
        assert {x.dtype for x in there.values()} == {np.dtype(dtype)}
        assert not any(np.shares_memory(there[name], point[name]) for name in point)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_ulp_away_is_no_farther_but_for_rounding(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    there = one_ulp_away({"x": x}, np.random.default_rng(1))["x"]
    assert there.dtype == x.dtype
    assert np.all(np.abs(there - x) <= 1.5 * np.finfo(dtype).eps * np.abs(x))
    assert np.mean(there != x) > 0.3
