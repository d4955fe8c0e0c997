"""The Numba backend's attention: heads as they lie in a projection, blocks of queries, extremes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, registered_kernels, use_backend
from refkd.errors import BackendUnavailable
from refkd.testing.tolerances import tolerance
from tests.backends.calls import LAYOUTS
from tests.backends.calls import calls as reference_calls

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import attention, team

SEED = st.integers(0, 2**32 - 1)
LAYOUT = st.sampled_from([*sorted(LAYOUTS), "a projection"])
SIZES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40),
    st.integers(1, 20), st.integers(1, 20),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread_of_blas() -> Any:
    with use_backend("numba"):
        yield


def laid(layout: str, array: np.ndarray[Any, Any]) -> Any:
    if layout == "a projection":  # the rows of all heads one after another
        return np.array(array.swapaxes(1, 2), order="C").swapaxes(1, 2)
    return LAYOUTS[layout](array, np.asarray)


def reference(direction: str, *arrays: Any, dtype: str = "float32", **options: Any) -> Any:
    cast = [np.array(a, dtype, order="C") for a in arrays]
    return registered_kernels()[f"attention_{direction}"].reference(*cast, **options)


def draw(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def assert_as_accurate(direction: str, arrays: list[Any], layouts: list[str], scale: float) -> Any:
    """Check a direction in some layouts against the reference in float64; return its results."""
    moved = [laid(at, a) for a, at in zip(arrays, layouts, strict=True)]
    actual = attention.KERNELS[f"attention_{direction}"](*moved, scale=scale)
    rough = reference(direction, *arrays, scale=scale)
    exact = reference(direction, *arrays, dtype="float64", scale=scale)
    for a, r, e in zip(actual, rough, exact, strict=True):
        assert (a.shape, a.dtype) == (e.shape, np.float32)
        size = max(float(np.abs(e).max()), 1.0 if direction == "backward" else 0.0)
        allowed = 4 * np.abs(r - e).max() + tolerance("float32", "pointwise") * size
        assert np.abs(a - e).max() <= allowed
    return actual


@settings(max_examples=60, deadline=None)
@given(SIZES, SEED, st.lists(LAYOUT, min_size=5, max_size=5), st.sampled_from([0.1, 1.0]))
def test_attention_is_as_accurate_as_the_reference(
    sizes: tuple[int, ...], seed: int, layouts: list[str], scale: float
) -> None:
    batch, heads, queries, keys, width, value_width = sizes
    rng = np.random.default_rng(seed)
    q, k = draw(rng, batch, heads, queries, width), draw(rng, batch, heads, keys, width)
    v, dy = (
        draw(rng, batch, heads, keys, value_width),
        draw(rng, batch, heads, queries, value_width),
    )
    _, probabilities = assert_as_accurate("forward", [q, k, v], layouts[:3], scale)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)
    assert_as_accurate(
        "backward",
        [dy, q, k, v, probabilities],
        [layouts[3], *layouts[:3], layouts[4].replace("a projection", "C")],
        scale,
    )


@pytest.mark.parametrize("queries", [1, 64, 65, 300])
def test_queries_may_need_several_blocks(queries: int) -> None:
    keys = 1021  # 64 queries have as many scores as fit a block
    assert queries in (1, attention._SCORES // keys, 65, 300)
    rng = np.random.default_rng(0)
    q, dy = draw(rng, 1, 2, queries, 16), draw(rng, 1, 2, queries, 24)
    k, v = draw(rng, 1, 2, keys, 16), draw(rng, 1, 2, keys, 24)
    _, probabilities = assert_as_accurate("forward", [q, k, v], ["C"] * 3, 0.25)
    assert_as_accurate("backward", [dy, q, k, v, probabilities], ["C"] * 5, 0.25)


def test_heads_of_a_projection_are_read_where_they_lie_and_come_out_like_them() -> None:
    rng = np.random.default_rng(0)
    projection = draw(rng, 2, 17, 3, 4, 8)  # batch, token, q or k or v, head, entry
    q, k, v = (projection[:, :, i].swapaxes(1, 2) for i in range(3))
    assert all(attention._in_rows(x) is x for x in (q, k, v))
    y, probabilities = attention.attention_forward(q, k, v, scale=0.3)
    gradients = attention.attention_backward(y, q, k, v, probabilities, scale=0.3)
    for array in (y, *gradients):
        assert array.swapaxes(1, 2).flags.c_contiguous  # heads merge without a copy
    expected, _ = reference("forward", q, k, v, scale=0.3)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


def test_large_scores_neither_overflow_nor_lose_the_sum() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (100 * draw(rng, 1, 2, 9, 8) for _ in range(3))
    y, probabilities = attention.attention_forward(q, k, v, scale=1.0)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)
    exact, _ = reference("forward", q, k, v, dtype="float64", scale=1.0)
    np.testing.assert_allclose(y, exact, atol=100 * 1e-3)  # scores of 1e5 have an error of 1e-2


def test_equal_keys_get_equal_shares() -> None:
    rng = np.random.default_rng(0)
    q, v = draw(rng, 2, 1, 5, 3), draw(rng, 2, 1, 7, 4)
    k = np.broadcast_to(draw(rng, 2, 1, 1, 3), (2, 1, 7, 3))
    y, probabilities = attention.attention_forward(q, k, v, scale=0.7)
    np.testing.assert_array_equal(probabilities, np.float32(1 / 7))
    np.testing.assert_allclose(
        y, np.broadcast_to(v.mean(axis=2, keepdims=True), y.shape), atol=1e-6
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_alone(value: float) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (draw(rng, 2, 2, 6, 5) for _ in range(3))
    q[1, 0, 3, 2] = value
    y, probabilities = attention.attention_forward(q, k, v, scale=0.4)
    expected = np.zeros((2, 2, 6), bool)
    expected[1, 0, 3] = True
    np.testing.assert_array_equal(np.isnan(y).any(axis=-1), expected)
    np.testing.assert_array_equal(np.isnan(probabilities).all(axis=-1), expected)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, k, v, dy = (draw(rng, 3, 5, 33, 24) for _ in range(4))
    monkeypatch.setattr(attention, "_WORTH", -1)
    found = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(team, "worker_threads", lambda n=threads: n)
        y, probabilities = attention.attention_forward(q, k, v, scale=1 / math.sqrt(24))
        gradients = attention.attention_backward(
            dy, q, k, v, probabilities, scale=1 / math.sqrt(24)
        )
        found.append([a.tobytes() for a in (y, probabilities, *gradients)])
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("kernel", sorted(attention.KERNELS))
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float16", ">f4"])
def test_what_is_not_float32_is_left_to_the_reference(kernel: str, dtype: str) -> None:
    for call in reference_calls(kernel, large=False):
        cast = call.map(lambda x: x.astype(dtype))
        assert attention.KERNELS[kernel](**cast.arguments) is NotImplemented
