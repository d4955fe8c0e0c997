"""Stored images become inputs: the arithmetic bit for bit, layouts, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import registered_kernels
from refkd.errors import DtypeError, ShapeError
from refkd.ops import pixels_to_float
from refkd.testing.layouts import LAYOUTS
from tests.ops.pool_geometries import channels_last

SEED = st.integers(0, 2**32 - 1)
SHAPE = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
STORED = st.sampled_from(["uint8", "float16", "float32", "float64", ">f4"])
DTYPE = st.sampled_from(["float32", "float64"])
RELAY = st.sampled_from([np.ascontiguousarray, *LAYOUTS.values()])
PLAIN: dict[str, Any] = {"scale": 1.0, "mean": (0.0,), "std": (1.0,)}


@st.composite
def statistics(draw: st.DrawFn, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Draw mean and std: one or one per channel, those that change nothing among them."""
    mean, std = (
        draw(st.lists(numbers, min_size=count, max_size=count).map(tuple))
        for numbers, count in (
            (st.just(0.0) | st.floats(-2, 2), draw(st.sampled_from([1, channels]))),
            (st.just(1.0) | st.floats(0.01, 5), draw(st.sampled_from([1, channels]))),
        )
    )
    return mean, std


def one_by_one(
    pixels: np.ndarray, scale: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: str
) -> np.ndarray:
    """Convert every pixel by itself, rounding each step to ``dtype``."""
    kind = np.dtype(dtype).type
    x = np.empty(pixels.shape, dtype)
    for index in np.ndindex(*pixels.shape):
        channel = index[1]
        value = kind(pixels[index]) * kind(scale)
        value -= kind(mean[channel if len(mean) > 1 else 0])
        value /= kind(std[channel if len(std) > 1 else 0])
        x[index] = value
    return x


@given(SHAPE, STORED, DTYPE, RELAY, st.sampled_from([1 / 255, 1.0, 0.3]), st.data(), SEED)
@settings(max_examples=100, deadline=None)
def test_every_bit_is_that_of_one_step_after_another_in_the_dtype(
    shape: tuple[int, ...],
    stored: str,
    dtype: str,
    relay: Any,
    scale: float,
    data: st.DataObject,
    seed: int,
) -> None:
    mean, std = data.draw(statistics(shape[1]))
    pixels = relay(np.random.default_rng(seed).integers(0, 256, shape).astype(stored))
    before = pixels.copy()
    x = pixels_to_float(pixels, scale=scale, mean=mean, std=std, dtype=dtype)
    np.testing.assert_array_equal(x, one_by_one(pixels, scale, mean, std, dtype), strict=True)
    assert not np.shares_memory(x, pixels)
    np.testing.assert_array_equal(pixels, before)


def test_it_has_no_backward_and_says_why() -> None:
    kernel = registered_kernels()["pixels_to_float"]
    assert kernel.pair is None
    assert "nothing that is learnt" in kernel.reason


@pytest.mark.parametrize("stored", [np.uint8, np.float32])
def test_channels_last_in_is_channels_last_out(stored: type[np.generic]) -> None:
    pixels = channels_last(np.ones((2, 3, 4, 5), stored))
    options = {"scale": 0.5, "mean": (1.0, 2.0, 3.0), "std": (2.0,)}
    x = pixels_to_float(pixels, **options, dtype=np.float32)
    assert x.transpose(0, 2, 3, 1).flags.c_contiguous


def test_nan_and_infinity_stay_where_they_are() -> None:
    pixels = np.array([[np.nan, 1.0, np.inf]])
    x = pixels_to_float(pixels, scale=2.0, mean=(1.0,), std=(0.5,), dtype=np.float32)
    np.testing.assert_array_equal(x, np.array([[np.nan, 2.0, np.inf]], np.float32))


def test_a_batch_without_images_is_empty() -> None:
    x = pixels_to_float(np.empty((0, 3, 4, 4), np.uint8), **PLAIN, dtype=np.float32)
    assert (x.shape, x.dtype) == ((0, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("pixels", "given"),
    [
        (np.ones((2, 3), np.int64), "int64"),
        (np.ones((2, 3), np.int8), "int8"),
        (np.ones((2, 3), bool), "bool"),
        (np.ones((2, 3), np.complex128), "complex128"),
        ([[1.0]], "list"),
        (b"12", "bytes"),
    ],
)
def test_what_is_no_image_is_refused(pixels: Any, given: str) -> None:
    words = f"^pixels_to_float: pixels must be an array, uint8 or floating, got {given}$"
    with pytest.raises(DtypeError, match=words):
        pixels_to_float(pixels, **PLAIN, dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex128, "uint8"])
def test_another_dtype_of_the_result_is_refused(dtype: Any) -> None:
    words = f"^pixels_to_float: dtype must be float32 or float64, got {np.dtype(dtype)}$"
    with pytest.raises(DtypeError, match=words):
        pixels_to_float(np.ones((2, 3), np.uint8), **PLAIN, dtype=dtype)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_channels_is_refused(name: str, count: int) -> None:
    options = {**PLAIN, name: (0.5,) * count}
    with pytest.raises(ShapeError) as caught:
        pixels_to_float(np.ones((2, 3, 4, 5), np.uint8), **options, dtype=np.float32)
    assert str(caught.value) == (
        f"pixels_to_float: {name} must have one number, or one for each of the 3 channels of "
        f"pixels (2, 3, 4, 5), got {count}"
    )
