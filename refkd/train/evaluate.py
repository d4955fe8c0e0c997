"""Evaluating a network on a split: logits, accuracy, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

from refkd.data.dataset import Normalization, to_batch
from refkd.data.loader import batches, row_blocks
from refkd.dispatch import Array, Backend, backend_of, current_backend
from refkd.errors import NonFiniteError
from refkd.nn.layer import Arrays, Layer
from refkd.ops.softmax import softmax_forward

__all__ = ["accuracy", "calibration", "evaluate_logits", "move_arrays"]

_ROWS, _VALUES = 1024, 1 << 20  # of a block: they bound the memory of an evaluation


def evaluate_logits(
    network: Layer,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    images: Array,
    *,
    normalization: Normalization,
) -> Array:
    """Return the network's logits on every image, in evaluation mode, block by block.

    Parameters
    ----------
    network : Layer
    params, state : mapping of str to array
        Those of NumPy are moved to the selected backend.
    images : array, shape (N, ...), uint8 or floating
        As the data set stores them.
    normalization : Normalization
        What makes the images model inputs.

    Returns
    -------
    logits : NumPy array, shape (N, C), in the dtype of the parameters
        Of the first head, where the network has several.

    Raises
    ------
    NonFiniteError
        If a logit is NaN or infinite.
    """
    first = next(iter(params.values()))
    backend = current_backend() if isinstance(first, np.ndarray) else backend_of(first)
    params, state = move_arrays(params, backend), move_arrays(state, backend)
    step = max(1, min(_ROWS, _VALUES // math.prod(images.shape[1:])))
    outputs = []
    with closing(batches(images, row_blocks(len(images), step))) as stored:
        for block in stored:
            batch = to_batch(backend.asarray(block), normalization, first.dtype)
            logits = network.infer(params, state, batch)
            outputs.append(backend.to_numpy(logits[0] if isinstance(logits, tuple) else logits))
    result = np.concatenate(outputs)
    if not np.isfinite(result).all():
        raise NonFiniteError(
            "evaluate_logits: the network returned NaN or infinity; its parameters have "
            "diverged or are damaged"
        )
    return result


def move_arrays(arrays: Mapping[str, Array], backend: Backend) -> Arrays:
    """Return the same names with arrays of ``backend``."""
    return {name: backend.asarray(array) for name, array in arrays.items()}


def accuracy(logits: Array, labels: Array) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def calibration(logits: Array, labels: Array, *, bins: int = 10) -> dict[str, Any]:
    """Compare confidence with accuracy in equal-width bins of the largest probability.

    Parameters
    ----------
    logits : array, shape (N, C)
    labels : integer array, shape (N,)
    bins : int

    Returns
    -------
    dict
        ``bins``: per non-empty bin its ``confidence`` (mean), ``accuracy`` and ``count``;
        ``ece``: the expected calibration error Σ (count/N)·|accuracy − confidence|.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, 2017,
    arXiv:1706.04599.
    """
    probabilities = softmax_forward(logits)
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for b in np.unique(bin_of):
        inside = bin_of == b
        rows.append(
            {
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
                "count": int(inside.sum()),
            }
        )
    ece = sum(r["count"] * abs(r["accuracy"] - r["confidence"]) for r in rows) / len(labels)
    return {"bins": rows, "ece": ece}
