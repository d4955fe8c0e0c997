"""Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

Each direction is one matrix product with *patches*: the values that the kernel meets at
each output position, as columns (im2col). A thread makes them for a few images at a time,
about 4 MB of them, or those of one image where it has more. So the memory they take is
bounded by the number of threads times that, whatever the batch.
"""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError, check_float_dtypes
from refkd.ops.im2col import (
    add_windows,
    check_groups,
    check_output,
    conv_sizes,
    in_chunks,
    windows,
)
from refkd.ops.moments import batch_sum, spatial_sum
from refkd.ops.window import Size, as_pair, check_images

__all__ = [
    "conv2d_backward",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "conv2d_forward",
]


@kernel
def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Array:
    """Return y_nkpq = b_k + Σ_cij W_kcij x_n,c,p·s+i·d−z,q·s+j·d−z, with x zero outside.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    weight : array, shape (K, C / groups, kH, kW)
    bias : array, shape (K,), or None
    stride, padding, dilation : int or (int, int)
        s, the step between windows; z, the zeros on either side; d, the distance between
        two taps of the kernel. A pair is (vertical, horizontal).
    groups : int
        Divides C and K: the outputs of a group see the inputs of that group. C groups make
        a depthwise convolution.

    Returns
    -------
    y : array, shape (N, K, P, Q)
        P = ⌊(H + 2z − d(kH − 1) − 1)/s⌋ + 1, and Q likewise.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together, or the output would be empty.
    """
    where = "conv2d_forward"
    check_float_dtypes(where, x=x, weight=weight, bias=bias)
    g = conv_sizes(where, x.shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None and tuple(bias.shape) != (g.outputs,):
        raise ShapeError(
            f"{where}: bias must have shape ({g.outputs},) to match weight "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    xp = namespace(x)
    matrix = weight.reshape(g.groups, g.outputs // g.groups, g.taps)
    shift = None if bias is None else bias.reshape(g.groups, g.outputs // g.groups, 1)
    dtype = xp.result_type(*(a for a in (x, weight, bias) if a is not None))
    y = xp.empty((g.batch, g.groups, g.outputs // g.groups, g.positions), dtype)

    def fill(rows: slice) -> None:
        columns = windows(xp, x[rows], g).transpose(0, 1, 4, 5, 2, 3)
        xp.matmul(matrix, columns.reshape(-1, g.groups, g.taps, g.positions), out=y[rows])
        if shift is not None:
            y[rows] += shift

    for _ in in_chunks(xp, fill, g, dtype.itemsize):
        pass
    return y.reshape(g.batch, g.outputs, *g.output_size)


@kernel
def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Backward of :func:`conv2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, K, P, Q)
    x, weight, stride, padding, dilation, groups
        As in the forward.
    need_dx : bool
        False skips dx, which is then None: the first layer of a network.

    Returns
    -------
    dx : array, shape (N, C, H, W), or None
    dweight : array, shape (K, C / groups, kH, kW)
    dbias : array, shape (K,)

    Notes
    -----
    y is linear in x, in W and in b. Collecting what each of their entries was
    multiplied with::

        dx_ncuv = Σ_kij W_kcij dy_nkpq    over p·s + i·d − z = u and q·s + j·d − z = v
        dW_kcij = Σ_npq dy_nkpq x_n,c,p·s+i·d−z,q·s+j·d−z
        db_k    = Σ_npq dy_nkpq

    They are :func:`conv2d_backward_input`, :func:`conv2d_backward_weight`, and a sum.
    """
    where = "conv2d_backward"
    check_float_dtypes(where, dy=dy, x=x, weight=weight)
    g = conv_sizes(where, x.shape, weight.shape, stride, padding, dilation, groups)
    check_output(where, dy, g)
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    dweight = conv2d_backward_weight(dy, x, kernel_size=g.kernel_size, **options)
    dbias = batch_sum(spatial_sum(dy))
    if not need_dx:
        return None, dweight, dbias
    dx = conv2d_backward_input(dy, weight, input_size=g.input_size, **options)
    return dx, dweight, dbias


@kernel(pair=None, reason="the part of conv2d_backward that belongs to x")
def conv2d_backward_input(
    dy: Array,
    weight: Array,
    *,
    input_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Array:
    """Return dx of :func:`conv2d_forward`; also known as the transposed convolution.

    Parameters
    ----------
    dy : array, shape (N, K, P, Q)
    weight : array, shape (K, C / groups, kH, kW)
    input_size : int or (int, int)
        H and W.
    stride, padding, dilation, groups
        As in the forward.

    Returns
    -------
    dx : array, shape (N, C, H, W)

    Notes
    -----
    The forward is y = W · patches(x) for each image. Its adjoint multiplies dy with Wᵀ,
    and adds each value of the resulting columns where its patch had taken it from.
    """
    where = "conv2d_backward_input"
    check_float_dtypes(where, dy=dy, weight=weight)
    if dy.ndim != 4 or weight.ndim != 4:
        raise ShapeError(
            f"{where}: expected dy (N, K, P, Q) and weight (K, C / groups, kH, kW), got "
            f"{tuple(dy.shape)} and {tuple(weight.shape)}"
        )
    check_groups(where, groups, dy=dy.shape[1])
    size = as_pair(where, "input_size", input_size, 0)
    x_shape = (dy.shape[0], weight.shape[1] * groups, *size)
    g = conv_sizes(where, x_shape, weight.shape, stride, padding, dilation, groups)
    check_output(where, dy, g)
    xp = namespace(dy)
    transposed = weight.reshape(g.groups, g.outputs // g.groups, g.taps).swapaxes(1, 2)
    dy = dy.reshape(g.batch, g.groups, g.outputs // g.groups, g.positions)
    dtype = xp.result_type(dy, weight)
    dx = xp.empty((g.batch, g.inputs, *g.input_size), dtype)

    def fill(rows: slice) -> None:
        columns = xp.matmul(transposed, dy[rows])
        columns = columns.reshape(-1, g.inputs, *g.kernel_size, *g.output_size)
        dx[rows] = add_windows(xp, columns, g)

    for _ in in_chunks(xp, fill, g, dtype.itemsize):
        pass
    return dx


@kernel(pair=None, reason="the part of conv2d_backward that belongs to weight")
def conv2d_backward_weight(
    dy: Array,
    x: Array,
    *,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Array:
    """Return dW of :func:`conv2d_forward`.

    Parameters
    ----------
    dy : array, shape (N, K, P, Q)
    x : array, shape (N, C, H, W)
    kernel_size : int or (int, int)
        kH and kW.
    stride, padding, dilation, groups
        As in the forward.

    Returns
    -------
    dweight : array, shape (K, C / groups, kH, kW)

    Notes
    -----
    From y = W · patches(x) for each image, dW = Σ_n dy_n · patches(x_n)ᵀ. The images of
    a chunk share one matrix product, as long as their positions are many.
    """
    where = "conv2d_backward_weight"
    check_float_dtypes(where, dy=dy, x=x)
    check_images(where, "dy", dy)
    check_images(where, "x", x)
    check_groups(where, groups, x=x.shape[1], dy=dy.shape[1])
    taps = as_pair(where, "kernel_size", kernel_size, 1)
    weight_shape = (dy.shape[1], x.shape[1] // groups, *taps)
    g = conv_sizes(where, x.shape, weight_shape, stride, padding, dilation, groups)
    check_output(where, dy, g)
    xp = namespace(dy)
    dy = dy.reshape(g.batch, g.groups, g.outputs // g.groups, g.positions)
    dtype = xp.result_type(dy, x)
    dweight = xp.zeros((g.groups, g.outputs // g.groups, g.taps), dtype)

    def of_chunk(rows: slice) -> Array:
        columns = windows(xp, x[rows], g).transpose(1, 4, 5, 0, 2, 3)
        columns = columns.reshape(g.groups, g.taps, -1)
        dy_rows = dy[rows].transpose(1, 2, 0, 3).reshape(g.groups, g.outputs // g.groups, -1)
        return xp.matmul(dy_rows, columns.swapaxes(1, 2))

    for part in in_chunks(xp, of_chunk, g, dtype.itemsize):
        dweight += part
    return dweight.reshape(weight_shape)
