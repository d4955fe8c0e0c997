"""The stages that drawn functions are chains of: each a forward on (N, C) and its backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.subjects.distillation import log_softmax

__all__ = [
    "KINKED",
    "POINTWISE",
    "ROWWISE",
    "Stage",
    "gate",
    "kinked",
    "linear",
    "maximum_subtracted",
    "pointwise",
    "quotient",
]

Backward = Callable[[Any, Any, Mapping[str, Any]], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """A map of an (N, C) array.

    Attributes
    ----------
    name : str
    width : int
        C of the output.
    forward : callable
        (u, params) → y.
    backward : callable
        (dy, u, params) → du and the gradients of the stage's own parameters.
    params : mapping of str to array
    """

    name: str
    width: int
    forward: Callable[[Any, Mapping[str, Any]], Any]
    backward: Backward
    params: Mapping[str, Any] = field(default_factory=dict)


class Pointwise(NamedTuple):
    """A function of each entry and its derivative."""

    name: str
    function: Callable[[Any], Any]
    derivative: Callable[[Any], Any]


class Kinked(NamedTuple):
    """A function of each entry with a kink at 0, and its slopes on either side."""

    name: str
    function: Callable[[Any], Any]
    left: float
    right: float


def _cast(u: Any) -> Any:
    """Cast to float64: the imaginary part is lost, and what a longdouble has more."""
    return np.asarray(u, np.float64)


POINTWISE = (
    Pointwise("sin", np.sin, np.cos),
    Pointwise("tanh", np.tanh, lambda u: (1 - np.tanh(u)) * (1 + np.tanh(u))),
    Pointwise("bell", lambda u: np.exp(-u * u), lambda u: -2 * u * np.exp(-u * u)),
    Pointwise("log(1 + u²)", lambda u: np.log(1 + u * u), lambda u: 2 * u / (1 + u * u)),
    Pointwise("√(1 + u²)", lambda u: np.sqrt(1 + u * u), lambda u: u / np.sqrt(1 + u * u)),
    Pointwise("u³ − 2u", lambda u: u * u * u - 2 * u, lambda u: 3 * u * u - 2),
    Pointwise(
        "1/(2 + sin u)",
        lambda u: 1 / (2 + np.sin(u)),
        lambda u: -np.cos(u) / (2 + np.sin(u)) ** 2,
    ),
    # From here on none is analytic as written.
    Pointwise("u |u|", lambda u: u * np.abs(u), lambda u: 2 * np.abs(u)),
    Pointwise("atan2(u, 2)", lambda u: np.arctan2(u, 2), lambda u: 2 / (4 + u * u)),
    Pointwise("hypot(u, 1)", lambda u: np.hypot(u, 1), lambda u: u / np.hypot(u, 1)),
    Pointwise(
        "logaddexp(u, 0)",
        lambda u: np.logaddexp(u, 0),
        lambda u: np.exp(u - np.logaddexp(u, 0)),
    ),
    Pointwise("sin after a cast", lambda u: np.sin(_cast(u)), lambda u: np.cos(_cast(u))),
)
KINKED = (
    Kinked("abs", np.abs, -1.0, 1.0),
    Kinked("relu", lambda u: np.maximum(u, 0), 0.0, 1.0),
    Kinked("leaky relu", lambda u: np.where(u.real > 0, u, 0.25 * u), 0.25, 1.0),
)


def pointwise(of: Pointwise, width: int) -> Stage:
    """Return the stage that applies ``of`` to each entry."""
    return Stage(
        of.name,
        width,
        lambda u, params: of.function(u),
        lambda dy, u, params: (dy * of.derivative(u), {}),
    )


def kinked(of: Kinked, width: int, share: float = 0.0) -> Stage:
    """Return the stage of ``of``; at the kink ``share`` of the way from left to right slope."""
    at_kink = of.left + share * (of.right - of.left)

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        slope = np.where(u > 0, of.right, np.where(u < 0, of.left, at_kink))
        return dy * slope, {}

    return Stage(of.name, width, lambda u, params: of.function(u), backward)


def linear(rng: np.random.Generator, key: str, width: int) -> Stage:
    """Return u Wᵀ + b with weights of a drawn scale."""
    out = int(rng.integers(1, 5))
    scale = float(rng.choice([0.1, 1.0, 1.0, 10.0, 100.0]))
    weight, bias = f"weight{key}", f"bias{key}"

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return dy @ params[weight], {weight: dy.T @ u, bias: dy.sum(axis=0)}

    return Stage(
        "linear",
        out,
        lambda u, params: u @ params[weight].T + params[bias],
        backward,
        {
            weight: scale * rng.standard_normal((out, width)),
            bias: scale * rng.standard_normal(out),
        },
    )


def gate(rng: np.random.Generator, key: str, width: int) -> Stage:
    """Return the product u g."""
    name = f"gate{key}"
    return Stage(
        "gate",
        width,
        lambda u, params: u * params[name],
        lambda dy, u, params: (dy * params[name], {name: (dy * u).sum(axis=0)}),
        {name: rng.standard_normal(width)},
    )


def quotient(rng: np.random.Generator, key: str, width: int) -> Stage:
    """Return the quotient u / (1 + v²)."""
    name = f"divisor{key}"

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        v = params[name]
        below = 1 + v * v
        return dy / below, {name: -2 * v * (dy * u).sum(axis=0) / below**2}

    return Stage(
        "quotient",
        width,
        lambda u, params: u / (1 + params[name] * params[name]),
        backward,
        {name: rng.standard_normal(width)},
    )


def maximum_subtracted(width: int, share: float = 1.0) -> Stage:
    """Return u − max u of each row; of two tied maxima the first gets ``share`` of the slope."""

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        total = dy.sum(axis=-1, keepdims=True)
        columns = np.arange(width)
        first = columns == u.argmax(axis=-1)[:, None]
        last = columns == width - 1 - u[:, ::-1].argmax(axis=-1)[:, None]
        return dy - total * (share * first + (1 - share) * last), {}

    return Stage("u − max", width, lambda u, params: u - u.max(axis=-1, keepdims=True), backward)


def _log_softmax(width: int) -> Stage:
    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return dy - np.exp(log_softmax(u)) * dy.sum(axis=-1, keepdims=True), {}

    return Stage("log softmax", width, lambda u, params: log_softmax(u), backward)


def _softmax(width: int) -> Stage:
    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        q = np.exp(log_softmax(u))
        return q * (dy - (dy * q).sum(axis=-1, keepdims=True)), {}

    return Stage("softmax", width, lambda u, params: np.exp(log_softmax(u)), backward)


def _layer_norm(width: int) -> Stage:
    return _normalised("layer norm", width, lambda c: (c * c).mean(axis=-1, keepdims=True))


def _layer_norm_by_var(width: int) -> Stage:
    return _normalised("layer norm by np.var", width, lambda c: c.var(axis=-1, keepdims=True))


def _normalised(name: str, width: int, variance: Callable[[Any], Any]) -> Stage:
    def parts(u: Any) -> tuple[Any, Any]:
        centred = u - u.mean(axis=-1, keepdims=True)
        rstd = (variance(centred) + 1e-2) ** -0.5
        return centred * rstd, rstd

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        y, rstd = parts(u)
        along = y * (dy * y).mean(axis=-1, keepdims=True)
        return rstd * (dy - dy.mean(axis=-1, keepdims=True) - along), {}

    return Stage(name, width, lambda u, params: parts(u)[0], backward)


def _unit_rows(width: int) -> Stage:
    def length(u: Any) -> Any:
        return 0.1 + np.linalg.norm(u, axis=-1, keepdims=True)

    def backward(dy: Any, u: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        norm = np.linalg.norm(u, axis=-1, keepdims=True)
        direction = u / np.where(norm == 0, 1, norm)
        along = (dy * u).sum(axis=-1, keepdims=True) / length(u)
        return (dy - along * direction) / length(u), {}

    return Stage("u / (0.1 + ‖u‖)", width, lambda u, params: u / length(u), backward)


ROWWISE = (
    _softmax,
    _log_softmax,
    _layer_norm,
    _layer_norm_by_var,
    _unit_rows,
)
