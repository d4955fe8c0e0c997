"""Group norm over groups of channels of one example, forward and backward."""

from __future__ import annotations

import math

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import (
    ConfigError,
    ShapeError,
    check_float_dtypes,
    check_integer,
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

__all__ = ["group_norm_backward", "group_norm_forward"]


@kernel
def group_norm_forward(
    x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Return y = (x − μ)/√(v + ε) · weight + bias, μ and v of every group of every example.

    Parameters
    ----------
    x : array, shape (N, C) or (N, C, ...)
    weight, bias : array, shape (C,)
    num_groups : int, a divisor of C
        G: the channels are split into G runs of C/G. One group is layer norm over an
        example, C groups are instance norm.
    eps : float, > 0

    Returns
    -------
    y : array, the shape of x
    mean, rstd : array, shape (N, G)
        μ, and 1/√(v + ε) with the biased variance v; for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together, a group is empty, or ``eps`` is not positive.

    Notes
    -----
    The variance takes two passes, corrected as in :func:`~refkd.ops.batch_norm_forward`.

    References
    ----------
    Wu, He: Group Normalization, arXiv:1803.08494.
    """
    where = "group_norm_forward"
    check_float_dtypes(where, x=x, weight=weight, bias=bias)
    count = _check(where, x, num_groups, weight=weight, bias=bias)
    check_positive(where, "eps", eps)
    xp = namespace(x)
    rough_mean = _group_sum(spatial_sum(x), num_groups) / count
    y = centred(x, over_space(_per_channel(rough_mean, x), x), weight, bias)
    shift = _group_sum(spatial_sum(y), num_groups) / count
    var = _group_sum(spatial_dot(y, y), num_groups) / count - shift * shift
    var = xp.where(var.real < 0, 0, var)  # by a rounding, in a nearly constant group
    rstd = 1 / xp.sqrt(var + float(eps))
    scale = weight * _per_channel(rstd, x)
    y *= over_space(scale, x)
    y += over_space(bias - _per_channel(shift, x) * scale, x)
    return y, rough_mean + shift, rstd


@kernel
def group_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, num_groups: int
) -> tuple[Array, Array, Array]:
    """Backward of :func:`group_norm_forward`; its statistics have no cotangents.

    Parameters
    ----------
    dy, x : array, shape (N, C) or (N, C, ...)
    weight : array, shape (C,)
    mean, rstd : array, shape (N, G)
        From the forward.
    num_groups : int
        As in the forward.

    Returns
    -------
    dx : array, the shape of x
    dweight, dbias : array, shape (C,)

    Notes
    -----
    Within a group of M values ∂x̂_i/∂x_j = r (δ_ij − 1/M − x̂_i x̂_j/M), as derived in
    :func:`~refkd.ops.batch_norm_backward`. The weight of a value is that of its channel,
    so it stays inside the sums over the group::

        dx_j = r (w_j dy_j − Σ_i w_i dy_i/M − x̂_j Σ_i w_i dy_i x̂_i/M)

    while dw_c = Σ dy x̂ and db_c = Σ dy run over the batch and space. Both kinds of sum
    are made of the same sums over space, one for each example and channel.
    """
    where = "group_norm_backward"
    check_float_dtypes(where, dy=dy, x=x, weight=weight, mean=mean, rstd=rstd)
    check_same_shape(where, dy=dy, x=x)
    count = _check(where, x, num_groups, weight=weight)
    check_fits(where, x, (int(x.shape[0]), num_groups), mean=mean, rstd=rstd)
    xp = namespace(x)
    c = centred(x, over_space(_per_channel(mean, x), x), dy, weight, rstd)
    # As in batch norm: the given mean is rounded, what is left of Σ (x − μ) is taken out.
    shift = _per_channel(_group_sum(spatial_sum(c), num_groups) / count, x)
    r = _per_channel(rstd, x)
    dy_sum = spatial_sum(dy)
    dy_dot = r * (spatial_dot(dy, c) - shift * dy_sum)
    level = _per_channel(_group_sum(weight * dy_sum, num_groups) / count, x)
    slope = r * _per_channel(_group_sum(weight * dy_dot, num_groups) / count, x)
    dx = xp.multiply(dy, over_space(weight * r, x), out=xp.empty_like(c))
    c *= over_space(r * slope, x)
    dx -= c
    dx += over_space(r * (shift * slope - level), x)
    return dx, batch_sum(dy_dot), batch_sum(dy_sum)


def _group_sum(parts: Array, num_groups: int) -> Array:
    """Sum (N, C) over the channels of each group: (N, G)."""
    batch, channels = map(int, parts.shape)
    return parts.reshape(batch, num_groups, channels // num_groups).sum(axis=2)


def _per_channel(values: Array, x: Array) -> Array:
    """Repeat (N, G) for the channels of each group: (N, C)."""
    return values.repeat(int(x.shape[1]) // int(values.shape[1]), axis=1)


def _check(where: str, x: Array, num_groups: int, **vectors: Array) -> int:
    """Return the number of values in a group."""
    if x.ndim < 2:
        raise ShapeError(f"{where}: x must have shape (N, C, ...), got {tuple(x.shape)}")
    channels = int(x.shape[1])
    check_fits(where, x, (channels,), **vectors)
    check_integer(where, "num_groups", num_groups, 1)
    if channels % num_groups:
        raise ConfigError(
            f"{where}: num_groups must divide the {channels} channels of x {tuple(x.shape)}, "
            f"got {num_groups}"
        )
    count: int = channels // num_groups * math.prod(x.shape[2:])
    if count == 0:
        raise ShapeError(f"{where}: x {tuple(x.shape)} has no values to take the mean of")
    return count
