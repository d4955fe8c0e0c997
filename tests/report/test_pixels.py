"""Arrays become PNG files that an independent decoder reads back, pixel for pixel."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from refkd.report.pixels import as_pixels, data_url, is_image, png, shrunk

Image = pytest.importorskip("PIL.Image")

sides = st.integers(1, 9)
shapes = st.one_of(st.tuples(sides, sides), st.tuples(st.sampled_from([1, 3]), sides, sides))
pictures = hnp.arrays(np.uint8, shapes)


def decoded(file: bytes) -> NDArray[Any]:
    """The pixels of a PNG file, channels first where there are three."""
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels


@given(pictures)
def test_a_png_file_holds_the_pixels(pixels: NDArray[np.uint8]) -> None:
    grey = pixels[0] if len(pixels) == 1 and pixels.ndim == 3 else pixels
    np.testing.assert_array_equal(decoded(png(pixels)), grey)


def test_a_png_file_is_the_same_for_any_strides() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    channels_first = np.moveaxis(pixels, -1, 0)
    assert png(channels_first) == png(np.ascontiguousarray(channels_first))
    assert png(channels_first[:, ::-1]) == png(channels_first[:, ::-1].copy())


def test_a_data_url_carries_the_file() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    kind, _, content = data_url(pixels).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content, validate=True) == png(pixels)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((8, 8), True),
        ((1, 28, 28), True),
        ((3, 32, 16), True),
        ((64,), False),
        ((2, 8, 8), False),
        ((8, 8, 3), False),
        ((1, 3, 8, 8), False),
        ((), False),
    ],
)
def test_images_are_known_by_their_shape(shape: tuple[int, ...], shown: bool) -> None:
    assert is_image(shape) is shown


@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 3), st.just(3), sides, sides)))
def test_pixels_of_eight_bits_are_shown_as_they_are(images: NDArray[np.uint8]) -> None:
    pixels, stretched = as_pixels(images, 1 / 255)
    np.testing.assert_array_equal(pixels, images)
    assert not stretched


def test_the_scale_of_the_data_set_says_what_is_white() -> None:
    images = np.array([[[0, 4], [8, 16]]], np.uint8)
    np.testing.assert_array_equal(as_pixels(images, 1 / 16)[0], [[[0, 64], [128, 255]]])
    floating = np.array([[[0.0, 0.2], [0.4, 0.8]]], np.float32)
    pixels, stretched = as_pixels(floating, 1.0)
    np.testing.assert_array_equal(pixels, [[[0, 51], [102, 204]]])
    assert not stretched


@given(st.floats(-50, 50), st.floats(0.5, 40), st.sampled_from([np.float32, np.float64]))
def test_values_of_an_unknown_range_are_stretched_image_by_image(
    offset: float, span: float, dtype: type
) -> None:
    unit = np.array([[[0.0, 0.2], [0.4, 1.0]], [[1.0, 1.0], [0.0, 0.6]]])
    factors = np.array([1.0, 2.0])[:, None, None] * span
    offsets = np.array([-60.0, -20.0])[:, None, None] + offset
    images = (offsets + factors * unit).astype(dtype)
    pixels, stretched = as_pixels(images, 1.0)
    assert stretched
    expected = np.rint(255 * unit)
    assert np.abs(pixels.astype(float) - expected).max() <= 1
    assert np.array_equal(pixels.min(axis=(1, 2)), [0, 0])
    assert np.array_equal(pixels.max(axis=(1, 2)), [255, 255])


def test_an_image_of_one_value_is_dark_where_it_must_be_stretched() -> None:
    pixels, stretched = as_pixels(np.full((1, 2, 2), -3.5), 1.0)
    assert stretched
    assert (pixels == 0).all()


@given(pictures)
def test_a_picture_that_is_small_enough_is_not_shrunk(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(shrunk(pixels, 9), pixels)


@given(pictures, st.integers(1, 8))
def test_a_shrunk_picture_fits_and_keeps_its_range(pixels: NDArray[np.uint8], most: int) -> None:
    small = shrunk(pixels, most)
    assert small.shape[:-2] == pixels.shape[:-2]
    assert min(small.shape[-2:]) >= 1
    assert max(small.shape[-2:]) <= most
    assert pixels.min() <= small.min()
    assert small.max() <= pixels.max()


def test_shrinking_averages_blocks() -> None:
    pixels = np.array([[0, 2, 10, 30], [4, 6, 20, 40]], np.uint8)
    np.testing.assert_array_equal(shrunk(pixels, 2), [[3, 25]])
    np.testing.assert_array_equal(shrunk(np.stack([pixels] * 3), 2), [[[3, 25]]] * 3)
