"""Max-pooling at ties: what is wrong there, and what is only another convention."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.subjects import Gradient, Subject

__all__ = ["max_pool", "max_pool_of_copies"]


def _pool_gradient(cotangent: Any, share: Any) -> Any:
    """Return the gradient of Σ c max over the last axis, ``share`` dividing c among the ties."""

    def gradient(x: Any) -> Any:
        largest = x == x.max(axis=-1, keepdims=True)
        return cotangent[..., None] * share(largest)

    return gradient


def _first(largest: Any) -> Any:
    return largest & (np.cumsum(largest, axis=-1) == 1)


def _last(largest: Any) -> Any:
    return _first(largest[..., ::-1])[..., ::-1]


def _even(largest: Any) -> Any:
    return largest / largest.sum(axis=-1, keepdims=True)


def _window_maximum(x: Any) -> Any:
    return np.take_along_axis(x, x.real.argmax(axis=-1)[..., None], axis=-1)[..., 0]


def max_pool(rng: np.random.Generator, windows: int = 5, size: int = 4) -> Subject:
    """Return Σ c max of each window, where every window has two equal maxima.

    The function has a kink there, and the gradient that gives the slope to the last
    maximum is an element of its subdifferential as good as the one that gives it to
    the first: no derivative can tell them apart, only a comparison of conventions.
    What is wrong is to give it to both.
    """
    cotangent = rng.standard_normal(windows)
    x = rng.standard_normal((windows, size))
    for row in x:
        i, j = rng.choice(size, size=2, replace=False)
        row[i] = row[j] = row.max() + 0.5

    def of(share: Any) -> Gradient:
        gradient = _pool_gradient(cotangent, share)
        return lambda x: {"x": gradient(x)}

    return Subject(
        "max-pool with ties",
        lambda x: (cotangent * _window_maximum(x)).sum(),
        {"x": x},
        of(_first),
        errors={
            "every tied maximum gets all": of(lambda largest: 1.0 * largest),
            "no tied maximum gets anything": of(
                lambda largest: largest * (largest.sum(axis=-1, keepdims=True) == 1.0)
            ),
            "the one beside the maximum": of(lambda m: np.roll(_first(m), 1, axis=-1)),
        },
        conventions={"ties to the last maximum": of(_last), "ties shared evenly": of(_even)},
    )


def max_pool_of_copies(rng: np.random.Generator, windows: int = 5, copies: int = 2) -> Subject:
    """Return Σ c max over windows whose entries come in equal copies of one parameter.

    There is no kink in the parameters: whichever copy gets the slope, the sum over the
    copies is the derivative. A tie counted twice shows as a factor.
    """
    cotangent = rng.standard_normal(windows)

    def copied(weight: Any) -> Any:
        return np.repeat(weight, copies, axis=-1)

    def of(share: Any) -> Gradient:
        gradient = _pool_gradient(cotangent, share)

        def grad(weight: Any) -> dict[str, Any]:
            dx = gradient(copied(weight))
            return {"weight": dx.reshape(*weight.shape, copies).sum(axis=-1)}

        return grad

    return Subject(
        "max-pool of copies",
        lambda weight: (cotangent * _window_maximum(copied(weight))).sum(),
        {"weight": rng.standard_normal((windows, 3))},
        of(_first),
        errors={
            "every tied maximum gets all": of(lambda largest: 1.0 * largest),
            "the maximum's neighbour": of(lambda m: np.roll(_last(m), 1, axis=-1)),
        },
        conventions={"ties to the last maximum": of(_last), "ties shared evenly": of(_even)},
    )
