"""What a network gets wrong, counted and ranked."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refkd.recipes.mistakes import confident_mistakes, confusion_matrix


@given(st.integers(0, 40), st.integers(2, 6), st.integers(0, 99))
def test_confusions_count_every_image_once(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.standard_normal((rows, classes)).astype(np.float32)
    counts = confusion_matrix(logits, labels, classes)
    assert counts.shape == (classes, classes)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=classes))
    said = logits.argmax(axis=1)
    np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(said, minlength=classes))
    assert counts.trace() == (said == labels).sum()


def test_rows_are_the_true_classes() -> None:
    logits = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    counts = confusion_matrix(logits, np.array([0, 1, 1]), 3)
    np.testing.assert_array_equal(counts, [[0, 1, 0], [0, 0, 2], [0, 0, 0]])


@given(st.integers(0, 40), st.integers(2, 6), st.integers(0, 45), st.integers(0, 99))
def test_mistakes_are_wrong_and_those_left_out_less_confident(
    rows: int, classes: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = 3 * rng.standard_normal((rows, classes))
    chosen = confident_mistakes(logits, labels, most)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    assert len(chosen) == min(most, len(wrong))
    assert set(chosen) <= set(wrong)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1 / exponentials.sum(axis=1)
    assert list(confidence[chosen]) == sorted(confidence[chosen], reverse=True)
    left = np.setdiff1d(wrong, chosen)
    if len(left) and len(chosen):
        assert confidence[left].max() <= confidence[chosen].min() * (1 + 1e-12)


def test_confidences_that_round_to_one_are_told_apart() -> None:
    logits = np.array([[0, 60, 0], [0, 80, 0], [0, 70, 0]], np.float32)
    assert 1 / (1 + 2 * math.exp(-60)) == 1.0
    assert list(confident_mistakes(logits, np.array([0, 2, 0]), 3)) == [1, 2, 0]


def test_of_equally_confident_mistakes_the_first_comes_first() -> None:
    logits = np.array([[1.0, 5.0, 1.0], [0.0, 7.0, 0.0], [0.0, 0.0, 9.0]])[np.arange(300) % 3]
    labels = np.where(np.arange(300) % 2 == 0, 0, logits.argmax(axis=1))
    expected = [row for first in (2, 4, 0) for row in range(first, 300, 6)]
    assert list(confident_mistakes(logits, labels, 300)) == expected


def test_logits_of_any_magnitude_are_ranked() -> None:
    logits = np.array([[-1e30, 1e30], [3e38, 1.0], [0.0, 1.0]], np.float32)
    assert list(confident_mistakes(logits, np.array([0, 1, 0]), 3)) == [0, 1, 2]
