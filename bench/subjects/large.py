"""Functions of as many entries as wanted, and the loss of a multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.subjects import Gradient, Subject
from bench.subjects.distillation import log_softmax

__all__ = ["OF_SIZE", "matrix", "mlp_loss", "pointwise", "unit_vector"]


def pointwise(rng: np.random.Generator, entries: int) -> Subject:
    """Return Σ c sin x: every entry by itself."""
    cotangent = rng.standard_normal(entries)
    return Subject(
        "pointwise",
        lambda x: (cotangent * np.sin(x)).sum(),
        {"x": rng.standard_normal(entries)},
        lambda x: {"x": cotangent * np.cos(x)},
    )


def unit_vector(rng: np.random.Generator, entries: int) -> Subject:
    """Return ⟨c, x/‖x‖⟩, which ties every entry to all others."""
    cotangent = rng.standard_normal(entries)

    def f(x: Any) -> Any:
        return (cotangent * x).sum() / np.sqrt((x * x).sum())

    def grad(x: Any) -> dict[str, Any]:
        squared = (x * x).sum()
        return {"x": (cotangent - x * ((cotangent * x).sum() / squared)) / np.sqrt(squared)}

    return Subject("unit vector", f, {"x": rng.standard_normal(entries)}, grad)


def matrix(rng: np.random.Generator, entries: int) -> Subject:
    """Return Σ c tanh(W x) of about ``entries`` weights, with x differentiated too."""
    n_out = math.isqrt(entries)
    n_in = entries // n_out
    cotangent = rng.standard_normal(n_out)

    def f(weight: Any, x: Any) -> Any:
        return (cotangent * np.tanh(weight @ x)).sum()

    def grad(weight: Any, x: Any) -> dict[str, Any]:
        y = np.tanh(weight @ x)
        du = cotangent * (1 - y) * (1 + y)
        return {"weight": du[:, None] * x, "x": weight.T @ du}

    weight = rng.standard_normal((n_out, n_in)) / math.sqrt(n_in)
    return Subject("matrix", f, {"weight": weight, "x": rng.standard_normal(n_in)}, grad)


OF_SIZE: tuple[Callable[[np.random.Generator, int], Subject], ...] = (
    pointwise,
    unit_vector,
    matrix,
)


def mlp_loss(rng: np.random.Generator, widths: Sequence[int], batch: int = 128) -> Subject:
    """Return the cross-entropy of a multilayer perceptron, ReLU between its layers.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws images, labels and parameters (uniform in ±1/√fan_in).
    widths : sequence of int
        From the input to the logits.
    batch : int
    """
    x = rng.random((batch, widths[0]))
    labels = rng.integers(widths[-1], size=batch)
    rows = np.arange(batch)
    depth = len(widths) - 1

    def activations(params: dict[str, Any]) -> list[Any]:
        hidden = [x]
        for i in range(1, depth + 1):
            u = hidden[-1] @ params[f"weight{i}"].T
            u += params[f"bias{i}"]
            if i < depth:
                u *= u.real > 0
            hidden.append(u)
        return hidden

    def f(**params: Any) -> Any:
        return -log_softmax(activations(params)[-1])[rows, labels].sum() / batch

    def gradient(through_relu: bool = True, batch: int = batch) -> Gradient:
        return lambda **params: backward(params, activations(params), through_relu, batch)

    def backward(
        params: dict[str, Any], hidden: list[Any], through_relu: bool, batch: int
    ) -> dict[str, Any]:
        du = np.exp(log_softmax(hidden[-1]))
        du[rows, labels] -= 1
        du /= batch
        gradients = {}
        for i in range(depth, 0, -1):
            gradients[f"weight{i}"] = du.T @ hidden[i - 1]
            gradients[f"bias{i}"] = du.sum(axis=0)
            if i > 1:
                du = du @ params[f"weight{i}"]
                if through_relu:
                    du *= hidden[i - 1] > 0
        return gradients

    params = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        bound = 1 / math.sqrt(n_in)
        params[f"weight{i}"] = rng.uniform(-bound, bound, size=(n_out, n_in))
        params[f"bias{i}"] = rng.uniform(-bound, bound, size=n_out)
    return Subject(
        "mlp loss",
        f,
        params,
        gradient(),
        errors={
            "sum for mean over the batch": gradient(batch=1),
            "ReLU's slope forgotten": gradient(through_relu=False),
        },
    )
