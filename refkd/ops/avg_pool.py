"""Average pooling over two-dimensional windows, forward and backward."""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError
from refkd.ops.taps import (
    Windows,
    image_plane,
    input_plane,
    part,
    pooling_windows,
    window_sizes,
)
from refkd.ops.window import Size

__all__ = ["avg_pool2d_backward", "avg_pool2d_forward"]


@kernel
def avg_pool2d_forward(
    x: Array,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the mean of every window.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    kernel_size : int or (int, int)
        kH and kW; one number stands for both, here and below.
    stride : int or (int, int), optional
        Distance of neighbouring windows; by default the kernel size.
    padding : int or (int, int)
        Zeros on either side; at most half the kernel.
    ceil_mode : bool
        Whether a last window that hangs over the padded edge counts, as in PyTorch.
    count_include_pad : bool
        Whether a mean divides by the padding in its window, too; never by what is beyond.

    Returns
    -------
    y : array, shape (N, C, P, Q)

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If x is no floating batch of images, or the windows do not fit it.

    Notes
    -----
    With x = 0 outside, and m_pq the number of entries counted::

        y_ncpq = Σ_ij x_nc(p·sH + i − pH)(q·sW + j − pW) / m_pq

    The sums run down the columns first, then along what is left of the rows.
    """
    plane = image_plane("avg_pool2d_forward", "x", x)
    rows, columns = pooling_windows(
        "avg_pool2d_forward", plane, kernel_size, stride, padding, ceil_mode=ceil_mode
    )
    xp = namespace(x)
    y = _gathered(xp, _gathered(xp, x, rows), columns)
    y /= window_sizes(xp, y, *(w.lengths(padded=count_include_pad) for w in (rows, columns)))
    return y


@kernel
def avg_pool2d_backward(
    dy: Array,
    *,
    input_shape: tuple[int, int, int, int],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Backward of :func:`avg_pool2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, C, P, Q)
    input_shape : (int, int, int, int)
        (N, C, H, W), the shape of x.
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As in the forward.

    Returns
    -------
    dx : array, shape (N, C, H, W)

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together.

    Notes
    -----
    A linear map, so dx is its transpose applied to dy: every window spreads dy/m over the
    entries it has read::

        dx_nchw = Σ_ijpq dy_ncpq / m_pq [p·sH + i − pH = h] [q·sW + j − pW = w]

    along the rows first, then down the columns.
    """
    plane = input_plane("avg_pool2d_backward", dy, input_shape)
    rows, columns = pooling_windows(
        "avg_pool2d_backward", plane, kernel_size, stride, padding, ceil_mode=ceil_mode
    )
    if tuple(dy.shape[2:]) != (rows.count, columns.count):
        raise ShapeError(
            f"avg_pool2d_backward: images of {plane} have {(rows.count, columns.count)} windows, "
            f"got dy {tuple(dy.shape)}"
        )
    xp = namespace(dy)
    sizes = window_sizes(xp, dy, *(w.lengths(padded=count_include_pad) for w in (rows, columns)))
    share = dy / sizes
    return _spread(xp, _spread(xp, share, columns), rows)


def _gathered(xp: Any, x: Array, windows: Windows) -> Array:
    """Return the sum of each window along one axis."""
    axis = windows.axis
    y = xp.zeros_like(x, shape=(*x.shape[:axis], windows.count, *x.shape[axis + 1 :]))
    for tap in windows.taps():
        y[part(axis, tap.windows)] += x[part(axis, tap.entries)]
    return y


def _spread(xp: Any, dy: Array, windows: Windows) -> Array:
    """Return the transpose of :func:`_gathered` applied to dy."""
    axis = windows.axis
    dx = xp.zeros_like(dy, shape=(*dy.shape[:axis], windows.size, *dy.shape[axis + 1 :]))
    for tap in windows.taps():
        dx[part(axis, tap.entries)] += dy[part(axis, tap.windows)]
    return dx
