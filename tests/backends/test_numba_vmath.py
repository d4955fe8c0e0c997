"""The Numba backend's exp, log, tanh and normal distribution: how wrong they are over float32."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any, NamedTuple

import numpy as np
import pytest

from refkd.dispatch import available_backends

if available_backends().get("numba"):
    pytest.skip(str(available_backends()["numba"]), allow_module_level=True)

import numba

from refkd_numba import vmath
from refkd_numba.compile import FAST

compiled: Any = numba.njit(nogil=True, error_model="numpy", fastmath=set(FAST))
exactly: Any = numba.njit(nogil=True, error_model="numpy")

CHUNK = 1 << 18
INFINITE, NEGATIVE = 0x7F800000, 0x80000000  # as bits; what is above INFINITE is NaN
OVERFLOW = 2.0**128 - 2.0**103  # rounds to infinity


class Function(NamedTuple):
    """A function of vmath and the largest error it may have.

    ``error`` is in units in the last place; ``square`` is how many more there may be for
    each unit of x², which is rounded before it is taken to the exponent. Below ``low`` the
    result is its first terms, and from ``high`` on it is one number.
    """

    compiled: Any
    exact: Any
    error: float
    low: float
    high: float
    square: float = 0.0
    nonpositive_only: bool = False


@exactly
def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@exactly
def sigmoid_of_minus(x: float) -> float:
    return 1 / (1 + math.exp(x))


@exactly
def tail(x: float) -> float:
    return math.erfc(abs(x) * math.sqrt(0.5)) / 2


@exactly
def density(x: float) -> float:
    return math.exp(-x * x / 2)


FUNCTIONS = {
    "exp": Function(vmath.exp, exactly(lambda x: math.exp(x)), 1.03, 2.0**-27, 105),
    "exp_nonpositive": Function(
        vmath.exp_nonpositive,
        exactly(lambda x: math.exp(x)),
        1.03,
        2.0**-27,
        105,
        nonpositive_only=True,
    ),
    "log": Function(vmath.log, exactly(lambda x: np.log(x)), 0.87, 0, math.inf),
    "tanh": Function(vmath.tanh, exactly(lambda x: math.tanh(x)), 1.47, 2.0**-14, 10),
    "sigmoid": Function(
        compiled(lambda x: vmath.sigmoid_tails(x)[0]), sigmoid, 2.83, 2.0**-27, 105
    ),
    "sigmoid of −x": Function(
        compiled(lambda x: vmath.sigmoid_tails(x)[1]), sigmoid_of_minus, 2.83, 2.0**-27, 105
    ),
    "tail": Function(
        compiled(lambda x: vmath.normal_tail(x)[0]), tail, 3.8, 2.0**-27, 15, square=0.5
    ),
    "density": Function(
        compiled(lambda x: vmath.normal_tail(x)[1]), density, 0.72, 2.0**-14, 15, square=0.5
    ),
}


@exactly
def excess(x: Any, y: Any, exact: Any, square: float) -> float:
    """Return the largest error of y in units in the last place, less ``square`` · x²."""
    worst = 0.0
    for i in range(x.size):
        value = exact(np.float64(x[i]))
        if math.isnan(value):
            error = 0.0 if math.isnan(y[i]) else math.inf
        elif abs(value) >= OVERFLOW:
            error = 0.0 if y[i] == math.copysign(math.inf, value) else math.inf
        else:
            ulp = math.ldexp(1.0, max(math.frexp(value)[1] - 24, -149))
            error = abs(y[i] - value) / ulp - square * np.float64(x[i]) ** 2
        if not error <= worst:
            worst = error
    return worst


def largest_excess(name: str, stride: int) -> float:
    """Return it over every ``stride``-th float32, computed in a loop as free as a kernel's."""
    function = FUNCTIONS[name]
    evaluate = function.compiled

    @compiled
    def loop(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = evaluate(x[i])

    worst = 0.0
    low, high = (int(np.float32(x).view(np.uint32)) for x in (function.low, function.high))
    parts = [(0, low, 4999), (low, high, stride), (high, INFINITE + 2, 4999)]  # the last is NaN
    for sign, (begin, end, step) in itertools.product((0, NEGATIVE), parts):
        if function.nonpositive_only and sign == 0:
            continue
        for first in range(begin, end, CHUNK * step):
            last = min(first + CHUNK * step, end)
            bits = np.append(np.arange(first, last, step), last - 1) + sign
            x = bits.astype(np.uint32).view(np.float32)
            y = np.empty_like(x)
            loop(x, y)
            worst = max(worst, excess(x, y, function.exact, function.square))
    return worst


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_those_stated(name: str) -> None:
    assert largest_excess(name, stride=4999) <= FUNCTIONS[name].error


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_over_more_of_float32_are_those_stated(name: str) -> None:
    # REFKD_STRIDE=1 takes every float32, which takes many minutes.
    worst = largest_excess(name, stride=int(os.environ.get("REFKD_STRIDE", "31")))
    print(f"{name}: {worst:.3f} units in the last place")
    assert worst <= FUNCTIONS[name].error


def vectorised(function: Any, *x: Any) -> Any:
    """Return function(x[i]) for each i, computed in a loop as free as a kernel's."""

    @compiled
    def loop(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    arguments = np.array(x * 9, np.float32)  # whole vectors and a remainder
    y = np.empty_like(arguments)
    loop(arguments, y)
    rows = y.reshape(9, -1)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    return rows[0].tolist()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_of_either_sign_stays_nan(name: str) -> None:
    assert np.isnan(vectorised(FUNCTIONS[name].compiled, np.nan, -np.nan)).all()


def test_exp_ends_in_subnormal_numbers_zero_and_infinity() -> None:
    for exp in (vmath.exp, vmath.exp_nonpositive):
        assert vectorised(exp, 0, -0.0, -103.2, -104, -1e30, -np.inf) == [1, 1, 2**-149, 0, 0, 0]
    assert vectorised(vmath.exp, 88.8, 1e30, np.inf) == [np.inf] * 3


def test_log_of_zero_and_less() -> None:
    assert vectorised(vmath.log, 0, -0.0, 1, np.inf) == [-np.inf, -np.inf, 0, np.inf]
    assert np.isnan(vectorised(vmath.log, -1e-45, -1, -np.inf)).all()


def test_tanh_is_odd_and_keeps_the_sign_of_zero() -> None:
    x = np.concatenate([[0.0, 1e-45, 0.625, np.inf], np.random.default_rng(0).exponential(3, 99)])
    y = vectorised(vmath.tanh, *x)
    assert vectorised(vmath.tanh, *-x) == [-value for value in y]
    assert np.signbit(vectorised(vmath.tanh, -0.0))[0]
    assert max(y) == 1


@pytest.mark.parametrize("length", [0, 1, 7, 8, 40, 511, 512, 513, 5000])
def test_largest_and_sums_of_any_length(length: int) -> None:
    rng = np.random.default_rng(length)
    x, y = rng.standard_normal((2, length)).astype(np.float32)
    assert compiled(lambda x: vmath.largest(x))(x) == max(x, default=-np.inf)
    exact = x.astype(np.float64)
    for actual, terms in (
        (compiled(lambda x: vmath.total(x))(x), exact),
        (compiled(lambda x, y: vmath.dot(x, y))(x, y), exact * y),
    ):
        assert abs(actual - terms.sum()) <= 8 * 2.0**-24 * np.abs(terms).sum()


@pytest.mark.parametrize("specials", [[np.inf, 1], [-np.inf, -3], [-np.inf], [-0.0, 0.0], [3e38]])
def test_largest_of_what_is_not_finite(specials: list[float]) -> None:
    x = np.array(specials * 5, np.float32)
    assert compiled(lambda x: vmath.largest(x))(x) == x.max()


def test_a_sum_of_many_is_as_good_as_one_of_few() -> None:
    x = np.full(1 << 24, 0.1, np.float32)
    total = compiled(lambda x: vmath.total(x))(x)
    assert abs(total / (x.size * float(x[0])) - 1) < 4 * 2.0**-24
