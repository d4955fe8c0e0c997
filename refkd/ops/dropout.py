"""Inverted dropout by a given mask; drawing the mask is the caller's."""

from __future__ import annotations

from refkd.dispatch import Array, kernel
from refkd.errors import DtypeError, check_float_dtypes, check_same_shape, check_unit_interval

__all__ = ["dropout_backward", "dropout_forward"]


@kernel
def dropout_forward(x: Array, mask: Array, *, p: float) -> Array:
    """Return y = x · mask / (1 − p): zero what is dropped, rescale what is kept.

    What is not finite in x shows even where it is dropped: ∞ · 0 is NaN.

    Parameters
    ----------
    x : array, any shape
    mask : bool array, the shape of x
        True keeps; ``rng.random(shape) >= p`` keeps with probability 1 − p.
    p : float, in [0, 1]
        Drop probability. The rescaling makes E[y] = x; at p = 1 all is zero.

    Returns
    -------
    y : array, the shape of x

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the mask has another shape or is not boolean, or p is outside [0, 1].

    References
    ----------
    Srivastava et al.: Dropout, JMLR 15 (2014).
    """
    _check("dropout_forward", mask, p, x=x)
    return x * mask * _scale(p)


@kernel
def dropout_backward(dy: Array, mask: Array, *, p: float) -> Array:
    """Backward of :func:`dropout_forward`, a diagonal linear map: dx = dy · mask / (1 − p).

    Parameters
    ----------
    dy : array, any shape
        Cotangent of the output.
    mask, p
        As in the forward.

    Returns
    -------
    dx : array, the shape of dy
    """
    _check("dropout_backward", mask, p, dy=dy)
    return dy * mask * _scale(p)


def _scale(p: float) -> float:
    return 0.0 if p == 1 else float(1 / (1 - p))


def _check(where: str, mask: Array, p: float, **arrays: Array) -> None:
    check_float_dtypes(where, **arrays)
    check_unit_interval(where, "p", p)
    dtype = getattr(mask, "dtype", type(mask).__name__)
    if getattr(dtype, "kind", None) != "b":
        raise DtypeError(f"{where}: mask must be a boolean array (True keeps), got {dtype}")
    check_same_shape(where, mask=mask, **arrays)
