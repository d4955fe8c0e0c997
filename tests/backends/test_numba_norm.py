"""The Numba backend's norms: accuracy far from 0, memory of every kind, ReLU fused, threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, registered_kernels
from refkd.errors import BackendUnavailable
from refkd.testing.tolerances import tolerance
from tests.backends.calls import LAYOUTS
from tests.backends.calls import calls as reference_calls

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import batch_norm, group_norm, layer_norm, norm, team

Arrays = dict[str, np.ndarray[Any, Any]]
SEED = st.integers(0, 2**32 - 1)
LAYOUT = st.sampled_from(sorted(LAYOUTS))
OVERRIDES: dict[str, Callable[..., Any]] = {
    **batch_norm.KERNELS,
    **group_norm.KERNELS,
    **layer_norm.KERNELS,
}
MODULES = (batch_norm, group_norm, layer_norm, team)


def reference(kernel: str, *arrays: Any, dtype: str = "float32", **options: Any) -> Any:
    cast = [None if a is None else np.array(a, dtype, order="C") for a in arrays]
    return registered_kernels()[kernel].reference(*cast, **options)


def laid(layout: str, array: np.ndarray[Any, Any]) -> Any:
    return LAYOUTS[layout](array, np.asarray)


def draw(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.0) -> Any:
    return (mean + rng.standard_normal(shape)).astype(np.float32)


def assert_as_accurate(kernel: str, arrays: list[Any], layouts: list[str], **options: Any) -> Any:
    """Check an override in some layouts against the reference in float64; return its results."""
    moved = [a if a is None else laid(at, a) for a, at in zip(arrays, layouts, strict=True)]
    actual = OVERRIDES[kernel](*moved, **options)
    rough = reference(kernel, *arrays, **options)
    exact = reference(kernel, *arrays, dtype="float64", **options)
    # In a mean and in a gradient terms cancel: they are larger than what is left, and so are
    # their roundings.
    if kernel.endswith("_backward"):
        dy, _, weight, _, rstd = arrays
        largest = [float(np.abs(dy).max() * np.abs(weight).max() * rstd.max())] * 3
    else:
        largest = [0.0, float(np.abs(arrays[0]).max()), 0.0, 0.0][: len(exact)]
    for a, r, e, terms in zip(actual, rough, exact, largest, strict=True):
        assert (a.shape, a.dtype) == (np.shape(e), np.float32)
        size = max(float(np.abs(e).max()), terms)
        # A sum may be right by chance in the reference, where it has no more than one channel.
        kind = "reduction" if a.ndim == 1 else "pointwise"
        allowed = 4 * np.abs(r - e).max() + tolerance("float32", kind) * size
        assert np.abs(a - e).max() <= allowed, (kernel, a.shape)
    return actual


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw (N, C, ...) with a few values for each channel, or many rows of them."""
    space = draw(st.lists(st.integers(1, 9), max_size=3))
    return (draw(st.sampled_from([2, 3, 5, 130])), draw(st.integers(1, 70)), *space)


@settings(max_examples=60, deadline=None)
@given(shapes(), SEED, st.lists(LAYOUT, min_size=3, max_size=3), st.sampled_from([0.0, 1e4]))
def test_batch_norm_is_as_accurate_as_the_reference(
    shape: tuple[int, ...], seed: int, layouts: list[str], mean: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = draw(rng, shape, mean), draw(rng, shape)
    weight, bias, running_mean = (draw(rng, shape[1:2]) for _ in range(3))
    running_var = rng.uniform(0.1, 3, shape[1]).astype(np.float32)
    places = [layouts[0], layouts[1], layouts[2]]
    for statistics in ((None, None), (running_mean, running_var)):
        arrays = [x, weight, bias, *statistics]
        actual = assert_as_accurate(
            "batch_norm_forward", arrays, [layouts[0], *places[1:], *places[1:]]
        )
        assert_as_accurate(
            "batch_norm_backward",
            [dy, x, weight, actual[1], actual[3]],
            [layouts[1], layouts[0], *layouts],
            batch_statistics=statistics[0] is None,
        )


@settings(max_examples=40, deadline=None)
@given(shapes(), SEED, LAYOUT, LAYOUT, st.sampled_from([0.0, 1e4]), st.data())
def test_group_norm_is_as_accurate_as_the_reference(
    shape: tuple[int, ...], seed: int, layout: str, of_dy: str, mean: float, data: st.DataObject
) -> None:
    divisors = [g for g in range(1, shape[1] + 1) if shape[1] % g == 0]
    groups = data.draw(st.sampled_from(divisors))
    rng = np.random.default_rng(seed)
    x, dy = draw(rng, shape, mean), draw(rng, shape)
    weight, bias = draw(rng, shape[1:2]), draw(rng, shape[1:2])
    _, mu, rstd = assert_as_accurate(
        "group_norm_forward", [x, weight, bias], [layout, of_dy, layout], num_groups=groups
    )
    assert_as_accurate(
        "group_norm_backward",
        [dy, x, weight, mu, rstd],
        [of_dy, layout, layout, of_dy, layout],
        num_groups=groups,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.one_of(st.integers(1, 80), st.sampled_from([1023, 1025, 2300])),
    SEED,
    LAYOUT,
    LAYOUT,
    st.sampled_from([0.0, 1e4]),
)
def test_layer_norm_is_as_accurate_as_the_reference(
    leading: list[int], width: int, seed: int, layout: str, of_dy: str, mean: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (*leading, width)
    x, dy = draw(rng, shape, mean), draw(rng, shape)
    weight, bias = draw(rng, (width,)), draw(rng, (width,))
    _, mu, rstd = assert_as_accurate(
        "layer_norm_forward", [x, weight, bias], [layout, of_dy, layout]
    )
    assert_as_accurate(
        "layer_norm_backward", [dy, x, weight, mu, rstd], [of_dy, layout, layout, of_dy, layout]
    )


@pytest.mark.parametrize("layout", ["C", "channels last"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_value_far_off_does_not_spoil_the_variance_of_the_others(
    layout: str, place: int
) -> None:
    # The first value is what is subtracted from the others before they are squared.
    rng = np.random.default_rng(0)
    x = draw(rng, (6, 5, 12, 11), mean=3.0)
    x[0].reshape(5, -1)[:, place] = 1e6
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    assert_as_accurate("batch_norm_forward", [x, ones, zeros, None, None], [layout] * 5)
    assert_as_accurate("group_norm_forward", [x, ones, zeros], [layout] * 3, num_groups=5)
    rows = np.ascontiguousarray(x.reshape(30, -1))
    ones, zeros = np.ones(132, np.float32), np.zeros(132, np.float32)
    assert_as_accurate("layer_norm_forward", [rows, ones, zeros], ["C"] * 3)


@pytest.mark.parametrize("layout", ["C", "channels last"])
@pytest.mark.parametrize("value", [0.0, -0.7, 1e4 / 3, 1e-30])
def test_a_constant_channel_comes_out_as_its_bias(layout: str, value: float) -> None:
    x = laid(layout, np.full((7, 3, 9, 8), value, np.float32))
    weight, bias = np.float32([2, -1, 0.5]), np.float32([0.3, -4, 0])
    y, mean, var, rstd = batch_norm.batch_norm_forward(x, weight, bias, None, None)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))
    np.testing.assert_array_equal(mean, np.float32(value))
    np.testing.assert_array_equal(var, np.float32(0))
    np.testing.assert_allclose(rstd, 1e-5**-0.5, rtol=1e-6)
    y, mean, _ = group_norm.group_norm_forward(x, weight, bias, num_groups=3)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))
    np.testing.assert_array_equal(mean, np.float32(value))


@pytest.mark.parametrize("layout", ["C", "channels last"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel(layout: str, value: float) -> None:
    rng = np.random.default_rng(0)
    x = draw(rng, (4, 5, 6, 7))
    x[2, 3, 1, 1] = value
    weight, bias = draw(rng, (5,)), draw(rng, (5,))
    moved = laid(layout, x)
    y, mean, var, rstd = batch_norm.batch_norm_forward(moved, weight, bias, None, None)
    expected = np.arange(5) == 3
    for vector in (mean, var, rstd, y.sum(axis=(0, 2, 3))):
        np.testing.assert_array_equal(np.isnan(vector), expected)
    relu, *_ = batch_norm.batch_norm_relu_forward(moved, weight, bias, None, None)
    np.testing.assert_array_equal(np.isnan(relu), np.isnan(y))
    of_groups = group_norm.group_norm_forward(moved, weight, bias, num_groups=5)
    for found in of_groups:
        bad = np.isnan(found).reshape(4, 5, -1)
        np.testing.assert_array_equal(np.argwhere(bad.all(axis=2)), [[2, 3]])
        assert bad.any(axis=2).sum() == 1
    dx, dweight, dbias = batch_norm.batch_norm_backward(
        moved, moved, weight, bias, weight, batch_statistics=True
    )
    for vector in (dweight, dbias, dx.sum(axis=(0, 2, 3))):
        np.testing.assert_array_equal(np.isfinite(vector), ~expected)


@settings(max_examples=40, deadline=None)
@given(shapes(), SEED, st.lists(LAYOUT, min_size=3, max_size=3), st.booleans())
def test_relu_behind_batch_norm_is_the_two_kernels_in_a_row(
    shape: tuple[int, ...], seed: int, layouts: list[str], of_batch: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = draw(rng, shape, 0.3), draw(rng, shape[1:2]), draw(rng, shape[1:2])
    running = (None, None) if of_batch else (draw(rng, shape[1:2]), np.abs(draw(rng, shape[1:2])))
    moved = laid(layouts[0], x)
    plain = batch_norm.batch_norm_forward(moved, weight, bias, *running)
    fused = batch_norm.batch_norm_relu_forward(moved, weight, bias, *running)
    np.testing.assert_array_equal(fused[0], np.maximum(plain[0], 0))
    for a, e in zip(fused[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(a, e)
    _, mean, _, rstd = plain
    dy = draw(rng, shape)
    actual = batch_norm.batch_norm_relu_backward(
        laid(layouts[1], dy), laid(layouts[2], fused[0]), moved, weight, mean, rstd,
        batch_statistics=of_batch,
    )  # fmt: skip
    expected = batch_norm.batch_norm_backward(
        dy * (fused[0] > 0), moved, weight, mean, rstd, batch_statistics=of_batch
    )
    for a, e in zip(actual, expected, strict=True):
        size = max(1.0, float(np.abs(e).max()))
        assert np.abs(a - e).max() <= tolerance("float32", "product") * size


def test_relu_s_mask_multiplies_as_relu_backward_does() -> None:
    # An infinite dy that does not reach the norm is 0 · ∞.
    rng = np.random.default_rng(0)
    x, ones = draw(rng, (6, 2)), np.ones(2, np.float32)
    y, mean, _, rstd = batch_norm.batch_norm_relu_forward(x, ones, 0 * ones, None, None)
    dy = draw(rng, (6, 2))
    dy[int(np.argmin(x[:, 0])), 0] = np.inf
    dx, dweight, dbias = batch_norm.batch_norm_relu_backward(
        dy, y, x, ones, mean, rstd, batch_statistics=True
    )
    for array in (dx[:, 0], dweight[0], dbias[0]):
        assert np.isnan(array).all()
    assert all(np.isfinite(array).all() for array in (dx[:, 1], dweight[1], dbias[1]))


def calls(rng: np.random.Generator, layout: str) -> dict[str, Callable[[], Any]]:
    """Return one call of each kernel, of some thousand entries."""
    shape = (9, 40, 11, 7)
    x, dy = (laid(layout, draw(rng, shape)) for _ in range(2))
    weight, bias = draw(rng, (40,)), draw(rng, (40,))
    rows, drows = draw(rng, (301, 77)), draw(rng, (301, 77))
    of_row, of_row_bias = draw(rng, (77,)), draw(rng, (77,))
    y, mean, _, rstd = batch_norm.batch_norm_relu_forward(x, weight, bias, None, None)
    _, group_mean, group_rstd = group_norm.group_norm_forward(x, weight, bias, num_groups=8)
    _, row_mean, row_rstd = layer_norm.layer_norm_forward(rows, of_row, of_row_bias)
    part = functools.partial
    return {
        "batch": part(batch_norm.batch_norm_forward, x, weight, bias, None, None),
        "batch, backward": part(
            batch_norm.batch_norm_relu_backward, dy, y, x, weight, mean, rstd, batch_statistics=True
        ),
        "group": part(group_norm.group_norm_forward, x, weight, bias, num_groups=8),
        "group, backward": part(
            group_norm.group_norm_backward, dy, x, weight, group_mean, group_rstd, num_groups=8
        ),
        "layer": part(layer_norm.layer_norm_forward, rows, of_row, of_row_bias),
        "layer, backward": part(
            layer_norm.layer_norm_backward, drows, rows, of_row, row_mean, row_rstd
        ),
    }


@pytest.mark.parametrize("layout", ["C", "channels last"])
def test_as_many_threads_make_the_same_bits_and_others_nearly_the_same(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for threads in (1, 2, 2, 3, 3):
        for module in MODULES:
            for name, value in {"worker_threads": lambda n=threads: n, "_WORTH": -1}.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        found.append({k: call() for k, call in calls(np.random.default_rng(0), layout).items()})
    alone, *others = found
    for first, second in (others[:2], others[2:]):
        for name in alone:
            for a, b, one in zip(first[name], second[name], alone[name], strict=True):
                assert a.tobytes() == b.tobytes(), name
                np.testing.assert_allclose(a, one, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kernel", sorted(OVERRIDES))
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float16", ">f4"])
def test_what_is_not_float32_is_left_to_the_reference(kernel: str, dtype: str) -> None:
    for call in reference_calls(kernel, large=False):
        cast = call.map(lambda x: x.astype(dtype))
        assert OVERRIDES[kernel](**cast.arguments) is NotImplemented


def test_the_width_of_rows_is_whole_repeats_of_the_channels() -> None:
    for channels in (1, 3, 64, 511, 512, 513, 2048):
        for pixels in (1, 15, 1000, 10**6):
            assert norm.row_width(channels, pixels) % channels == 0
    assert norm.row_width(3, 10**6) > 3
