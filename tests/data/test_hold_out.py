from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import (
    Dataset,
    ImageFiles,
    Normalization,
    Split,
    hold_out_validation,
    load_digits,
)
from refkd.errors import ConfigError, DataError


def dataset(labels: Any, num_classes: int = 3) -> Dataset:
    """Images that hold their row number, and logits that do, too."""
    labels = np.asarray(labels)
    rows = np.arange(len(labels), dtype=np.float32)
    logits = np.repeat(rows[:, None], num_classes, axis=1)
    names = tuple(f"class {index}" for index in range(num_classes))
    test = Split(np.zeros((1, 2), np.float32), np.array([0]))
    train = Split(np.repeat(rows[:, None], 2, axis=1), labels, logits)
    return Dataset("rows", train, test, None, num_classes, names, Normalization(1.0), skipped=7)


@given(
    counts=st.lists(st.integers(2, 40), min_size=3, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    fraction=st.floats(1e-9, 1, exclude_max=True),
)
def test_every_class_gives_its_fraction_at_least_one_and_not_all(
    counts: list[int], seed: int, fraction: float
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), counts))
    whole = dataset(labels)
    held = hold_out_validation(whole, fraction)
    assert held.validation is not None
    for label, count in enumerate(counts):
        expected = min(max(1, round(fraction * count)), count - 1)
        assert (held.validation.labels == label).sum() == expected
        assert (held.train.labels == label).sum() == count - expected
    parts = [split.images[:, 0].astype(int) for split in (held.train, held.validation)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for rows, split in zip(parts, (held.train, held.validation), strict=True):
        assert (np.diff(rows) > 0).all()  # in the order of the training images
        np.testing.assert_array_equal(split.labels, labels[rows])
        assert split.teacher_logits is not None
        np.testing.assert_array_equal(split.teacher_logits[:, 1], rows)
    assert held.test is whole.test
    assert held.skipped == 7


def test_what_is_held_out_is_the_same_on_every_machine() -> None:
    held = hold_out_validation(dataset(np.arange(30) % 3), 0.2)
    assert held.validation is not None
    assert held.validation.images[:, 0].astype(int).tolist() == [2, 9, 14, 16, 18, 28]


def test_a_data_set_with_a_validation_split_stays_as_it_is() -> None:
    digits = load_digits()
    assert hold_out_validation(digits, 0.5) is digits


def test_a_class_without_training_images_is_no_reason_to_fail() -> None:
    held = hold_out_validation(dataset([0, 0, 2, 2]), 0.5)
    assert held.validation is not None
    assert held.validation.labels.tolist() == [0, 2]


def test_a_class_of_a_single_image_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="rows has a single training image of class 'class 1'"):
        hold_out_validation(dataset([0, 0, 1]), 0.5)


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), "0.1", None, True])
@pytest.mark.parametrize("make", [load_digits, lambda: dataset([0, 0, 1, 1])])
def test_a_fraction_that_makes_no_sense_is_refused(
    fraction: Any, make: Callable[[], Dataset]
) -> None:
    with pytest.raises(ConfigError, match="hold_out_validation: fraction must be"):
        hold_out_validation(make(), fraction)


def test_images_in_files_stay_there() -> None:
    nowhere = ImageFiles(tuple(Path(f"gone/{row}.jpg") for row in range(8)), 4)
    split = Split(nowhere, np.arange(8) % 2)
    names = ("a", "b")
    files = Dataset("files", split, split, None, 2, names, Normalization(1 / 255))
    held = hold_out_validation(files, 0.25)
    assert held.validation is not None
    for part, count in ((held.train, 6), (held.validation, 2)):
        assert isinstance(part.images, ImageFiles)
        assert len(part) == count
        assert [int(path.stem) % 2 for path in part.images.paths] == part.labels.tolist()


def test_rows_held_out_for_testing_do_not_decide_those_for_validation() -> None:
    # load_npz draws with seed 0; the same numbers again would choose neighbours of its rows.
    held = hold_out_validation(dataset(np.zeros(2000, int)), 0.2)
    assert held.validation is not None
    tested = np.argsort(np.random.PCG64(0).random_raw(2000), kind="stable")[:400]
    both = np.isin(tested, held.validation.images[:, 0].astype(int)).sum()
    assert abs(both - 80) < 5 * np.sqrt(400 * 0.2 * 0.8)
