"""Batch norm, layer norm and attention: gradients with a term too few, under a cotangent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.subjects import Gradient, Subject
from bench.subjects.distillation import log_softmax

__all__ = ["attention", "batch_norm", "layer_norm"]

_EPS = 1e-5


def batch_norm(rng: np.random.Generator, batch: int = 6, features: int = 4) -> Subject:
    """Return ⟨c, batch norm of x⟩: mean and variance over the batch."""
    return _norm("batch norm", rng, (batch, features), axis=0)


def layer_norm(rng: np.random.Generator, batch: int = 4, features: int = 6) -> Subject:
    """Return ⟨c, layer norm of x⟩: mean and variance over the features."""
    return _norm("layer norm", rng, (batch, features), axis=-1)


def _norm(name: str, rng: np.random.Generator, shape: tuple[int, int], axis: int) -> Subject:
    cotangent = rng.standard_normal(shape)

    def mean(u: Any) -> Any:
        return u.mean(axis=axis, keepdims=True)

    def normalised(x: Any, eps: float = _EPS, count_less: int = 0) -> tuple[Any, Any]:
        centred = x - mean(x)
        variance = mean(centred * centred) * shape[axis] / (shape[axis] - count_less)
        rstd = (variance + eps) ** -0.5
        return centred * rstd, rstd

    def f(x: Any, weight: Any, bias: Any) -> Any:
        return (cotangent * (normalised(x)[0] * weight + bias)).sum()

    def gradient(
        through_mean: float = 1.0, through_variance: float = 1.0, **statistics: float
    ) -> Gradient:
        def grad(x: Any, weight: Any, bias: Any) -> dict[str, Any]:
            y, rstd = normalised(x, **statistics)  # type: ignore[arg-type]
            d = cotangent * weight
            dx = rstd * (d - through_mean * mean(d) - through_variance * y * mean(d * y))
            return {"x": dx, "weight": (cotangent * y).sum(axis=0), "bias": cotangent.sum(axis=0)}

        return grad

    return Subject(
        name,
        f,
        {
            "x": 1 + 2 * rng.standard_normal(shape),
            "weight": rng.uniform(0.5, 2, size=shape[1]),
            "bias": rng.standard_normal(shape[1]),
        },
        gradient(),
        errors={
            "mean detached": gradient(through_mean=0.0),
            "variance detached": gradient(through_variance=0.0),
            "both statistics detached": gradient(0.0, 0.0),
            "unbiased variance for the biased one": gradient(count_less=1),
            "eps forgotten": gradient(eps=0.0),
        },
    )


def attention(rng: np.random.Generator, tokens: int = 5, width: int = 4) -> Subject:
    """Return ⟨c, softmax(q kᵀ/√d) v⟩ of a single head."""
    cotangent = rng.standard_normal((tokens, width))
    scale = 1 / math.sqrt(width)

    def weights(q: Any, k: Any) -> Any:
        return np.exp(log_softmax(q @ k.T * scale))

    def f(q: Any, k: Any, v: Any) -> Any:
        return (cotangent * (weights(q, k) @ v)).sum()

    def gradient(
        scale: float = scale, off_diagonal: float = 1.0, swapped: bool = False
    ) -> Gradient:
        def grad(q: Any, k: Any, v: Any) -> dict[str, Any]:
            a = weights(q, k)
            da = cotangent @ v.T
            rest = a * ((a * da).sum(axis=-1, keepdims=True) - a * da)
            dscores = scale * (a * (1 - a) * da - off_diagonal * rest)
            dq, dk = dscores @ k, dscores.T @ q
            return {"q": dk if swapped else dq, "k": dq if swapped else dk, "v": a.T @ cotangent}

        return grad

    return Subject(
        "attention",
        f,
        {name: rng.standard_normal((tokens, width)) for name in ("q", "k", "v")},
        gradient(),
        errors={
            "scale forgotten": gradient(scale=1.0),
            "scale 1/d for 1/√d": gradient(scale=1 / width),
            "the softmax Jacobian's diagonal alone": gradient(off_diagonal=0.0),
            "the softmax Jacobian's other entries negated": gradient(off_diagonal=-1.0),
            "gradients of query and key swapped": gradient(swapped=True),
        },
    )
