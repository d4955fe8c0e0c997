"""Random analytic functions with gradients written by hand, of many shapes and scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DrawnFunction", "draw_function"]


class DrawnFunction(NamedTuple):
    f: Callable[..., Any]
    grad: Callable[..., Mapping[str, Any]]
    params: dict[str, Any]


_POINTWISE: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (np.sin, np.cos),
    (np.tanh, lambda u: (1 - np.tanh(u)) * (1 + np.tanh(u))),
    (lambda u: np.exp(-u * u), lambda u: -2 * u * np.exp(-u * u)),
    (lambda u: np.log(1 + u * u), lambda u: 2 * u / (1 + u * u)),
    (lambda u: np.sqrt(1 + u * u), lambda u: u / np.sqrt(1 + u * u)),
    (lambda u: u * u * u - 2 * u, lambda u: 3 * u * u - 2),
    (lambda u: 1 / (2 + np.sin(u)), lambda u: -np.cos(u) / (2 + np.sin(u)) ** 2),
]


def _log_softmax(u: Any) -> Any:
    z = u - u.real.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def draw_function(rng: np.random.Generator) -> DrawnFunction:
    """Draw f(weight, bias, x) = <c, g(x Wᵀ + b)> + offset, g pointwise or (log-)softmax."""
    n, n_in, n_out = (int(k) for k in rng.integers(1, 5, size=3))
    scale = 10.0 ** rng.uniform(-6, 6)
    spread = rng.choice([0.1, 1.0, 10.0, 100.0])
    c = scale * rng.standard_normal((n, n_out))
    offset = rng.choice([0.0, scale, 1e6 * scale])
    kind = int(rng.integers(len(_POINTWISE) + 2))

    def outer(u: Any) -> Any:
        if kind < len(_POINTWISE):
            return _POINTWISE[kind][0](u)
        return _log_softmax(u) if kind == len(_POINTWISE) else np.exp(_log_softmax(u))

    def outer_backward(dy: Any, u: Any) -> Any:
        if kind < len(_POINTWISE):
            return dy * _POINTWISE[kind][1](u)
        q = np.exp(_log_softmax(u))
        if kind == len(_POINTWISE):
            return dy - q * dy.sum(axis=-1, keepdims=True)
        return q * (dy - (dy * q).sum(axis=-1, keepdims=True))

    def f(x: Any, weight: Any, bias: Any) -> Any:
        return (c * outer(x @ weight.T + bias)).sum() + offset

    def grad(x: Any, weight: Any, bias: Any) -> dict[str, Any]:
        du = outer_backward(c, x @ weight.T + bias)
        return {"x": du @ weight, "weight": du.T @ x, "bias": du.sum(axis=0)}

    params = {
        "x": rng.standard_normal((n, n_in)),
        "weight": spread * rng.standard_normal((n_out, n_in)),
        "bias": spread * rng.standard_normal(n_out),
    }
    return DrawnFunction(f, grad, params)
