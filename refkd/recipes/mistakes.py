"""What a network gets wrong: its confusion matrix, and its most confident mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["confident_mistakes", "confusion_matrix"]


def confusion_matrix(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count how often images of one class (row) are taken for another (column).

    Parameters
    ----------
    logits : array, shape (N, num_classes)
    labels : integer array, shape (N,)
    num_classes : int

    Returns
    -------
    array of int, shape (num_classes, num_classes)
        Row sums count the images of each class; the trace counts what is right.
    """
    pairs = num_classes * labels + logits.argmax(axis=1)
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confident_mistakes(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Return the rows that a network is surest of and gets wrong, the surest first.

    Parameters
    ----------
    logits : array, shape (N, C)
    labels : integer array, shape (N,)
    most : int
        Rows to return if there are as many.

    Returns
    -------
    array of int, shape (at most ``most``,)
        Of equally sure ones the first comes first.

    Notes
    -----
    The confidence of a prediction k is p_k = 1/(1 + d) with its doubt
    d = Σ_{j≠k} exp(z_j − z_k). Ordering by d orders by confidence, and tells apart what
    rounds to p_k = 1.
    """
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    gaps = logits[wrong].astype(np.float64)
    gaps -= gaps[np.arange(len(wrong)), predicted[wrong], None]
    gaps[np.arange(len(wrong)), predicted[wrong]] = -np.inf
    doubt = np.exp(gaps).sum(axis=1)
    return wrong[np.argsort(doubt, kind="stable")[:most]]
