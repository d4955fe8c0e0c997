"""The error function against 106-bit golden values, and the promises of its docstring."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import DtypeError
from refkd.ops import special
from refkd.ops.special import erf

GOLDEN = Path(__file__).parents[1] / "golden"
X, HI, LO, DERIVATIVE = np.array(json.loads((GOLDEN / "erf.json").read_text("utf-8"))).T

EXTREMES = [0.0, 5e-324, 1e-310, 1e-160, 1.0, 4.0, 6.0, 1e160, 1.7e308, math.inf]


def float64_ulp_errors(y: np.ndarray) -> np.ndarray:
    return np.abs((y - HI) - LO) / np.spacing(HI)


def float32_ulp_errors(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(y - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)


def float32_chunks(stride: int) -> Iterator[np.ndarray]:
    """Every ``stride``-th float32 from 0, subnormals included, to 5, where erf is clamped."""
    end = int(np.float32(5).view(np.int32)) + 1
    for start in range(0, end, stride << 17):
        stop = min(start + (stride << 17), end)
        yield np.arange(start, stop, stride, dtype=np.int32).view(np.float32)


def assert_float32_errors_are_as_stated(stride: int) -> None:
    # With an exact tanh what remains is refkd's own error, the same on every platform.
    exact_tanh = SimpleNamespace(clip=np.clip, tanh=lambda u: np.tanh(u.astype(np.float64)))
    for x in float32_chunks(stride):
        exact = erf(x.astype(np.float64))
        assert float32_ulp_errors(special._erf_float32(exact_tanh, x), exact).max() <= 1.4
        y = erf(x)
        assert float32_ulp_errors(y, exact).max() <= 4  # NumPy's tanh: 2.4; libraries: 2.5 more
        assert y.max() <= 1


def test_float64_error_is_at_most_one_and_a_half_ulp() -> None:
    assert float64_ulp_errors(erf(X)).max() <= 1.5


def test_complex_real_part_error_is_at_most_one_and_a_half_ulp() -> None:
    assert float64_ulp_errors(erf(X + 1e-30j).real).max() <= 1.5


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-300, 1e-3, 0.3, 1.0, 3.0]))
def test_float64_agrees_with_the_c_library(seed: int, scale: float) -> None:
    x = scale * np.random.default_rng(seed).standard_normal(64)
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x.tolist()], rtol=1e-15)


def test_float32_error_is_as_stated_on_a_dense_sample() -> None:
    assert_float32_errors_are_as_stated(stride=1999)


@pytest.mark.slow
def test_float32_error_is_as_stated_on_every_float32() -> None:
    assert_float32_errors_are_as_stated(stride=1)


@pytest.mark.parametrize("h", [1e-30, 1e-200])
def test_complex_step_gives_the_gaussian_derivative(h: float) -> None:
    for x in (X, -X):
        assert np.abs(erf(x + 1j * h).imag / h - DERIVATIVE).max() <= 1e-15


@pytest.mark.parametrize("edge", [0.0, 1.0, 6.0])
def test_complex_step_has_no_jump_where_the_ranges_meet(edge: float) -> None:
    x = np.array([math.nextafter(edge, -1), edge, math.nextafter(edge, 9)])
    slope = erf(x + 1e-30j).imag / 1e-30
    np.testing.assert_allclose(slope, 2 / math.sqrt(math.pi) * np.exp(-x * x), atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_erf_is_odd_to_the_last_bit(dtype: str) -> None:
    x = X.astype(dtype) if dtype != "complex128" else X + 1e-20j * X
    np.testing.assert_array_equal(erf(-x), -erf(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_signed_zeros_infinities_and_nan_are_kept(dtype: str) -> None:
    y = erf(np.array([0.0, -0.0, math.inf, -math.inf, math.nan], dtype))
    np.testing.assert_array_equal(y, [0.0, -0.0, 1.0, -1.0, math.nan])
    np.testing.assert_array_equal(np.signbit(y[:4]), [False, True, False, True])


def test_complex_nan_stays_nan() -> None:
    assert np.isnan(erf(np.array([complex(math.nan, 1e-30)])).real).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_saturates_at_exactly_one_and_never_exceeds_it(dtype: str) -> None:
    y = erf(np.linspace(0, 50, 100_001).astype(dtype))
    assert (y[12_000:] == 1).all()
    assert y.max() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_value_overflows_or_is_invalid(dtype: str) -> None:
    with np.errstate(over="ignore"):
        x = np.array([*EXTREMES, math.nan, *np.negative(EXTREMES)]).astype(dtype)
    with np.errstate(all="raise", under="ignore"):
        y = erf(x)
    assert np.isfinite(y).sum() == 2 * len(EXTREMES)


@pytest.mark.parametrize(("dtype", "smallest"), [("float32", 1e-17), ("float64", 1e-148)])
def test_nothing_underflows_above_the_stated_magnitudes(dtype: str, smallest: float) -> None:
    x = np.concatenate([np.geomspace(smallest, 1e30, 1000), [math.inf]]).astype(dtype)
    with np.errstate(all="raise"):
        y = erf(x)
    assert (y > 0).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "complex128"]),
)
def test_every_element_stands_alone_whatever_shape_and_strides(
    seed: int, shape: tuple[int, ...], dtype: str
) -> None:
    x = (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    before = x.copy()
    y = erf(x)
    assert y.shape == shape
    assert y.dtype == dtype
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(erf(x.T), y.T)
    np.testing.assert_array_equal(erf(x[..., None][..., ::-1])[..., 0], y)
    np.testing.assert_array_equal([erf(np.array([v]))[0] for v in x.ravel()], np.ravel(y))


@pytest.mark.parametrize(
    "x", [np.arange(3), np.zeros(2, np.float16), np.zeros(2, bool), [0.5], 1.0]
)
def test_what_is_no_floating_array_is_refused_by_name(x: object) -> None:
    with pytest.raises(DtypeError, match="erf"):
        erf(x)


@pytest.mark.slow
def test_coefficients_are_those_that_the_generator_derives() -> None:
    pytest.importorskip("mpmath")
    spec = importlib.util.spec_from_file_location("make_erf", GOLDEN / "make_erf.py")
    assert spec is not None
    assert spec.loader is not None
    make_erf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_erf)
    for name, values in make_erf.derive_coefficients().items():
        np.testing.assert_allclose(getattr(special, name), values, rtol=1e-13, err_msg=name)
