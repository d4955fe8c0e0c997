from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import (
    CenterCrop,
    HorizontalFlip,
    PaddedCrop,
    RandomResizedCrop,
    Resize,
    Transform,
)
from refkd.data import _pillow as pillow_side
from refkd.errors import ConfigError, DataError, MissingExtra

Image = pytest.importorskip("PIL.Image")

ALL: tuple[Transform, ...] = (
    RandomResizedCrop(6),
    HorizontalFlip(),
    PaddedCrop(6, 2),
    CenterCrop(6),
    Resize(6),
)
sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (channels, height, width)).astype(np.uint8)


def positions(height: int, width: int) -> np.ndarray:
    """An image whose channels are each pixel's row and column, from 1."""
    rows, columns = np.indices((height, width)) + 1
    return np.stack([rows, columns, rows]).astype(np.uint8)


def channels_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
@given(seed=seeds, channels=st.integers(1, 4), height=st.integers(6, 20), width=st.integers(6, 20))
def test_a_transform_is_a_function_of_image_and_generator_in_any_layout(
    transform: Transform, seed: int, channels: int, height: int, width: int
) -> None:
    image = picture(height, width, channels, seed)
    before = image.copy()
    image.flags.writeable = False
    result = transform(image, np.random.default_rng(seed))
    assert result.dtype == np.uint8
    assert result.shape == (channels, *(result.shape[1:]))
    again = transform(channels_last(image), np.random.default_rng(seed))
    np.testing.assert_array_equal(result, again)
    np.testing.assert_array_equal(image, before)
    if not isinstance(transform, HorizontalFlip):
        assert result.shape == (channels, 6, 6)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_random_says_whether_the_generator_is_drawn_from(transform: Transform) -> None:
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    transform(picture(9, 11), rng)
    assert (rng.bit_generator.state != state) == transform.random


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_a_transform_is_a_frozen_value(transform: Any) -> None:
    assert transform == dataclasses.replace(transform)
    assert hash(transform) == hash(dataclasses.replace(transform))
    assert "random" not in {field.name for field in dataclasses.fields(transform)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.size = 3


# RandomResizedCrop


@given(
    height=sides,
    width=sides,
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    seed=seeds,
)
def test_the_part_follows_the_usual_rule_draw_by_draw(
    height: int, width: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    crop = RandomResizedCrop(4, (scale[0], scale[1]), (ratio[0], ratio[1]))
    top, left, h, w = crop.part(height, width, np.random.default_rng(seed))
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert min(h, w) >= 1
    rng = np.random.default_rng(seed)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        expected_w, expected_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < expected_w <= width and 0 < expected_h <= height:
            assert (h, w) == (expected_h, expected_w)
            assert top == rng.integers(height - h + 1)
            assert left == rng.integers(width - w + 1)
            return
    # The central part, whole along the axis that is too short for the aspect.
    if width / height < ratio[0]:
        assert (w, h) == (width, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        assert (w, h) == (max(1, round(height * ratio[1])), height)
    else:
        assert (w, h) == (width, height)
    assert (top, left) == ((height - h) // 2, (width - w) // 2)


class Scripted:
    """A generator that draws the low end of every range, but the high end at first."""

    def __init__(self, high_draws: int) -> None:
        self.high_draws = high_draws

    def uniform(self, low: float, high: float) -> float:
        self.high_draws -= 1
        return high if self.high_draws >= 0 else low

    def integers(self, high: int) -> int:
        return 0


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 10, (43, 0, 13, 10)),  # an aspect of 1/10 is raised to 3/4
        (10, 100, (0, 43, 10, 13)),  # one of 10 lowered to 4/3
        (20, 20, (0, 0, 20, 20)),
    ],
)
def test_where_no_part_fits_it_is_the_central_one_of_the_nearest_aspect(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    rng: Any = Scripted(high_draws=20)  # the whole area at an aspect of 4/3, ten times
    assert RandomResizedCrop(4).part(height, width, rng) == expected


def test_ten_parts_are_tried() -> None:
    for wide_parts, expected in ((9, (0, 0, 7, 5)), (10, (0, 0, 20, 20))):
        rng: Any = Scripted(high_draws=2 * wide_parts)
        assert RandomResizedCrop(4).part(20, 20, rng) == expected


def test_area_and_aspect_are_spread_as_they_should_be() -> None:
    crop, rng = RandomResizedCrop(4, (0.1, 0.5), (0.5, 2.0)), np.random.default_rng(0)
    parts = np.array([crop.part(2000, 2000, rng) for _ in range(4000)])
    top, left, h, w = parts.T
    area = (h * w) / 2000**2
    log_aspect = np.log(w / h) / math.log(2)
    for values, low, high in ((area, 0.1, 0.5), (log_aspect, -1, 1), (top / (2000 - h), 0, 1),
                              (left / (2000 - w), 0, 1)):  # fmt: skip
        assert low - 0.01 <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high + 0.01
        quantiles = np.quantile(values, [0.25, 0.5, 0.75])
        np.testing.assert_allclose((quantiles - low) / (high - low), [0.25, 0.5, 0.75], atol=0.03)


@given(height=sides, width=sides, seed=seeds)
def test_the_part_is_cut_out_and_then_resized(height: int, width: int, seed: int) -> None:
    image, crop = picture(height, width, seed=seed), RandomResizedCrop(5)
    top, left, h, w = crop.part(height, width, np.random.default_rng(seed))
    part = Image.fromarray(image[:, top : top + h, left : left + w].transpose(1, 2, 0).copy())
    expected = np.asarray(part.resize((5, 5), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(crop(image, np.random.default_rng(seed)), expected)


def test_a_whole_image_of_the_right_size_is_left_as_it_is() -> None:
    image = picture(12, 12)
    crop = RandomResizedCrop(12, scale=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(crop(image, np.random.default_rng(0)), image)


# HorizontalFlip


@given(seed=seeds, height=sides, width=sides)
def test_a_flip_reverses_the_columns_and_twice_is_none(seed: int, height: int, width: int) -> None:
    image, rng = picture(height, width, seed=seed), np.random.default_rng(seed)
    flipped = HorizontalFlip(1.0)(image, rng)
    np.testing.assert_array_equal(flipped[:, :, 0], image[:, :, -1])
    np.testing.assert_array_equal(HorizontalFlip(1)(flipped, rng), image)
    np.testing.assert_array_equal(HorizontalFlip(0.0)(image, rng), image)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_the_fraction_of_flips_is_p(p: float) -> None:
    image, rng = positions(2, 2), np.random.default_rng(0)
    flips = sum(int(HorizontalFlip(p)(image, rng)[1, 0, 0] == 2) for _ in range(4000))
    assert abs(flips / 4000 - p) < 5 * math.sqrt(p * (1 - p) / 4000)


# Crops


@given(seed=seeds, height=sides, width=sides, padding=st.integers(0, 5), shrink=st.integers(0, 100))
def test_a_padded_crop_is_a_window_of_the_image_in_black(
    seed: int, height: int, width: int, padding: int, shrink: int
) -> None:
    size = max(1, min(height, width) + 2 * padding - shrink)
    image = positions(height, width)
    result = PaddedCrop(size, padding)(image, np.random.default_rng(seed))
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, size, size))[0]
    assert (windows.reshape(-1, 3, size, size) == result).all(axis=(1, 2, 3)).any()


def test_every_position_of_a_padded_crop_is_equally_likely() -> None:
    image, rng = positions(5, 5), np.random.default_rng(0)
    counts = np.zeros((5, 5), int)
    for _ in range(5000):
        corner = PaddedCrop(5, 2)(image, rng)[:, 2, 2]  # in the image at every position
        counts[corner[0] - 1, corner[1] - 1] += 1
    assert counts.sum() == 5000
    assert np.abs(counts - 200).max() < 5 * math.sqrt(200)


@given(height=st.integers(3, 20), width=st.integers(3, 20), size=st.integers(1, 3))
def test_a_central_crop_leaves_as_much_on_either_side(height: int, width: int, size: int) -> None:
    result = CenterCrop(size)(positions(height, width), np.random.default_rng(0))
    assert result.shape == (3, size, size)
    for axis, whole in ((0, height), (1, width)):
        before = int(result[axis].min()) - 1
        after = whole - int(result[axis].max())
        assert after - before in (0, 1)


@pytest.mark.parametrize("transform", [CenterCrop(9), PaddedCrop(13, 2)])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_an_image_that_is_too_small_for_a_crop_is_refused(
    transform: Transform, shape: tuple[int, int]
) -> None:
    with pytest.raises(DataError, match=r"Crop: a crop of .* does not fit .*; resize"):
        transform(picture(*shape), np.random.default_rng(0))
    transform(picture(9, 9), np.random.default_rng(0))


# Resize


@given(height=sides, width=sides, size=sides, channels=st.sampled_from([1, 2, 3, 4]), seed=seeds)
def test_every_channel_is_resized_on_its_own(
    height: int, width: int, size: int, channels: int, seed: int
) -> None:
    image, rng = picture(height, width, channels, seed), np.random.default_rng(0)
    result = Resize(size)(image, rng)
    for channel, of_channel in zip(image, result, strict=True):
        grey = Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(of_channel, np.asarray(grey))


def test_a_constant_image_stays_constant() -> None:
    image = np.full((3, 17, 5), 93, np.uint8)
    assert (Resize(11)(image, np.random.default_rng(0)) == 93).all()


# Arguments


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RandomResizedCrop(0), "RandomResizedCrop: size must be an integer from 1"),
        (lambda: Resize(2.5), r"Resize: size .* got 2\.5"),  # type: ignore[arg-type]
        (lambda: Resize(True), "Resize: size .* got True"),
        (lambda: CenterCrop(10**9), "CenterCrop: size must be an integer from 1 to 8192"),
        (lambda: PaddedCrop(0, 4), "PaddedCrop: size"),
        (lambda: PaddedCrop(32, -1), "PaddedCrop: padding must be an integer from 0"),
        (lambda: HorizontalFlip(1.1), "HorizontalFlip: p must be"),
        (lambda: HorizontalFlip(None), "HorizontalFlip: p must be"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, (0, 1)), r"scale must be two numbers, 0 < low <= high <= 1"),
        (lambda: RandomResizedCrop(8, (0.5, 0.4)), "scale"),
        (lambda: RandomResizedCrop(8, (0.5, 1.1)), "scale"),
        (lambda: RandomResizedCrop(8, (0.5,)), "scale"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, 0.5), "scale"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, ("a", "b")), "scale"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, ratio=(0.0, 1.0)), "ratio"),
        (lambda: RandomResizedCrop(8, ratio=(1.0, math.inf)), "ratio"),
        (lambda: RandomResizedCrop(8, ratio=(math.nan, 1.0)), "ratio"),
        (lambda: RandomResizedCrop(8, ratio=(1, 1e308)), "0.0001 <= low <= high <= 10000, got"),
        (lambda: RandomResizedCrop(8, ratio=(1, 10**400)), "ratio"),
        (lambda: RandomResizedCrop(8, ratio=(1e-320, 1)), "ratio"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("ratio", [(1e-4, 1e-4), (1e-4, 1e4), (1e4, 1e4)])
def test_a_part_of_any_ratio_that_is_allowed_lies_in_the_image(
    shape: tuple[int, int], ratio: tuple[float, float]
) -> None:
    crop = RandomResizedCrop(3, scale=(5e-324, 1), ratio=ratio)
    for seed in range(20):
        top, left, height, width = crop.part(*shape, np.random.default_rng(seed))
        assert 0 <= top < top + height <= shape[0]
        assert 0 <= left < left + width <= shape[1]


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_side.require_pillow.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    for transform in (Resize(3), RandomResizedCrop(3)):
        with pytest.raises(MissingExtra, match=r"refkd\[data\]"):
            transform(picture(8, 9), np.random.default_rng(0))
    for transform in (HorizontalFlip(), PaddedCrop(3, 1), CenterCrop(3)):
        transform(picture(8, 9), np.random.default_rng(0))  # needs none
