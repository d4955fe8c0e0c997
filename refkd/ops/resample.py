"""Enlarging images by whole factors, forward and backward; pooling makes them smaller."""

from __future__ import annotations

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError
from refkd.ops.taps import image_plane, part
from refkd.ops.window import Size, as_pair

__all__ = ["upsample_nearest2d_backward", "upsample_nearest2d_forward"]

_ROWS, _COLUMNS = 2, 3


@kernel
def upsample_nearest2d_forward(x: Array, *, scale_factor: Size) -> Array:
    """Return x with every pixel repeated: sH times down the column, sW times along the row.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    scale_factor : int or (int, int)
        sH and sW, at least 1; one number stands for both.

    Returns
    -------
    y : array, shape (N, C, H·sH, W·sW)
        In the layout of x.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If x is no floating batch of images, or ``scale_factor`` no such numbers.

    Notes
    -----
    ::

        y_ncpq = x_nc⌊p/sH⌋⌊q/sW⌋

    as PyTorch's ``nearest`` and ``nearest-exact``, which are the same for whole factors.
    """
    where = "upsample_nearest2d_forward"
    image_plane(where, "x", x)
    rows, columns = as_pair(where, "scale_factor", scale_factor, 1)
    return _repeated(_repeated(x, _COLUMNS, columns), _ROWS, rows)


@kernel
def upsample_nearest2d_backward(dy: Array, *, scale_factor: Size) -> Array:
    """Backward of :func:`upsample_nearest2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, C, H·sH, W·sW)
    scale_factor : int or (int, int)
        As in the forward.

    Returns
    -------
    dx : array, shape (N, C, H, W)
        In the layout of dy.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If dy is no floating batch of images whose sides ``scale_factor`` divides.

    Notes
    -----
    A linear map, so dx is its transpose applied to dy: a pixel collects what comes back to
    its copies::

        dx_nchw = Σ_ij dy_nc(h·sH + i)(w·sW + j)      0 <= i < sH, 0 <= j < sW

    down the columns first, then along what is left of the rows.
    """
    where = "upsample_nearest2d_backward"
    height, width = image_plane(where, "dy", dy)
    rows, columns = as_pair(where, "scale_factor", scale_factor, 1)
    if height % rows or width % columns:
        raise ShapeError(
            f"{where}: dy must have images whose height is a multiple of {rows} and whose width "
            f"is one of {columns}, got {tuple(dy.shape)}"
        )
    return _block_sums(_block_sums(dy, _ROWS, rows), _COLUMNS, columns)


def _repeated(x: Array, axis: int, factor: int) -> Array:
    """Return x with every entry along one axis repeated, in its layout (x.repeat keeps none)."""
    shape = (*x.shape[:axis], int(x.shape[axis]) * factor, *x.shape[axis + 1 :])
    y = namespace(x).empty_like(x, shape=shape)
    for i in range(factor):
        y[part(axis, slice(i, None, factor))] = x
    return y


def _block_sums(dy: Array, axis: int, factor: int) -> Array:
    """Return the transpose of :func:`_repeated` applied to dy."""
    dx = dy[part(axis, slice(0, None, factor))].copy(order="K")
    for i in range(1, factor):
        dx += dy[part(axis, slice(i, None, factor))]
    return dx
