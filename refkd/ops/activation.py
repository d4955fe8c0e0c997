"""Pointwise activations: relu, sigmoid, tanh, silu and gelu, forward and backward.

A backward takes what it needs and no more: the output where the derivative is a
function of it (relu, sigmoid, tanh), the input otherwise (silu, gelu).
"""

from __future__ import annotations

import math
from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import check_choice, check_float_dtypes, check_same_shape
from refkd.ops.special import erf

__all__ = [
    "gelu_backward",
    "gelu_forward",
    "relu_backward",
    "relu_forward",
    "sigmoid_backward",
    "sigmoid_forward",
    "silu_backward",
    "silu_forward",
    "tanh_backward",
    "tanh_forward",
]

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


@kernel
def relu_forward(x: Array) -> Array:
    """Return y = max(x, 0), with NaN passed on.

    Parameters
    ----------
    x : array, any shape

    Returns
    -------
    y : array, the shape of x
    """
    xp = namespace(x)
    check_float_dtypes("relu_forward", x=x)
    if xp.iscomplexobj(x):  # the complex maximum orders by the imaginary part at ties
        return xp.where(x.real <= 0, 0, x)
    return xp.maximum(x, 0)


@kernel
def relu_backward(dy: Array, y: Array) -> Array:
    """Backward of :func:`relu_forward`: dx = dy · [y > 0], so ReLU'(0) = 0.

    What is not finite in dy shows: ∞ · 0 is NaN.

    Parameters
    ----------
    dy, y : array, of one shape
        Cotangent of the output; the output of the forward.

    Returns
    -------
    dx : array, the shape of y
    """
    _check("relu_backward", dy=dy, y=y)
    return dy * (y.real > 0)


@kernel
def sigmoid_forward(x: Array) -> Array:
    """Return y = 1 / (1 + exp(−x)), exact in both tails and free of overflow.

    Parameters
    ----------
    x : array, any shape

    Returns
    -------
    y : array, the shape of x
    """
    xp = namespace(x)
    check_float_dtypes("sigmoid_forward", x=x)
    return _sigmoid(xp, x)


@kernel
def sigmoid_backward(dy: Array, y: Array) -> Array:
    """Backward of :func:`sigmoid_forward`: y' = y (1 − y).

    Parameters
    ----------
    dy, y : array, of one shape
        Cotangent of the output; the output of the forward.

    Returns
    -------
    dx : array, the shape of y
    """
    _check("sigmoid_backward", dy=dy, y=y)
    return dy * (y * (1 - y))


@kernel
def tanh_forward(x: Array) -> Array:
    """Return y = tanh(x).

    Parameters
    ----------
    x : array, any shape

    Returns
    -------
    y : array, the shape of x
    """
    check_float_dtypes("tanh_forward", x=x)
    return namespace(x).tanh(x)


@kernel
def tanh_backward(dy: Array, y: Array) -> Array:
    """Backward of :func:`tanh_forward`: y' = 1 − y² = (1 − y)(1 + y).

    Parameters
    ----------
    dy, y : array, of one shape
        Cotangent of the output; the output of the forward.

    Returns
    -------
    dx : array, the shape of y
    """
    _check("tanh_backward", dy=dy, y=y)
    return dy * ((1 - y) * (1 + y))


@kernel
def silu_forward(x: Array) -> Array:
    """Return y = x σ(x), σ the logistic sigmoid.

    Parameters
    ----------
    x : array, any shape

    Returns
    -------
    y : array, the shape of x

    References
    ----------
    Hendrycks, Gimpel: Gaussian Error Linear Units, arXiv:1606.08415 (SiLU);
    Ramachandran, Zoph, Le: Searching for Activation Functions, arXiv:1710.05941 (Swish).
    """
    xp = namespace(x)
    check_float_dtypes("silu_forward", x=x)
    return x * _sigmoid(xp, x)


@kernel
def silu_backward(dy: Array, x: Array) -> Array:
    """Backward of :func:`silu_forward`.

    Parameters
    ----------
    dy, x : array, of one shape
        Cotangent of the output; the input of the forward.

    Returns
    -------
    dx : array, the shape of x

    Notes
    -----
    By the product rule and σ' = σ(1 − σ)::

        (xσ)' = σ + xσ(1 − σ) = σ (1 + x (1 − σ))
    """
    _check("silu_backward", dy=dy, x=x)
    xp = namespace(x)
    # 1 − s would lose the digits of σ(−x), and x multiplies what is lost.
    return dy * (_sigmoid(xp, x) * (1 + x * _sigmoid(xp, -x)))


@kernel
def gelu_forward(x: Array, *, approximate: str = "none") -> Array:
    """Return y = x Φ(x), Φ the standard normal distribution function.

    Parameters
    ----------
    x : array, any shape
    approximate : {"none", "tanh"}
        ``"none"`` is exact: Φ(x) = (1 + erf(x/√2))/2, accurate to rounding of 1, so that
        the far left tail, where Φ is below that, is lost as in PyTorch. ``"tanh"`` takes
        Φ(x) ≈ (1 + tanh u)/2 = σ(2u), u = √(2/π) (x + 0.044715 x³); written with the
        sigmoid σ, it keeps its relative accuracy in the left tail.

    Returns
    -------
    y : array, the shape of x

    References
    ----------
    Hendrycks, Gimpel: Gaussian Error Linear Units, arXiv:1606.08415.
    """
    xp = namespace(x)
    check_float_dtypes("gelu_forward", x=x)
    check_choice("gelu_forward", "approximate", approximate, ("none", "tanh"))
    if approximate == "tanh":
        return x * _sigmoid(xp, 2 * _gelu_argument(x))
    return 0.5 * x * (1 + erf(x * _SQRT_HALF))


@kernel
def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    """Backward of :func:`gelu_forward`, exact for either form.

    Parameters
    ----------
    dy, x : array, of one shape
        Cotangent of the output; the input of the forward.
    approximate : {"none", "tanh"}
        As in the forward.

    Returns
    -------
    dx : array, the shape of x

    Notes
    -----
    ``"none"``: with φ(x) = exp(−x²/2)/√(2π) = Φ'(x)::

        (xΦ)' = Φ + xφ

    ``"tanh"``: with u = √(2/π)(x + c x³) and s = σ(2u), so s' = 2s(1 − s) u'::

        (xs)' = s + 2x s (1 − s) √(2/π)(1 + 3c x²)
    """
    _check("gelu_backward", dy=dy, x=x)
    check_choice("gelu_backward", "approximate", approximate, ("none", "tanh"))
    xp = namespace(x)
    if approximate == "tanh":
        u = _gelu_argument(x)
        du = _SQRT_2_OVER_PI * (1 + 3 * _GELU_CUBIC * x * x)
        return dy * (_sigmoid(xp, 2 * u) * (1 + 2 * x * _sigmoid(xp, -2 * u) * du))
    cdf = 0.5 * (1 + erf(x * _SQRT_HALF))
    density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (cdf + x * density)


def _sigmoid(xp: Any, x: Array) -> Array:
    # exp of a non-positive number only: it may underflow to 0, never overflow.
    negative = x.real < 0
    e = xp.exp(xp.where(negative, x, -x))
    return xp.where(negative, e, 1) / (1 + e)


def _gelu_argument(x: Array) -> Array:
    return _SQRT_2_OVER_PI * (x + _GELU_CUBIC * x * x * x)


def _check(where: str, **arrays: Array) -> None:
    check_float_dtypes(where, **arrays)
    check_same_shape(where, **arrays)
