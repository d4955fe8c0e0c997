"""The CuPy backend's pools and moves of images on the host."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import cuda_host as host
from tests.backends.calls import LAYOUTS, Call, reference
from tests.backends.host_checks import results, serving
from tests.backends.override import Override

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

BACKEND = host.host_backend("pool", "avg_pool", "resample")
avg_pool, layout = host.launchers("avg_pool", "layout").values()


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with serving(BACKEND):
        yield


@pytest.mark.parametrize("arrangement", ["C", "channels last", "odd address", "transposed"])
@pytest.mark.parametrize("channels", [3, 8])
def test_gradients_of_any_maxima_are_summed_window_after_window(
    channels: int, arrangement: str
) -> None:
    rng = np.random.default_rng(0)
    shape = (2, channels, 5, 6)
    for height, width in ((4, 7), (9, 3), (1, 1)):
        call = Call(
            "max_pool2d_backward",
            "drawn places",
            {
                "dy": rng.standard_normal(shape).astype("f"),
                "indices": rng.integers(height * width, size=shape),
                "input_shape": (2, channels, height, width),
            },
        )
        np.testing.assert_array_equal(results(BACKEND, call, arrangement)[0], reference(call)[0])


@pytest.mark.parametrize("index", [-1, 12, 2**31 - 1, 2**32 + 5, -(2**62)])
def test_a_place_outside_of_its_plane_is_left_out(index: int) -> None:
    rng = np.random.default_rng(0)
    dy, places = rng.standard_normal((2, 4, 2, 2)).astype("f"), rng.integers(12, size=(2, 4, 2, 2))
    arguments = {"dy": dy, "indices": places, "input_shape": (2, 4, 3, 4)}
    call = Call("max_pool2d_backward", "a place outside", arguments)
    spoiled, without = places.copy(), dy.copy()
    spoiled[0, 1, 1, 0], without[0, 1, 1, 0] = index, 0
    expected = reference(call.replaced({"dy": without}))[0]
    np.testing.assert_array_equal(
        results(BACKEND, call.replaced({"indices": spoiled}))[0], expected
    )


@settings(max_examples=40, derandomize=True, database=None)
@given(data=st.data())
def test_of_equal_maxima_the_first_and_of_nans_the_last_is_taken(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    values = np.array([-np.inf, 0.0, 1.0, np.nan, np.inf], "f")
    rng = np.random.default_rng(seed)
    x = values[
        rng.choice(5, (2, data.draw(st.sampled_from((1, 4))), 7, 6), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    ]
    options = {"kernel_size": kernel, "stride": 1, "padding": tuple(k // 2 for k in kernel)}
    call = Call("max_pool2d_forward", "few values", {"x": x, **options})
    for actual, expected in zip(results(BACKEND, call), reference(call), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("channels", [1, 3, 4, 36, 140])
@pytest.mark.parametrize("plane", [(1, 1), (7, 7), (29, 31)], ids=str)
def test_global_pooling_takes_the_mean_of_a_plane(channels: int, plane: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, channels, *plane)).astype("f")
    for arrangement in ("channels last", "odd address"):
        call = Call("adaptive_avg_pool2d_forward", "global", {"x": x, "output_size": 1})
        (y,) = results(BACKEND, call, arrangement)
        np.testing.assert_allclose(
            y[:, :, 0, 0], x.mean(axis=(2, 3), dtype="d"), rtol=1e-5, atol=1e-6
        )


def test_global_pooling_serves_more_channels_than_a_grid_has_blocks_for() -> None:
    assert -(-avg_pool._MOST_CHANNELS // 32) == 65535
    x = np.random.default_rng(0).standard_normal((2, 36, 3, 2)).astype("f")
    call = Call("adaptive_avg_pool2d_forward", "many channels", {"x": x, "output_size": 1})
    with mock.patch.object(avg_pool, "_MOST_CHANNELS", 35):
        (y,) = results(BACKEND, call)
    np.testing.assert_allclose(y, x.mean(axis=(2, 3), keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("far", [2**31 - 1, 2**31, 2**40])
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ("max_pool2d_forward", {"x": (1, 4, 3, 8), "kernel_size": (1, 2), "stride": ...}),
        ("max_pool2d_forward", {"x": (1, 1, 3, 8), "kernel_size": 1, "dilation": ...}),
        ("avg_pool2d_forward", {"x": (1, 1, 3, 8), "kernel_size": (1, 2), "stride": ...}),
        (
            "avg_pool2d_backward",
            {"dy": (1, 1, 1, 1), "input_shape": (1, 1, 3, 8), "kernel_size": 2, "stride": ...},
        ),
        ("padded_shortcut_forward", {"x": (1, 1, 3, 8), "stride": ..., "zeros": (0, 1)}),
        (
            "padded_shortcut_backward",
            {"dy": (1, 2, 1, 1), "input_shape": (1, 1, 3, 8), "stride": ..., "zeros": (0, 1)},
        ),
    ],
)
def test_a_step_of_any_length_is_taken(kernel: str, arguments: dict[str, Any], far: int) -> None:
    rng = np.random.default_rng(0)
    drawn = {
        name: rng.standard_normal(value).astype("f") if name in ("x", "dy") else value
        for name, value in arguments.items()
    }
    call = Call(kernel, "far", {k: far if v is ... else v for k, v in drawn.items()})
    for a, e in zip(Override(BACKEND, kernel).results(call), reference(call), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("channels", [2, 4])
def test_average_pooling_and_its_backward_are_adjoint(channels: int) -> None:
    rng = np.random.default_rng(0)
    for size, count in itertools.product((5, 8), (1, 2, 3, 7)):
        x = rng.standard_normal((2, channels, size, 6)).astype("f")
        dy = rng.standard_normal((2, channels, count, 4)).astype("f")
        forward = {"x": x, "output_size": (count, 4)}
        backward = {"dy": dy, "input_shape": x.shape}
        (y,) = results(BACKEND, Call("adaptive_avg_pool2d_forward", "", forward))
        (dx,) = results(BACKEND, Call("adaptive_avg_pool2d_backward", "", backward))
        np.testing.assert_allclose(
            np.vdot(dy.astype("d"), y), np.vdot(dx.astype("d"), x), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("factors", [(2, 2), (1, 3)], ids=str)
def test_images_are_enlarged_and_blocks_summed(channels: int, factors: tuple[int, int]) -> None:
    images = np.random.default_rng(0).standard_normal((2, channels, 4, 6)).astype("f")
    for kernel, name in (
        ("upsample_nearest2d_forward", "x"),
        ("upsample_nearest2d_backward", "dy"),
    ):
        call = Call(kernel, "", {name: images, "scale_factor": factors})
        for arrangement in ("channels last", "odd address"):
            actual = results(BACKEND, call, arrangement)[0]
            np.testing.assert_allclose(actual, reference(call)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["max_pool2d_forward", "avg_pool2d_forward"])
def test_images_come_with_the_channels_last(kernel: str) -> None:
    x = host.asarray(np.ones((2, 5, 6, 6), "f"))
    outputs: Any = BACKEND.kernels[kernel](x, kernel_size=2)
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        assert output.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "int64", "float64", "uint8"])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 5, 7), (1, 40, 33, 3), (3, 64, 8, 8), (2, 5, 70), (4, 6), (2, 9, 1, 1)],
    ids=str,
)
def test_memory_is_rearranged_and_nothing_else(shape: tuple[int, ...], dtype: str) -> None:
    x = (50 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    for arrange in LAYOUTS.values():
        pixels = layout.channels_last(arrange(x, host.asarray))
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, np.moveaxis(x, 1, -1), strict=True)
        planes = layout.channels_first(layout.as_images(pixels))
        assert planes.flags.c_contiguous
        np.testing.assert_array_equal(planes, x, strict=True)


def test_what_is_in_order_already_is_not_copied() -> None:
    x = host.empty_images((2, 5, 3, 4))
    assert np.shares_memory(layout.channels_last(x), x)
    assert layout.channels_first(host.empty((2, 5, 3, 4))).base is not None
