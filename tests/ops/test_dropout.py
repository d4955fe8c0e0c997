"""Dropout by a given mask: its two ends, expectation, linearity and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import dropout_backward, dropout_forward

both = pytest.mark.parametrize("kernel", [dropout_forward, dropout_backward])


def test_probability_zero_is_the_identity() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_array_equal(dropout_forward(x, np.ones((3, 4), bool), p=0), x)


@both
def test_probability_one_is_zero_without_a_division_by_zero(kernel) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_array_equal(kernel(x, np.zeros((3, 4), bool), p=1), np.zeros((3, 4)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_expectation_is_the_input(p: float) -> None:
    rng = np.random.default_rng(1)
    draws = 40_000
    mask = rng.random((draws, 3)) >= p
    x = np.broadcast_to(np.array([1.0, -2.0, 0.5]), mask.shape)
    mean = dropout_forward(x, mask, p=p).mean(axis=0)
    # Five standard errors: each entry is x/(1 − p) with probability 1 − p, else 0.
    bound = 5 * np.abs(x[0]) * math.sqrt(p / (1 - p) / draws)
    assert (np.abs(mean - x[0]) <= bound).all()


@pytest.mark.parametrize("p", [0.0, 0.5, 0.75])
@given(shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_backward_is_the_exact_adjoint(p: float, shape: tuple[int, ...], seed: int) -> None:
    # 1/(1 − p) is a power of two and the data are integers, so every sum is exact.
    rng = np.random.default_rng(seed)
    x, dy = (np.asarray(rng.integers(-9, 10, shape), float) for _ in range(2))
    mask = np.asarray(rng.random(shape) >= p)
    forward = (dy * dropout_forward(x, mask, p=p)).sum()
    assert (dropout_backward(dy, mask, p=p) * x).sum() == forward


def test_kept_entries_are_rescaled_and_the_others_are_zero() -> None:
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(
        dropout_forward(np.array([1.0, 2.0, 3.0]), mask, p=0.75), [4, 0, 12]
    )


@both
def test_dtype_is_kept_for_any_kind_of_probability(kernel) -> None:
    for p in (0, 0.5, np.float64(0.5), np.float32(0.5)):
        for dtype in (np.float32, np.float64, np.complex128):
            assert kernel(np.ones(3, dtype), np.ones(3, bool), p=p).dtype == dtype


@both
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, "0.5", None])
def test_a_probability_outside_the_unit_interval_is_refused(kernel, p) -> None:
    with pytest.raises(ConfigError, match=r"p must be a number in \[0, 1\]"):
        kernel(np.ones(3), np.ones(3, bool), p=p)


@both
def test_the_mask_must_be_boolean_and_of_the_same_shape(kernel) -> None:
    with pytest.raises(DtypeError, match="mask must be a boolean array"):
        kernel(np.ones(3), np.ones(3), p=0.5)
    with pytest.raises(ShapeError, match=r"mask \(4,\)"):
        kernel(np.ones(3), np.ones(4, bool), p=0.5)
    with pytest.raises(DtypeError, match="mask must be a boolean array"):
        kernel(np.ones(3), [True, True, True], p=0.5)
