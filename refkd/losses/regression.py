"""Losses on differences: mean squared error and Huber, forward and backward."""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import check_float_dtypes, check_positive, check_same_shape
from refkd.losses.reduction import check_reduction, cotangent, divisor

__all__ = ["huber_backward", "huber_forward", "mse_backward", "mse_forward"]


@kernel
def mse_forward(input: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Return L = (input − target)², reduced over the elements.

    Parameters
    ----------
    input, target : array, any one shape
    reduction : {"mean", "sum", "none"}
        Over all elements.

    Returns
    -------
    loss : array, shape (), or the shape of input for ``"none"``

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or the reduction do not fit.
    """
    _check("mse_forward", reduction, input, target)
    difference = input - target
    return _reduce(difference * difference, reduction)


@kernel
def mse_backward(
    dloss: Array | float, input: Array, target: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Backward of :func:`mse_forward`.

    Parameters
    ----------
    dloss : float or array, shape () or that of input for ``"none"``
        Cotangent of the loss.
    input, target : array, of one shape
    reduction
        As in the forward.

    Returns
    -------
    dinput, dtarget : array, the shape of input

    Notes
    -----
    d(x − y)²/dx = 2(x − y) = −d(x − y)²/dy, divided by the number of elements for
    ``"mean"``.
    """
    _check("mse_backward", reduction, input, target)
    dinput = (input - target) * (2 * _cotangent("mse_backward", dloss, input, reduction))
    return dinput, -dinput


@kernel
def huber_forward(
    input: Array, target: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> Array:
    """Return the Huber loss: d²/2 where |d| ≤ δ, δ(|d| − δ/2) beyond, d = input − target.

    Both are c(|d| − c/2) with c = min(|d|, δ), which squares nothing beyond δ.

    Parameters
    ----------
    input, target : array, any one shape
    delta : float, > 0
        Where the parabola meets its tangents.
    reduction : {"mean", "sum", "none"}
        Over all elements.

    Returns
    -------
    loss : array, shape (), or the shape of input for ``"none"``

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or options do not fit.

    References
    ----------
    Huber: Robust Estimation of a Location Parameter, Ann. Math. Statist. 35 (1964).
    """
    xp = _check("huber_forward", reduction, input, target)
    check_positive("huber_forward", "delta", delta)
    d = input - target
    magnitude = xp.where(d.real < 0, -d, d)
    clipped = xp.where(magnitude.real > delta, float(delta), magnitude)
    return _reduce(clipped * (magnitude - 0.5 * clipped), reduction)


@kernel
def huber_backward(
    dloss: Array | float,
    input: Array,
    target: Array,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Backward of :func:`huber_forward`.

    Parameters
    ----------
    dloss : float or array, shape () or that of input for ``"none"``
        Cotangent of the loss.
    input, target : array, of one shape
    delta, reduction
        As in the forward.

    Returns
    -------
    dinput, dtarget : array, the shape of input

    Notes
    -----
    The slope is d inside and ±δ outside, which is d clipped to [−δ, δ]; it is
    continuous, so |d| = δ needs no convention.
    """
    xp = _check("huber_backward", reduction, input, target)
    check_positive("huber_backward", "delta", delta)
    d = input - target
    delta = float(delta)
    slope = xp.where(d.real > delta, delta, xp.where(d.real < -delta, -delta, d))
    dinput = slope * _cotangent("huber_backward", dloss, input, reduction)
    return dinput, -dinput


def _reduce(values: Array, reduction: str) -> Array:
    if reduction == "none":
        return values
    return values.sum() / _elements(values, reduction)


def _cotangent(where: str, dloss: Array | float, input: Array, reduction: str) -> Array | float:
    shape = tuple(input.shape) if reduction == "none" else ()
    return cotangent(where, dloss, input, shape) / _elements(input, reduction)


def _elements(values: Array, reduction: str) -> int:
    return divisor(reduction, examples=values.size, elements=values.size)


def _check(where: str, reduction: str, input: Array, target: Array) -> Any:
    check_float_dtypes(where, input=input, target=target)
    check_same_shape(where, input=input, target=target)
    check_reduction(where, reduction, tuple(input.shape))
    return namespace(input)
