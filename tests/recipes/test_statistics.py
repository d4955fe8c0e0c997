"""Means and intervals: quantiles against tables, coverage by simulation."""

from __future__ import annotations

import functools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.recipes import statistics
from refkd.recipes.statistics import confidence_interval, student_t_quantile


@pytest.mark.parametrize(
    ("degrees", "tabulated"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (30, 2.042),
        (120, 1.980),
        (1000, 1.962),
        (10_000, 1.960),
    ],
)
def test_the_975_quantile_is_the_tabulated_one(degrees: int, tabulated: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(tabulated, abs=6e-4)


@pytest.mark.parametrize(
    ("probability", "degrees", "tabulated"),
    [(0.9, 3, 1.638), (0.95, 1, 6.314), (0.99, 5, 3.365), (0.995, 2, 9.925), (0.9995, 9, 4.781)],
)
def test_other_quantiles_are_the_tabulated_ones(
    probability: float, degrees: int, tabulated: float
) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(tabulated, abs=6e-4)


@given(st.floats(0.5, 0.9999))
def test_quantiles_of_one_and_two_degrees_are_known_in_closed_form(p: float) -> None:
    assert student_t_quantile(p, 1) == pytest.approx(
        math.tan(math.pi * (p - 0.5)), rel=1e-7, abs=1e-9
    )
    two = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    assert student_t_quantile(p, 2) == pytest.approx(two, rel=1e-7, abs=1e-9)


@given(st.floats(0.5, 0.9999), st.integers(1, 200))
def test_quantiles_fall_with_the_degrees_of_freedom(p: float, degrees: int) -> None:
    assert student_t_quantile(p, degrees + 1) <= student_t_quantile(p, degrees) + 1e-12


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_covers_the_mean_in_95_of_100_samples(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of intervals need one quantile; finding it takes milliseconds.
    monkeypatch.setattr(statistics, "student_t_quantile", functools.cache(student_t_quantile))
    rng = np.random.default_rng(n)
    samples, repeats = rng.normal(0.9, 0.02, size=(4000, n)), 4000
    covered = 0
    for sample in samples:
        low, high = confidence_interval(sample.tolist())
        covered += low <= 0.9 <= high
    assert abs(covered / repeats - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


def test_the_interval_is_mean_plus_and_minus_t_standard_errors() -> None:
    low, high = confidence_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)


def test_one_value_has_no_interval_and_equal_values_an_empty_one() -> None:
    assert confidence_interval([0.9]) is None
    assert confidence_interval([0.9] * 5) == [0.9, 0.9]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.randoms())
def test_the_interval_does_not_depend_on_the_order_and_holds_the_mean(values, random) -> None:
    shuffled = random.sample(values, len(values))
    low, high = confidence_interval(values)
    assert confidence_interval(shuffled) == pytest.approx([low, high], rel=1e-9, abs=1e-6)
    assert low <= fmean(values) <= high
