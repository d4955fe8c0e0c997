"""Hinton's transfer experiment: what a student knows of classes it never saw.

A student trained without the threes still recognises most of them, because the
teacher's soft targets on other digits say how three-like they are; its bias for the
class is what is wrong, and shifting it repairs much of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["TransferErrors", "best_bias_shift", "transfer_errors"]

# Logits of a trained network differ by tens at most; a tenth is finer than it matters.
_SHIFTS = np.arange(-300, 301) / 10


class TransferErrors(NamedTuple):
    """Errors on a test set, all of them and those on the unseen classes."""

    errors: int
    errors_on_unseen: int


def best_bias_shift(
    logits: NDArray[np.floating], labels: NDArray[np.int64], unseen: Sequence[int]
) -> float:
    """Return the shift of the unseen classes' logits that makes the fewest errors.

    Parameters
    ----------
    logits : array, shape (N, C)
    labels : integer array, shape (N,)
    unseen : sequence of int
        Classes whose biases are shifted together.

    Returns
    -------
    float
        In [−30, 30], a multiple of 0.1, the one nearest zero among equals.

    Notes
    -----
    Choose it on images that are not the test set. With u and k the largest logits among
    unseen and seen classes, a shift d turns the prediction to the unseen class where
    u + d > k: two maxima per image decide every shift.
    """
    chosen = np.zeros(logits.shape[1], bool)
    chosen[list(unseen)] = True
    best = [np.where(mask, logits, -np.inf) for mask in (chosen, ~chosen)]
    margin = best[1].max(axis=1) - best[0].max(axis=1)
    right_if_unseen, right_if_seen = (b.argmax(axis=1) == labels for b in best)
    right = [np.where(s > margin, right_if_unseen, right_if_seen).sum() for s in _SHIFTS]
    candidates = _SHIFTS[np.asarray(right) == max(right)]
    return float(candidates[np.abs(candidates).argmin()])


def transfer_errors(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    unseen: Sequence[int],
    *,
    shift: float = 0.0,
) -> TransferErrors:
    """Count the errors after adding ``shift`` to the logits of the unseen classes."""
    shifted = logits.copy()
    shifted[:, list(unseen)] += shift
    wrong = shifted.argmax(axis=1) != labels
    return TransferErrors(int(wrong.sum()), int(wrong[np.isin(labels, unseen)].sum()))
