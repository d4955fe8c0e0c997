"""The shortcut without parameters around a residual block that halves the resolution.

It is option A of He et al. Option B, a strided 1×1 convolution, is no kernel of its own.
"""

from __future__ import annotations

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ConfigError, ShapeError, check_float_dtypes, check_integer
from refkd.ops.window import Pair, as_image_shape, check_images

__all__ = ["padded_shortcut_backward", "padded_shortcut_forward"]


@kernel
def padded_shortcut_forward(x: Array, *, stride: int, zeros: Pair) -> Array:
    """Return every ``stride``-th row and column of x, between channels of zeros.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    stride : int
    zeros : (int, int)
        How many channels of zeros come before and after those of x.

    Returns
    -------
    y : array, shape (N, before + C + after, ⌈H/stride⌉, ⌈W/stride⌉)
        In the layout of x.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If x is no batch of images, or stride or zeros no such numbers.

    References
    ----------
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385,
    §3.3, option A. Where among the channels the zeros go is left open there.
    """
    where = "padded_shortcut_forward"
    check_float_dtypes(where, x=x)
    check_images(where, "x", x)
    _check(where, stride, zeros)
    before, after = zeros
    n, c, h, w = x.shape
    y = namespace(x).zeros_like(x, shape=(n, before + c + after, -(-h // stride), -(-w // stride)))
    y[:, before : before + c] = x[:, :, ::stride, ::stride]
    return y


@kernel
def padded_shortcut_backward(
    dy: Array, *, input_shape: tuple[int, ...], stride: int, zeros: Pair
) -> Array:
    """Backward of :func:`padded_shortcut_forward`.

    Parameters
    ----------
    dy : array, shape (N, before + C + after, ⌈H/stride⌉, ⌈W/stride⌉)
    input_shape : (N, C, H, W)
        The shape of x.
    stride, zeros
        As in the forward.

    Returns
    -------
    dx : array, shape (N, C, H, W)
        In the layout of dy.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together.

    Notes
    -----
    y is x at the positions kept and constant elsewhere, so dx is dy at those positions,
    and zero where x was left out.
    """
    where = "padded_shortcut_backward"
    check_float_dtypes(where, dy=dy)
    _check(where, stride, zeros)
    before, after = zeros
    n, c, h, w = shape = as_image_shape(where, "input_shape", input_shape)
    expected = (n, before + c + after, -(-h // stride), -(-w // stride))
    if tuple(dy.shape) != expected:
        raise ShapeError(
            f"{where}: dy must have shape {expected} for x {shape}, stride {stride} "
            f"and zeros {zeros}, got {tuple(dy.shape)}"
        )
    dx = namespace(dy).zeros_like(dy, shape=shape)
    dx[:, :, ::stride, ::stride] = dy[:, before : before + c]
    return dx


def _check(where: str, stride: int, zeros: Pair) -> None:
    check_integer(where, "stride", stride, 1)
    if not isinstance(zeros, (tuple, list)) or len(zeros) != 2:
        raise ConfigError(
            f"{where}: zeros must be two integers, the channels of zeros before and after "
            f"those of x, got {zeros!r}"
        )
    for place, count in zip(("before", "after"), zeros, strict=True):
        check_integer(where, f"zeros {place} the channels of x", count, 0)
