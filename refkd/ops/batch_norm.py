"""Batch norm over all axes but the channels', forward and backward.

The running statistics are the layer's: these kernels read them, and return others.
"""

from __future__ import annotations

import math

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import (
    ConfigError,
    ShapeError,
    check_float_dtypes,
    check_positive,
    check_same_shape,
)
from refkd.ops.moments import (
    batch_sum,
    centred,
    check_fits,
    over_space,
    spatial_dot,
    spatial_sum,
)

__all__ = [
    "batch_norm_backward",
    "batch_norm_backward_stepwise",
    "batch_norm_forward",
    "running_statistics",
]


@kernel
def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, Array]:
    """Return y = (x − μ)/√(v + ε) · weight + bias, channel by channel.

    Parameters
    ----------
    x : array, shape (N, C) or (N, C, ...)
    weight, bias : array, shape (C,)
    running_mean, running_var : array, shape (C,), or None
        μ and v (evaluation). None: the mean and the biased variance of the batch, over
        all axes but the channels' (training, or where no statistics are kept).
    eps : float, > 0

    Returns
    -------
    y : array, the shape of x
    mean, var, rstd : array, shape (C,)
        μ, v and 1/√(v + ε), for the backward and for the running statistics.

    Raises
    ------
    ShapeError
        If shapes do not fit together, or statistics are to be taken of a batch with
        fewer than two values per channel.
    DtypeError, ConfigError
        If dtypes are mixed, ``eps`` is not positive, or one running statistic is missing.

    Notes
    -----
    The variance takes two passes. The first finds the mean as m, up to rounding; the
    second measures, beside the squares, what m lacks: the mean d of x − m. Then::

        μ = m + d      v = mean((x − m)²) − d²

    Nothing cancels, as d is no more than the rounding of m: y is accurate even where |μ|
    exceeds √v by as much as the dtype of x can resolve.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, arXiv:1502.03167, algorithm 1; Chan, Golub,
    LeVeque: Algorithms for Computing the Sample Variance, The American Statistician 37
    (1983), 242-247 (the corrected two-pass algorithm).
    """
    where = "batch_norm_forward"
    statistics = {"running_mean": running_mean, "running_var": running_var}
    check_float_dtypes(where, x=x, weight=weight, bias=bias, **statistics)
    _check_shapes(where, x, weight=weight, bias=bias, **statistics)
    check_positive(where, "eps", eps)
    xp = namespace(x)
    if running_mean is None and running_var is None:
        count = _values_per_channel(where, x)
        rough_mean = batch_sum(spatial_sum(x)) / count
        y = centred(x, over_space(rough_mean, x), weight, bias)
        shift = batch_sum(spatial_sum(y)) / count
        mean = rough_mean + shift
        var = batch_sum(spatial_dot(y, y)) / count - shift * shift
        var = xp.where(var.real < 0, 0, var)  # by a rounding, in a nearly constant channel
    elif running_mean is not None and running_var is not None:
        mean, var = running_mean.copy(), running_var.copy()
        y = centred(x, over_space(mean, x), var, weight, bias)
        shift = 0.0
    else:
        raise ConfigError(
            f"{where}: running_mean and running_var must be given both (evaluation) or neither "
            f"(statistics of the batch), got one of them"
        )
    rstd = 1 / xp.sqrt(var + float(eps))
    scale = weight * rstd
    y *= over_space(scale, x)
    y += over_space(bias - shift * scale, x)
    return y, mean, var, rstd


@kernel
def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, batch_statistics: bool
) -> tuple[Array, Array, Array]:
    """Backward of :func:`batch_norm_forward`; its statistics have no cotangents.

    Parameters
    ----------
    dy, x : array, shape (N, C) or (N, C, ...)
    weight : array, shape (C,)
    mean, rstd : array, shape (C,)
        From the forward.
    batch_statistics : bool
        Whether they are functions of x (of this very batch), or constants.

    Returns
    -------
    dx : array, the shape of x
    dweight, dbias : array, shape (C,)

    Raises
    ------
    ShapeError, DtypeError
        As the forward.

    Notes
    -----
    With x̂ = (x − μ) r, r = (v + ε)^(−1/2), and sums over the M values of a channel::

        db = Σ dy      dw = Σ dy x̂

    For constant statistics, dx = w r dy. For those of the batch ∂μ/∂x_j = 1/M and
    ∂v/∂x_j = 2 (x_j − μ)/M (v depends on x through μ as well, but by Σ (x − μ) = 0)::

        ∂x̂_i/∂x_j = r (δ_ij − 1/M) − (x_i − μ) r³ (x_j − μ)/M = r (δ_ij − 1/M − x̂_i x̂_j/M)

        dx_j = w Σ_i dy_i ∂x̂_i/∂x_j = w r (dy_j − db/M − x̂_j dw/M)

    :func:`batch_norm_backward_stepwise` finds the same, node by node. As the mean that is
    given is rounded, Σ (x − μ) is not quite 0; what is left is taken out of x̂, since in dw
    it multiplies db, which may be larger than dw by a factor of √M and more.
    """
    where = "batch_norm_backward"
    check_float_dtypes(where, dy=dy, x=x, weight=weight, mean=mean, rstd=rstd)
    check_same_shape(where, dy=dy, x=x)
    _check_shapes(where, x, weight=weight, mean=mean, rstd=rstd)
    xp = namespace(x)
    dbias = batch_sum(spatial_sum(dy))
    dx = centred(x, over_space(mean, x), dy, weight, rstd)
    dweight = rstd * batch_sum(spatial_dot(dy, dx))
    if not batch_statistics:
        return xp.multiply(dy, over_space(weight * rstd, x), out=dx), dweight, dbias
    count = _values_per_channel(where, x)
    shift = batch_sum(spatial_sum(dx)) / count
    dweight = dweight - rstd * shift * dbias
    slope = rstd * dweight / count
    dx *= over_space(-slope, x)
    dx += dy
    dx += over_space(shift * slope - dbias / count, x)
    dx *= over_space(weight * rstd, x)
    return dx, dweight, dbias


def batch_norm_backward_stepwise(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """Backward of :func:`batch_norm_forward` with statistics of the batch, node by node.

    Finds what :func:`batch_norm_backward` does, more slowly: every line inverts the line of
    the forward that stands beside it. Its arguments are not checked.
    """

    def total(values: Array) -> Array:
        return batch_sum(spatial_sum(values))

    def spread(values: Array) -> Array:
        return over_space(values, x)

    count = math.prod(x.shape) // x.shape[1]
    c = x - spread(mean)
    x_hat = c * spread(rstd)

    dbias = total(dy)  # y = x̂ w + b
    dweight = total(dy * x_hat)
    dx_hat = dy * spread(weight)
    drstd = total(dx_hat * c)  # x̂ = c r
    dc = dx_hat * spread(rstd)
    dvar = -0.5 * rstd**3 * drstd  # r = (v + ε)^(−1/2)
    dsquare = spread(dvar / count)  # v = Σ s / M
    dc = dc + 2 * c * dsquare  # s = c²
    dmean = -total(dc)  # c = x − μ
    dx = dc + spread(dmean / count)  # μ = Σ x / M
    return dx, dweight, dbias


@kernel(pair=None, reason="statistics for evaluation; no gradient passes through them")
def running_statistics(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    var: Array,
    *,
    momentum: float,
    count: int,
) -> tuple[Array, Array]:
    """Return the running statistics after a batch, with its *unbiased* variance.

    Parameters
    ----------
    running_mean, running_var : array, shape (C,)
        Before the batch.
    mean, var : array, shape (C,)
        As :func:`batch_norm_forward` returns them.
    momentum : float
        Share of the batch.
    count : int, at least 2
        n, the values of a channel in the batch.

    Raises
    ------
    ShapeError, DtypeError
        If shapes differ or dtypes are mixed; ShapeError also for a count below 2.

    Notes
    -----
    As in PyTorch::

        running_mean ← (1 − momentum) running_mean + momentum mean
        running_var  ← (1 − momentum) running_var  + momentum var · n/(n − 1)
    """
    where = "running_statistics"
    statistics = {"running_mean": running_mean, "running_var": running_var}
    statistics |= {"mean": mean, "var": var}
    check_float_dtypes(where, **statistics)
    check_same_shape(where, **statistics)
    if count < 2:
        raise ShapeError(f"{where}: an unbiased variance takes a count of at least 2, got {count}")
    # In NumPy's float64 it would make float64 of what it multiplies.
    momentum = float(momentum)
    keep = 1 - momentum
    return (
        keep * running_mean + momentum * mean,
        keep * running_var + momentum * count / (count - 1) * var,
    )


def _values_per_channel(where: str, x: Array) -> int:
    count: int = int(x.shape[0]) * math.prod(x.shape[2:])
    if count < 2:
        raise ShapeError(
            f"{where}: statistics of the batch need at least 2 values per channel, but x "
            f"{tuple(x.shape)} has {count}; a single value equals its mean, so that y would be "
            f"bias whatever x is. Use a larger batch, or running statistics"
        )
    return count


def _check_shapes(where: str, x: Array, **vectors: Array | None) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{where}: x must have shape (N, C, ...), got {tuple(x.shape)}")
    check_fits(where, x, (int(x.shape[1]),), **vectors)
