"""The Numba backend's pools and resampling: windows of any kind, ties, indices, compact taps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, registered_kernels, use_backend
from refkd.errors import BackendUnavailable, ShapeError
from refkd.ops import max_pool2d_backward
from refkd.testing.tolerances import tolerance
from tests.backends.calls import LAYOUTS
from tests.backends.calls import calls as reference_calls
from tests.ops.pool_geometries import Axis, Geometry, channels_last, geometries

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import avg_pool, pool, resample, team

SEED = st.integers(0, 2**32 - 1)
LAYOUT = st.sampled_from(sorted(LAYOUTS))
CHANNELS = st.sampled_from([1, 2, 7, 8, 33])
OVERRIDES: dict[str, Callable[..., Any]] = {
    **pool.KERNELS,
    **avg_pool.KERNELS,
    **resample.KERNELS,
}


def reference(kernel: str, *arrays: Any, **options: Any) -> Any:
    return registered_kernels()[kernel].reference(*arrays, **options)


def laid(layout: str, array: np.ndarray[Any, Any]) -> Any:
    return LAYOUTS[layout](array, np.asarray)


def integers(rng: np.random.Generator, shape: tuple[int, ...], largest: int = 9) -> Any:
    # Sums of small integers are exact in float32, in any order; and few values make many ties.
    return rng.integers(-largest, largest + 1, shape).astype(np.float32)


def compact(geometry: Geometry) -> tuple[Any, ...]:
    """Return kernel, stride, padding and dilation, as the compact kernels take them."""
    names = ("kernel", "stride", "padding", "dilation")
    return tuple((getattr(geometry.rows, n), getattr(geometry.columns, n)) for n in names)


def of_channels(geometry: Geometry, batch: int, channels: int) -> Geometry:
    return geometry._replace(batch=batch, channels=channels)


@settings(max_examples=80, deadline=None)
@given(
    geometries(), CHANNELS, st.integers(1, 3), SEED, LAYOUT, LAYOUT, st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_max_pooling_is_the_reference_s_bit_by_bit(
    geometry: Geometry,
    channels: int,
    batch: int,
    seed: int,
    layout: str,
    of_dy: str,
    nans: float,
    infinities: float,
) -> None:
    geometry = of_channels(geometry, batch, channels)
    rng = np.random.default_rng(seed)
    x = integers(rng, geometry.shape, largest=2)
    x[rng.random(x.shape) < infinities] = -np.inf
    x[rng.random(x.shape) < nans] = np.nan
    y, indices = pool.max_pool2d_forward(laid(layout, x), **geometry.options)
    expected_y, expected_indices = reference("max_pool2d_forward", x, **geometry.options)
    np.testing.assert_array_equal(y, expected_y, strict=True)
    np.testing.assert_array_equal(indices, expected_indices, strict=True)
    dy = integers(rng, geometry.output_shape)
    dx = pool.max_pool2d_backward(
        laid(of_dy, dy), laid(layout, expected_indices), input_shape=geometry.shape
    )
    expected = reference("max_pool2d_backward", dy, expected_indices, input_shape=geometry.shape)
    np.testing.assert_array_equal(dx, expected, strict=True)


@settings(max_examples=80, deadline=None)
@given(geometries(), CHANNELS, st.integers(1, 3), SEED, LAYOUT, st.sampled_from([0.0, 0.2]))
def test_compact_pooling_is_max_pooling_with_the_tap_for_the_index(
    geometry: Geometry, channels: int, batch: int, seed: int, layout: str, nans: float
) -> None:
    geometry = of_channels(geometry, batch, channels)
    rng = np.random.default_rng(seed)
    x = integers(rng, geometry.shape, largest=2)
    x[rng.random(x.shape) < nans] = np.nan
    expected, indices = reference("max_pool2d_forward", x, **geometry.options)
    windows, count = compact(geometry), geometry.output_shape[2:]
    moved = laid(layout, x)
    y, taps = pool.max_pool_compact_forward(moved, *windows, count)
    np.testing.assert_array_equal(y, expected, strict=True)
    np.testing.assert_array_equal(pool.max_pool_infer(moved, *windows, count), expected)
    assert taps.dtype == np.uint8
    row, column = divmod(taps.astype(np.int64), geometry.columns.kernel)
    starts = [
        np.arange(n) * axis.stride - axis.padding
        for n, axis in zip(count, (geometry.rows, geometry.columns), strict=True)
    ]
    rows = starts[0][:, None] + row * geometry.rows.dilation
    columns = starts[1] + column * geometry.columns.dilation
    np.testing.assert_array_equal(rows * geometry.columns.size + columns, indices)
    dy = integers(rng, geometry.output_shape)
    dx = pool.max_pool_compact_backward(laid(layout, dy), taps, geometry.shape, *windows)
    expected = reference("max_pool2d_backward", dy, indices, input_shape=geometry.shape)
    np.testing.assert_array_equal(dx, expected, strict=True)


@pytest.mark.parametrize("kernel", [3, 4, (1, 9), (2, 5), (15, 17)])
def test_compact_pooling_takes_up_to_255_taps(kernel: Any) -> None:
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    rows, columns = (Axis(20, k, 2, k // 2, 1, False) for k in size)
    geometry = Geometry(2, 9, rows, columns)
    rng = np.random.default_rng(0)
    x = rng.permutation(math.prod(geometry.shape)).reshape(geometry.shape).astype(np.float32)
    y, taps = pool.max_pool_compact_forward(x, *compact(geometry), geometry.output_shape[2:])
    expected, indices = reference("max_pool2d_forward", x, **geometry.options)
    np.testing.assert_array_equal(y, expected)
    dy = integers(rng, y.shape)
    np.testing.assert_array_equal(
        pool.max_pool_compact_backward(dy, taps, x.shape, *compact(geometry)),
        reference("max_pool2d_backward", dy, indices, input_shape=x.shape),
    )


def test_compact_pooling_refuses_windows_that_read_nothing() -> None:
    x = np.ones((1, 1, 1, 2), np.float32)
    with pytest.raises(ShapeError, match="nothing but padding"):
        pool.max_pool_compact_forward(x, (2, 2), (1, 1), (1, 1), (2, 2), (1, 2))


@pytest.mark.parametrize("layout", ["C", "channels last"])
@pytest.mark.parametrize("wrong", [-1, 12, 2**40, -(2**63)])
def test_an_index_of_no_pixel_ends_as_in_the_reference_and_writes_nowhere(
    layout: str, wrong: int
) -> None:
    dy = laid(layout, np.ones((2, 3, 2, 2), np.float32))
    indices = np.zeros((2, 3, 2, 2), np.int64)
    indices[1, 1, 1, 0] = wrong
    indices = laid(layout, indices)
    assert pool.max_pool2d_backward(dy, indices, input_shape=(2, 3, 3, 4)) is NotImplemented

    def outcome(function: Callable[..., Any]) -> Any:
        try:
            return function(dy, indices, input_shape=(2, 3, 3, 4)).tolist()
        except IndexError:
            return IndexError

    with use_backend("numba"):
        found = outcome(max_pool2d_backward)
    assert found == outcome(registered_kernels()["max_pool2d_backward"].reference)


def assert_as_accurate(actual: Any, rough: Any, exact: Any) -> None:
    assert (actual.shape, actual.dtype) == (exact.shape, np.float32)
    allowed = 4 * np.abs(rough - exact).max() + tolerance("float32", "pointwise") * max(
        1e-30, np.abs(exact).max()
    )
    assert np.abs(actual - exact).max() <= allowed


@settings(max_examples=60, deadline=None)
@given(geometries(max_dilation=1), CHANNELS, st.integers(1, 3), SEED, LAYOUT, LAYOUT, st.booleans())
def test_average_pooling_is_as_accurate_as_the_reference(
    geometry: Geometry,
    channels: int,
    batch: int,
    seed: int,
    layout: str,
    of_dy: str,
    count_include_pad: bool,
) -> None:
    geometry = of_channels(geometry, batch, channels)
    rng = np.random.default_rng(seed)
    options = {**geometry.options_without_dilation, "count_include_pad": count_include_pad}
    x = rng.standard_normal(geometry.shape).astype(np.float32)
    dy = rng.standard_normal(geometry.output_shape).astype(np.float32)
    assert_as_accurate(
        avg_pool.avg_pool2d_forward(laid(layout, x), **options),
        *(reference("avg_pool2d_forward", a, **options) for a in (x, x.astype(np.float64))),
    )
    options["input_shape"] = geometry.shape
    assert_as_accurate(
        avg_pool.avg_pool2d_backward(laid(of_dy, dy), **options),
        *(reference("avg_pool2d_backward", a, **options) for a in (dy, dy.astype(np.float64))),
    )


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("layout", ["C", "channels last"])
def test_a_single_window_may_read_all_of_a_plane_or_less(
    layout: str, count_include_pad: bool
) -> None:
    # Its divisor may be H · W where it reads less: some of it is padding.
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    found = 0
    for kernel, padding in itertools.product(np.ndindex(6, 6), np.ndindex(3, 3)):
        options: dict[str, Any] = {
            "kernel_size": (kernel[0] + 1, kernel[1] + 1),
            "stride": 9,
            "padding": padding,
            "count_include_pad": count_include_pad,
        }
        if any(2 * p > k + 1 for p, k in zip(padding, kernel, strict=True)):
            continue
        if any(k + 1 > 4 + 2 * p for p, k in zip(padding, kernel, strict=True)):
            continue
        found += 1
        assert_as_accurate(
            avg_pool.avg_pool2d_forward(laid(layout, x), **options),
            *(reference("avg_pool2d_forward", a, **options) for a in (x, x.astype(np.float64))),
        )
    assert found > 100


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 40), st.integers(1, 20)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)), SEED, LAYOUT, LAYOUT,
)  # fmt: skip
def test_adaptive_pooling_is_as_accurate_as_the_reference(
    shape: tuple[int, ...], output: tuple[int, int], seed: int, layout: str, of_dy: str
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    dy = rng.standard_normal((*shape[:2], *output)).astype(np.float32)
    forward, backward = "adaptive_avg_pool2d_forward", "adaptive_avg_pool2d_backward"
    assert_as_accurate(
        OVERRIDES[forward](laid(layout, x), output_size=output),
        *(reference(forward, a, output_size=output) for a in (x, x.astype(np.float64))),
    )
    assert_as_accurate(
        OVERRIDES[backward](laid(of_dy, dy), input_shape=shape),
        *(reference(backward, a, input_shape=shape) for a in (dy, dy.astype(np.float64))),
    )


@pytest.mark.parametrize("layout", ["C", "channels last"])
def test_the_mean_of_a_large_plane_keeps_its_digits(layout: str) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (1, 5, 200, 210)).astype(np.float32) + 1000
    y = avg_pool.adaptive_avg_pool2d_forward(laid(layout, x), output_size=1)
    exact = x.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
    assert np.abs(y / exact - 1).max() <= 4 * np.finfo(np.float32).eps


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), SEED, LAYOUT,
)  # fmt: skip
def test_resampling_is_the_reference_s_bit_by_bit(
    shape: tuple[int, ...], factors: tuple[int, int], seed: int, layout: str
) -> None:
    rng = np.random.default_rng(seed)
    x = integers(rng, shape)
    dy = integers(rng, (*shape[:2], shape[2] * factors[0], shape[3] * factors[1]))
    for kernel, array in (("forward", x), ("backward", dy)):
        name = f"upsample_nearest2d_{kernel}"
        np.testing.assert_array_equal(
            OVERRIDES[name](laid(layout, array), scale_factor=factors),
            reference(name, array, scale_factor=factors),
            strict=True,
        )


def pooled(x: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what comes of x in every kernel here."""
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
    windows, count = ((3, 3), (2, 2), (1, 1), (1, 1)), ((x.shape[2] + 1) // 2,) * 2
    y, indices = pool.max_pool2d_forward(x, **options)
    tapped, taps = pool.max_pool_compact_forward(x, *windows, count)
    mean = avg_pool.avg_pool2d_forward(x, **options)
    enlarged = resample.upsample_nearest2d_forward(x, scale_factor=2)
    return {
        "max": y,
        "indices": indices,
        "max, backward": pool.max_pool2d_backward(y, indices, input_shape=x.shape),
        "compact": tapped,
        "taps": taps,
        "compact, backward": pool.max_pool_compact_backward(y, taps, x.shape, *windows),
        "mean": mean,
        "mean, backward": avg_pool.avg_pool2d_backward(mean, input_shape=x.shape, **options),
        "global": avg_pool.adaptive_avg_pool2d_forward(x, output_size=1),
        "enlarged": enlarged,
        "enlarged, backward": resample.upsample_nearest2d_backward(enlarged, scale_factor=2),
    }


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("layout", ["C", "channels last"])
def test_results_do_not_depend_on_the_number_of_threads(
    batch: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((batch, 11, 13, 13)).astype(np.float32)
    found = []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(team, "worker_threads", lambda n=threads: n)
        for module in (pool, avg_pool, resample):
            monkeypatch.setattr(module, "_WORTH", -1)
        found.append(pooled(laid(layout, x)))
    for other in found[1:]:
        for name, expected in found[0].items():
            assert other[name].tobytes() == expected.tobytes(), name


def test_images_keep_their_layout() -> None:
    x = np.random.default_rng(0).standard_normal((2, 12, 20, 20)).astype(np.float32)
    for name, array in pooled(channels_last(x)).items():
        assert array.transpose(0, 2, 3, 1).flags.c_contiguous, name
    for name, array in pooled(x).items():
        # What has no more than a pixel, or taps, is as well off with the channels last.
        if name not in ("compact", "taps", "compact, backward", "global"):
            assert array.flags.c_contiguous, name


@pytest.mark.parametrize("kernel", sorted(OVERRIDES))
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float16", ">f4"])
def test_what_is_not_float32_is_left_to_the_reference(kernel: str, dtype: str) -> None:
    for call in reference_calls(kernel, large=False):
        cast = call.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
        assert OVERRIDES[kernel](**cast.arguments) is NotImplemented
