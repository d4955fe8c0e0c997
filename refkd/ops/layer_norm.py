"""Layer norm over the last axis, forward and backward."""

from __future__ import annotations

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError, check_float_dtypes, check_positive, check_same_shape
from refkd.ops.moments import centred, check_fits, row_sum

__all__ = ["layer_norm_backward", "layer_norm_forward"]


@kernel
def layer_norm_forward(
    x: Array, weight: Array, bias: Array, *, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Return y = (x − μ)/√(v + ε) · weight + bias, μ and v of every row by itself.

    Parameters
    ----------
    x : array, shape (..., D)
    weight, bias : array, shape (D,)
    eps : float, > 0

    Returns
    -------
    y : array, the shape of x
    mean, rstd : array, shape (...)
        μ, and 1/√(v + ε) with the biased variance v; for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together, D is 0, or ``eps`` is not positive.

    Notes
    -----
    The variance takes two passes, corrected as in :func:`~refkd.ops.batch_norm_forward`.

    References
    ----------
    Ba, Kiros, Hinton: Layer Normalization, arXiv:1607.06450.
    """
    where = "layer_norm_forward"
    check_float_dtypes(where, x=x, weight=weight, bias=bias)
    width = _check(where, x, weight=weight, bias=bias)
    check_positive(where, "eps", eps)
    xp = namespace(x)
    rough_mean = x.sum(axis=-1) / width
    y = centred(x, rough_mean[..., None], weight, bias)
    shift = y.sum(axis=-1) / width
    y -= shift[..., None]
    rstd = 1 / xp.sqrt(_row_dot(y, y) / width + float(eps))
    y *= rstd[..., None]
    y *= weight
    y += bias
    return y, rough_mean + shift, rstd


@kernel
def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """Backward of :func:`layer_norm_forward`; its statistics have no cotangents.

    Parameters
    ----------
    dy, x : array, shape (..., D)
    weight : array, shape (D,)
    mean, rstd : array, shape (...)
        From the forward.

    Returns
    -------
    dx : array, the shape of x
    dweight, dbias : array, shape (D,)

    Notes
    -----
    Within a row ∂x̂_i/∂x_j = r (δ_ij − 1/D − x̂_i x̂_j/D), as derived in
    :func:`~refkd.ops.batch_norm_backward` for the values of a channel. Here every value
    has a weight of its own, and with n over the rows::

        dx_j = r (w_j dy_j − Σ_i w_i dy_i/D − x̂_j Σ_i w_i dy_i x̂_i/D)

        dw_i = Σ_n dy_ni x̂_ni      db_i = Σ_n dy_ni
    """
    where = "layer_norm_backward"
    check_float_dtypes(where, dy=dy, x=x, weight=weight, mean=mean, rstd=rstd)
    check_same_shape(where, dy=dy, x=x)
    width = _check(where, x, weight=weight)
    check_fits(where, x, tuple(x.shape[:-1]), mean=mean, rstd=rstd)
    xp = namespace(x)
    x_hat = centred(x, mean[..., None], dy, weight, rstd)
    x_hat -= (x_hat.sum(axis=-1) / width)[..., None]  # the given mean is rounded
    x_hat *= rstd[..., None]
    dx = dy * x_hat
    dweight, dbias = row_sum(dx), row_sum(dy)
    slope, level = (dx @ weight) / width, (dy @ weight) / width
    dx = xp.multiply(dy, weight, out=dx)
    x_hat *= slope[..., None]
    dx -= x_hat
    dx -= level[..., None]
    dx *= rstd[..., None]
    return dx, dweight, dbias


def _row_dot(a: Array, b: Array) -> Array:
    return namespace(a).einsum("...d,...d->...", a, b)


def _check(where: str, x: Array, **vectors: Array) -> int:
    """Return D."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{where}: x must have shape (..., D), D > 0, got {tuple(x.shape)}")
    width = int(x.shape[-1])
    check_fits(where, x, (width,), **vectors)
    return width
