"""Softmax and log-softmax over any axis at any temperature, forward and backward."""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import (
    ShapeError,
    check_axis,
    check_float_dtypes,
    check_positive,
    check_same_shape,
)

__all__ = [
    "log_softmax_backward",
    "log_softmax_forward",
    "softmax_backward",
    "softmax_forward",
]


@kernel
def softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Array:
    """Return q_i = exp(x_i/T) / Σ_j exp(x_j/T) along ``axis``.

    Parameters
    ----------
    x : array, any shape
        Logits; their magnitude does not matter, only their differences.
    axis : int
    temperature : float, > 0
        T → 0 tends to the one-hot vector of the maximum, T → ∞ to the uniform one.

    Returns
    -------
    q : array, the shape of x
        Sums to 1 along ``axis``.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If ``axis`` is out of range or empty, x is not floating, or T is not positive.
    """
    xp = _check("softmax_forward", axis, temperature, x=x)
    e = xp.exp(_shifted(x, axis, temperature))
    return e / e.sum(axis=axis, keepdims=True)


@kernel
def softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Array:
    """Backward of :func:`softmax_forward`.

    Parameters
    ----------
    dy : array
    y : array, the shape of dy
        The output of the forward.
    axis, temperature
        As in the forward.

    Returns
    -------
    dx : array, the shape of dy

    Notes
    -----
    ∂y_i/∂x_j = y_i (δ_ij − y_j)/T, hence::

        dx_j = y_j (dy_j − Σ_i dy_i y_i) / T
    """
    _check("softmax_backward", axis, temperature, dy=dy, y=y)
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True)) / float(temperature)


@kernel
def log_softmax_forward(x: Array, *, axis: int = -1, temperature: float = 1.0) -> Array:
    """Return log q_i = x_i/T − log Σ_j exp(x_j/T) along ``axis``.

    Never the logarithm of a softmax: that is −∞ wherever a probability underflows, and
    this is finite wherever the differences of the logits, divided by T, are.

    Parameters
    ----------
    x : array, any shape
        Logits.
    axis : int
    temperature : float, > 0

    Returns
    -------
    log_q : array, the shape of x

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        As :func:`softmax_forward`.
    """
    xp = _check("log_softmax_forward", axis, temperature, x=x)
    z = _shifted(x, axis, temperature)
    return z - xp.log(xp.exp(z).sum(axis=axis, keepdims=True))


@kernel
def log_softmax_backward(dy: Array, y: Array, *, axis: int = -1, temperature: float = 1.0) -> Array:
    """Backward of :func:`log_softmax_forward`.

    Parameters
    ----------
    dy : array
    y : array, the shape of dy
        The output of the forward, log-probabilities.
    axis, temperature
        As in the forward.

    Returns
    -------
    dx : array, the shape of dy

    Notes
    -----
    ∂y_i/∂x_j = (δ_ij − q_j)/T with q = exp(y), hence::

        dx_j = (dy_j − q_j Σ_i dy_i) / T
    """
    xp = _check("log_softmax_backward", axis, temperature, dy=dy, y=y)
    return (dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)) / float(temperature)


def _shifted(x: Array, axis: int, temperature: float) -> Array:
    # The shift cancels in both functions, so a constant (the real part) serves.
    return (x - x.real.max(axis=axis, keepdims=True)) / float(temperature)


def _check(where: str, axis: int, temperature: float, **arrays: Array) -> Any:
    check_float_dtypes(where, **arrays)
    check_same_shape(where, **arrays)
    check_positive(where, "temperature", temperature)
    x = next(iter(arrays.values()))
    check_axis(where, axis, x.shape)
    if x.shape[axis] == 0:
        raise ShapeError(f"{where}: axis {axis} is empty in shape {tuple(x.shape)}")
    return namespace(x)
