"""The linear map y = x Wᵀ + b, forward and backward."""

from __future__ import annotations

import math

from refkd.dispatch import Array, kernel
from refkd.errors import ShapeError, check_float_dtypes
from refkd.ops.moments import row_sum

__all__ = ["linear_backward", "linear_forward"]


@kernel
def linear_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """Apply y = x Wᵀ + b to the last axis.

    Parameters
    ----------
    x : array, shape (..., in)
    weight : array, shape (out, in)
    bias : array, shape (out,), or None

    Returns
    -------
    y : array, shape (..., out)

    Raises
    ------
    ShapeError, DtypeError
        If the arguments do not fit together.
    """
    check_float_dtypes("linear_forward", x=x, weight=weight, bias=bias)
    _check("linear_forward", x, weight)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(
            f"linear_forward: bias must have shape ({weight.shape[0]},) to match weight "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    # One matrix product over all leading axes: a stack of small ones is far slower.
    y = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ weight.T
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


@kernel
def linear_backward(
    dy: Array, x: Array, weight: Array, *, need_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """Backward of :func:`linear_forward`.

    Parameters
    ----------
    dy : array, shape (..., out)
    x : array, shape (..., in)
    weight : array, shape (out, in)
    need_dx : bool
        False skips the product for dx, and dx is None: the first layer of a network.

    Returns
    -------
    dx : array, shape (..., in), or None
    dweight : array, shape (out, in)
    dbias : array, shape (out,)

    Notes
    -----
    y_no = Σ_i x_ni W_oi + b_o, so with n running over all leading axes::

        dx_ni = Σ_o dy_no W_oi      dW_oi = Σ_n dy_no x_ni      db_o = Σ_n dy_no
    """
    check_float_dtypes("linear_backward", dy=dy, x=x, weight=weight)
    _check("linear_backward", x, weight)
    if tuple(dy.shape) != (*x.shape[:-1], weight.shape[0]):
        raise ShapeError(
            f"linear_backward: dy must have shape {(*x.shape[:-1], weight.shape[0])}, "
            f"got {tuple(dy.shape)}"
        )
    rows = math.prod(x.shape[:-1])
    dy2d = dy.reshape(rows, dy.shape[-1])
    dweight = dy2d.T @ x.reshape(rows, x.shape[-1])
    dbias = row_sum(dy2d)
    dx = (dy2d @ weight).reshape(x.shape) if need_dx else None
    return dx, dweight, dbias


def _check(where: str, x: Array, weight: Array) -> None:
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"{where}: expected x (..., in) and weight (out, in) with the same in, "
            f"got x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        )
