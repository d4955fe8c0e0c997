from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import Dataset, Normalization, Split, load_digits, to_batch
from refkd.errors import ConfigError, DataError
from refkd.ops import pixels_to_float


def float_split(rows: int = 4) -> Split:
    return Split(np.zeros((rows, 2, 3), np.float32), np.arange(rows) % 3)


def dataset(**changes: object) -> Dataset:
    fields = {
        "name": "tiny",
        "train": float_split(5),
        "test": float_split(3),
        "validation": None,
        "num_classes": 3,
        "class_names": ("a", "b", "c"),
        "normalization": Normalization(1.0),
    }
    return Dataset(**(fields | changes))  # type: ignore[arg-type]


def test_image_shape_leaves_the_batch_axis_out() -> None:
    assert dataset().image_shape == (2, 3)
    assert len(dataset().train) == 5


def test_labels_of_any_integer_dtype_become_int64() -> None:
    split = Split(np.zeros((2, 1), np.uint8), np.array([3, 1], np.uint8))
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [3, 1]


def test_images_and_int64_labels_are_not_copied() -> None:
    images, labels = np.zeros((2, 1), np.uint8), np.zeros(2, np.int64)
    split = Split(images, labels)
    assert split.images is images
    assert np.shares_memory(split.labels, labels)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 8), taken=st.integers(1, 12))
def test_take_keeps_images_labels_and_logits_of_a_row_together(
    seed: int, rows: int, taken: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(rows)
    split = Split(
        np.full((rows, 2, 2), labels[:, None, None], np.uint8),
        labels,
        np.repeat(labels[:, None], 3, axis=1).astype(np.float32),
    )
    indices = rng.integers(0, rows, taken)
    part = split.take(indices)
    assert part.labels.tolist() == indices.tolist()
    assert part.images[:, 1, 1].tolist() == indices.tolist()
    assert part.teacher_logits is not None
    assert part.teacher_logits[:, 2].tolist() == indices.tolist()


def test_take_accepts_a_mask() -> None:
    part = float_split(4).take(np.array([True, False, False, True]))
    assert part.labels.tolist() == [0, 0]
    assert part.teacher_logits is None


IMAGES, LABELS = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("images", "labels", "logits", "reason"),
    [
        (IMAGES, LABELS[:2], None, "2 and 3"),
        (IMAGES[:0], LABELS[:0], None, "at least one image"),
        (np.zeros((3, 0), np.uint8), LABELS, None, "at least one image of one value"),
        (np.zeros(3, np.uint8), LABELS, None, "two axes"),
        ([[0.0]], LABELS, None, "got list"),
        (np.zeros((3, 2), np.int64), LABELS, None, "uint8 or floating"),
        (np.zeros((3, 2), np.complex128), LABELS, None, "uint8 or floating"),
        (IMAGES, np.zeros(3), None, "float64"),
        (IMAGES, np.zeros(3, bool), None, "bool"),
        (IMAGES, np.zeros((3, 4), np.int64), None, "one-hot"),
        (IMAGES, [0, 0, 0], None, "got list"),
        (IMAGES, np.array([0, -1, 0]), None, "-1 in row 1"),
        (IMAGES, np.array([0, 0, 2**64 - 1], np.uint64), None, "18446744073709551615 in row 2"),
        (IMAGES, LABELS, np.zeros((2, 4), np.float32), "2 rows for 3 images"),
        (IMAGES, LABELS, np.zeros(3, np.float32), r"\(N, num_classes\)"),
        (IMAGES, LABELS, np.zeros((3, 4), np.float16), "float16"),
        (IMAGES, LABELS, np.zeros((3, 4), np.int64), "int64"),
    ],
)
def test_split_refuses(images: object, labels: object, logits: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Split(images, labels, logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1234, 4999])
@pytest.mark.parametrize("name", ["images", "teacher_logits"])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(
    value: float, row: int, name: str
) -> None:
    arrays = {
        "images": np.zeros((5000, 40), np.float32),
        "labels": np.zeros(5000, np.int64),
        "teacher_logits": np.zeros((5000, 40), np.float64),
    }
    arrays[name][row, 39] = value
    with pytest.raises(DataError, match=f"{name} must be finite, got NaN or infinity in row {row}"):
        Split(**arrays)


def test_logits_of_ten_thousand_are_accepted() -> None:
    logits = np.array([[1e4, -1e4]], np.float32)
    assert Split(np.zeros((1, 1)), np.array([1]), logits).teacher_logits is logits


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_classes": 1, "class_names": ("a",)}, "at least 2 classes, got 1"),
        ({"class_names": ("a", "b")}, "3 class names, got 2"),
        ({"num_classes": 2, "class_names": ("a", "b")}, "0 to 1, got 2 in row 2"),
        ({"normalization": Normalization(1.0, (0.5, 0.5, 0.5), (1, 1, 1))}, "3 channels"),
        ({"test": Split(np.zeros((1, 2, 2), np.float32), np.array([0]))}, r"test images.*\(2, 3\)"),
        ({"test": Split(np.zeros((1, 2, 3), np.uint8), np.array([0]))}, "test images.*uint8"),
        ({"validation": Split(np.zeros((1, 2, 3), np.float32), np.array([3]))}, "validation"),
        (
            {
                "train": dataclasses.replace(
                    float_split(2), teacher_logits=np.zeros((2, 4), np.float32)
                )
            },
            "train teacher_logits: expected 3 columns",
        ),
    ],
)
def test_dataset_refuses(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        dataset(**changes)


@given(
    seed=st.integers(0, 2**32 - 1),
    stored=st.sampled_from([np.uint8, np.float32, np.float64]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_to_batch_is_the_product_in_the_dtype_asked_for(
    seed: int, stored: type, dtype: type
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 4, 5)).astype(stored)
    before = images.copy()
    batch = to_batch(images, Normalization(1 / 255), dtype)
    assert batch.dtype == dtype
    np.testing.assert_array_equal(batch, images.astype(dtype) * dtype(1 / 255))
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(batch, images)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.0, 0.0, 1.0), (1.0, 1.0, 1.0))],
)
def test_to_batch_normalises_each_channel(
    dtype: type, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    batch = to_batch(images, Normalization(1 / 255, mean, std), dtype)
    means, stds = (np.broadcast_to(v, 3).reshape(3, 1, 1) for v in (mean, std))
    assert batch.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(batch, (images / 255 - means) / stds, rtol=0, atol=8 * eps)


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float64"), "float32"])
def test_to_batch_is_the_kernel_of_pixels(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    options: dict[str, Any] = {"scale": 1 / 255, "mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.2)}
    expected = pixels_to_float(pixels, **options, dtype=dtype)
    batch = to_batch(pixels, Normalization(**options), dtype)
    np.testing.assert_array_equal(batch, expected, strict=True)
    seen = []
    monkeypatch.setattr(
        "refkd.data.dataset.pixels_to_float", lambda *args, **kwargs: seen.append((args, kwargs))
    )
    to_batch(pixels, Normalization(**options), dtype)
    (((given,), keywords),) = seen
    assert given is pixels
    assert keywords == {**options, "dtype": dtype}


@pytest.mark.parametrize(
    "values",
    [
        (0.0,),
        (float("nan"),),
        (1.0, (float("inf"),), (1.0,)),
        (1.0, (0.0,), (0.0,)),
        (1.0, (0.0,), (-1.0,)),
        (1.0, (0.0, 0.0), (1.0,)),
        (1.0, (), ()),
    ],
)
def test_a_normalization_that_makes_no_sense_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match=r"Normalization: (expected|scale and std must be)"):
        Normalization(*values)  # type: ignore[arg-type]


def test_the_digest_tells_any_change_of_a_data_set() -> None:
    digits = load_digits()
    images = digits.train.images.copy()
    images[5, 3, 3] ^= 1
    labels = digits.test.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    changed = [
        dataclasses.replace(digits, train=Split(images, digits.train.labels)),
        dataclasses.replace(digits, test=Split(digits.test.images, labels)),
        dataclasses.replace(digits, validation=None),
    ]
    assert load_digits().sha256() == digits.sha256()
    assert len({d.sha256() for d in (digits, *changed)}) == 4
