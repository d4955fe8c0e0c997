"""Hinton's transfer experiment: the bias shift against trying every shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.recipes.transfer import best_bias_shift, transfer_errors

SHIFTS = [k / 10 for k in range(-300, 301)]


def by_brute_force(logits, labels, unseen) -> float:
    """Try every shift on the logits themselves; the nearest to zero of the best."""
    errors = {}
    for shift in SHIFTS:
        shifted = logits.copy()
        for c in unseen:
            shifted[:, c] += shift
        errors[shift] = int((shifted.argmax(axis=1) != labels).sum())
    fewest = min(errors.values())
    return min((s for s, e in errors.items() if e == fewest), key=abs)


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 60),
    classes=st.integers(2, 6),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    data=st.data(),
)
def test_the_shift_makes_as_few_errors_as_any(seed, rows, classes, spread, data) -> None:
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((rows, classes))
    labels = rng.integers(classes, size=rows)
    unseen = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    shift = best_bias_shift(logits, labels, unseen)
    expected = by_brute_force(logits, labels, unseen)
    # Two shifts as near to zero, one on either side, are both right.
    assert abs(shift) == pytest.approx(abs(expected), abs=1e-12)
    at = [transfer_errors(logits, labels, unseen, shift=s).errors for s in (shift, expected)]
    assert at[0] == at[1]


def test_a_bias_that_was_taken_away_is_found_again() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=2000)
    logits = 6 * np.eye(10)[labels] + rng.standard_normal((2000, 10))
    before = transfer_errors(logits, labels, [3]).errors
    logits[:, 3] -= 8
    shift = best_bias_shift(logits, labels, [3])
    assert shift == pytest.approx(8, abs=1.5)
    assert transfer_errors(logits, labels, [3]).errors_on_unseen == (labels == 3).sum()
    assert transfer_errors(logits, labels, [3], shift=shift).errors <= before


def test_several_unseen_classes_are_shifted_together() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(10, size=2000)
    logits = 6 * np.eye(10)[labels] + 0.5 * rng.standard_normal((2000, 10))
    logits[:, :7] -= 9
    shift = best_bias_shift(logits, labels, range(7))
    assert transfer_errors(logits, labels, range(7), shift=shift).errors < 10


def test_where_every_shift_is_as_good_none_is_made() -> None:
    logits = np.array([[100.0, 0, 0], [0, 0, 100]])
    assert best_bias_shift(logits, np.array([0, 2]), [1]) == 0
    assert best_bias_shift(logits, np.array([0, 2]), [0, 1, 2]) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_are_counted_in_all_and_on_the_unseen_classes(dtype) -> None:
    logits = np.array([[2, 1, 0], [2, 1, 0], [0, 1, 2], [0, 2, 1]], dtype)
    labels = np.array([0, 1, 1, 1])
    before = logits.copy()
    assert transfer_errors(logits, labels, [1]) == (2, 2)
    assert transfer_errors(logits, labels, [1], shift=1.5) == (1, 0)
    assert transfer_errors(logits, labels, [1], shift=-10.0) == (3, 3)
    np.testing.assert_array_equal(logits, before)
