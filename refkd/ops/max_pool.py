"""Max-pooling over two-dimensional windows, forward and backward."""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import DtypeError, check_same_shape
from refkd.ops.taps import Windows, image_plane, input_plane, part, pooling_windows
from refkd.ops.window import Size

__all__ = ["max_pool2d_backward", "max_pool2d_forward"]


@kernel
def max_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """Return the maximum of every window, and where it is.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    kernel_size : int or (int, int)
        kH and kW; one number stands for both, here and below.
    stride : int or (int, int), optional
        Distance of neighbouring windows; by default the kernel size.
    padding : int or (int, int)
        Entries of −∞ on either side, never chosen; at most half the kernel.
    dilation : int or (int, int)
        Distance of neighbouring entries of a window.
    ceil_mode : bool
        Whether a last window that hangs over the padded edge counts, as in PyTorch.

    Returns
    -------
    y : array, shape (N, C, P, Q)
    indices : int64 array, shape (N, C, P, Q)
        Position of the maximum in its plane of H · W entries, row by row: the first of
        equal ones. A window that has a NaN is NaN, and its index that of the last NaN.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If x is no floating batch of images, or the windows do not fit it.

    Notes
    -----
    With every entry outside of x left out::

        y_ncpq = max_ij x_nc(p·sH + i·dH − pH)(q·sW + j·dW − pW)

    First the maxima of each row's windows are taken, then those of the rows of each window:
    kW + kH comparisons in place of kW · kH. "The first" survives that order, being the
    leftmost in the topmost row, and so does "the last".
    """
    plane = image_plane("max_pool2d_forward", "x", x)
    rows, columns = pooling_windows(
        "max_pool2d_forward", plane, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode
    )
    xp = namespace(x)
    down, right = rows.dilation * plane[1], columns.dilation
    # A distance within a window is small: mostly it fits a byte, where an index takes eight.
    farthest = (rows.kernel - 1) * down + (columns.kernel - 1) * right
    integer = xp.uint8 if farthest < 2**8 else xp.uint16 if farthest < 2**16 else xp.int64
    distance = xp.broadcast_to(xp.zeros((), dtype=integer), x.shape)
    y, distance = _running_maximum(xp, x.real, distance, columns, right)
    y, distance = _running_maximum(xp, y, distance, rows, down)
    row, column = (
        xp.arange(w.count, dtype=xp.int64) * w.stride - w.padding for w in (rows, columns)
    )
    indices = distance + (row[:, None] * plane[1] + column)
    if xp.iscomplexobj(x):
        planes = x.reshape(*x.shape[:2], plane[0] * plane[1])
        positions = indices.reshape(*x.shape[:2], rows.count * columns.count)
        y = xp.take_along_axis(planes, positions, axis=2).reshape(indices.shape)
    return y, indices


@kernel
def max_pool2d_backward(
    dy: Array, indices: Array, *, input_shape: tuple[int, int, int, int]
) -> Array:
    """Backward of :func:`max_pool2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, C, P, Q)
    indices : int64 array, shape (N, C, P, Q)
        From the forward. Their values are not checked: one below 0 or from H · W up ends in
        another plane, or in an IndexError.
    input_shape : (int, int, int, int)
        (N, C, H, W), the shape of x.

    Returns
    -------
    dx : array, shape (N, C, H, W)

    Raises
    ------
    ShapeError, DtypeError
        If the arguments do not fit together.

    Notes
    -----
    y_ncpq = x_nc(indices_ncpq) as long as no maximum changes its place, so that an entry
    collects what belongs to all the windows it is the maximum of::

        dx_nch = Σ_pq dy_ncpq [indices_ncpq = h]
    """
    height, width = input_plane("max_pool2d_backward", dy, input_shape)
    dtype = getattr(indices, "dtype", type(indices).__name__)
    if str(dtype) != "int64":
        raise DtypeError(f"max_pool2d_backward: indices must be an int64 array, got {dtype}")
    check_same_shape("max_pool2d_backward", dy=dy, indices=indices)
    xp = namespace(dy)
    batch, channels = int(dy.shape[0]), int(dy.shape[1])
    first = xp.arange(batch * channels, dtype=xp.int64) * (height * width)
    targets = indices + first.reshape(batch, channels, 1, 1)
    dx = xp.zeros(batch * channels * height * width, dtype=dy.dtype)
    xp.add.at(dx, targets.reshape(-1), dy.reshape(-1))
    return dx.reshape(batch, channels, height, width)


def _running_maximum(
    xp: Any, x: Array, distance: Array, windows: Windows, pitch: int
) -> tuple[Array, Array]:
    """Return the maxima of the windows along one axis, and how far from its start each is.

    ``distance`` is that of the entries of x so far, and every tap is ``pitch`` farther away.
    """
    axis = windows.axis
    shape = (*x.shape[:axis], windows.count, *x.shape[axis + 1 :])
    y = xp.empty_like(x, shape=shape)
    reached = xp.empty_like(y, dtype=distance.dtype)
    begun = windows.count
    for tap in windows.taps():
        values = x[part(axis, tap.entries)]
        away = distance[part(axis, tap.entries)] + tap.number * pitch
        # This is the first entry of some windows: of most for tap 0, then of those whose
        # start lies in the padding.
        count = begun - tap.windows.start
        opening = part(axis, slice(tap.windows.start, begun))
        y[opening] = values[part(axis, slice(count))]
        reached[opening] = away[part(axis, slice(count))]
        others = part(axis, slice(count, None))
        values, away = values[others], away[others]
        open_ = part(axis, slice(begun, tap.windows.stop))
        better = values > y[open_]
        better |= xp.isnan(values)
        xp.maximum(y[open_], values, out=y[open_])
        # Later taps are farther away, so that the last improvement is the largest distance.
        xp.maximum(reached[open_], away * better, out=reached[open_])
        begun = tap.windows.start
    return y, reached
