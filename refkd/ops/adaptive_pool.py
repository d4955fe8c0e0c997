"""Average pooling to a given output size, global pooling included, forward and backward."""

from __future__ import annotations

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError
from refkd.ops.taps import image_plane, input_plane, part, window_sizes
from refkd.ops.window import Size, as_pair

__all__ = ["adaptive_avg_pool2d_backward", "adaptive_avg_pool2d_forward"]


@kernel
def adaptive_avg_pool2d_forward(x: Array, *, output_size: Size) -> Array:
    """Return the means over windows that divide the image into ``output_size`` parts.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    output_size : int or (int, int)
        P and Q; 1 is global average pooling.

    Returns
    -------
    y : array, shape (N, C, P, Q)

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If x is no floating batch of images, or ``output_size`` is below 1.

    Notes
    -----
    Window p reads the rows from ⌊p·H/P⌋ up to, not including, ⌈(p + 1)·H/P⌉, and the columns
    likewise, as in PyTorch: where P does not divide H, neighbours may share a row.
    """
    plane = image_plane("adaptive_avg_pool2d_forward", "x", x)
    output = as_pair("adaptive_avg_pool2d_forward", "output_size", output_size, 1)
    xp = namespace(x)
    rows, columns = (_parts(*sizes) for sizes in zip(plane, output, strict=True))
    if output == (1, 1):
        # A product with ones: a sum over short rows takes several times as long.
        ones = xp.ones(plane[0] * plane[1], dtype=x.dtype)
        y = (x.reshape(*x.shape[:2], plane[0] * plane[1]) @ ones)[:, :, None, None]
    else:
        y = x
        for axis, entries in ((2, rows), (3, columns)):
            sums = [y[part(axis, e)].sum(axis=axis, keepdims=True) for e in entries]
            y = xp.concatenate(sums, axis=axis)
    y /= window_sizes(xp, y, *([e.stop - e.start for e in entries] for entries in (rows, columns)))
    return y


@kernel
def adaptive_avg_pool2d_backward(dy: Array, *, input_shape: tuple[int, int, int, int]) -> Array:
    """Backward of :func:`adaptive_avg_pool2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, C, P, Q)
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
    The transpose of a linear map: with m_pq entries in a window::

        dx_nchw = Σ_pq dy_ncpq / m_pq    over the windows that hold (h, w)
    """
    plane = input_plane("adaptive_avg_pool2d_backward", dy, input_shape)
    if 0 in dy.shape[2:]:
        raise ShapeError(
            f"adaptive_avg_pool2d_backward: dy must have windows, got shape {tuple(dy.shape)}"
        )
    output = (int(dy.shape[2]), int(dy.shape[3]))
    rows, columns = (_parts(*sizes) for sizes in zip(plane, output, strict=True))
    xp = namespace(dy)
    sizes = ([e.stop - e.start for e in entries] for entries in (rows, columns))
    dx = dy / window_sizes(xp, dy, *sizes)
    for axis, size, entries in ((3, plane[1], columns), (2, plane[0], rows)):
        share = dx
        dx = xp.zeros_like(share, shape=(*share.shape[:axis], size, *share.shape[axis + 1 :]))
        for i, e in enumerate(entries):
            dx[part(axis, e)] += share[part(axis, slice(i, i + 1))]
    return dx


def _parts(size: int, count: int) -> list[slice]:
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
