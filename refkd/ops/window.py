"""Sizes of sliding windows, shared by convolution and pooling. No kernel is defined here."""

from __future__ import annotations

from typing import Any, TypeAlias

from refkd.dispatch import Array
from refkd.errors import ConfigError, ShapeError

__all__ = ["Pair", "Size", "as_image_shape", "as_pair", "check_images", "output_size"]

Pair: TypeAlias = tuple[int, int]
Size: TypeAlias = int | Pair


def as_pair(where: str, name: str, value: Size, least: int) -> Pair:
    """Return ``value``, one integer or a (vertical, horizontal) pair, as a pair.

    Raises
    ------
    ConfigError
        If it is neither, or below ``least``.
    """
    pair = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or isinstance(v, bool) for v in pair):
        raise ConfigError(
            f"{where}: {name} must be an integer or a pair (vertical, horizontal) of them, "
            f"got {value!r}"
        )
    if min(pair) < least:
        raise ConfigError(f"{where}: {name} must be at least {least}, got {value!r}")
    return pair


def output_size(
    where: str,
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    *,
    ceil_mode: bool = False,
) -> Pair:
    """Return how many windows fit along each axis, ⌊(n + 2p − d(k − 1) − 1)/s⌋ + 1.

    Parameters
    ----------
    where : str
        For the message.
    size, kernel, stride, padding, dilation : (int, int)
    ceil_mode : bool
        ⌈·⌉ instead of ⌊·⌋, but a last window that would begin in the padding after the
        input is left out, as in PyTorch.

    Raises
    ------
    ShapeError
        If the dilated kernel is larger than the padded input, by a stride in ceil mode.
    """
    counts = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        span = n + 2 * p - d * (k - 1) - 1
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        if count < 1:
            raise ShapeError(
                f"{where}: a kernel of {kernel} with dilation {dilation} does not fit into the "
                f"input {size} with padding {padding}; the output would be empty"
            )
        counts.append(count)
    return counts[0], counts[1]


def check_images(where: str, name: str, x: Array) -> None:
    """Raise ShapeError unless ``x`` is (N, C, H, W)."""
    if x.ndim != 4:
        raise ShapeError(
            f"{where}: {name} must be a batch of images (N, C, H, W), got shape {tuple(x.shape)}"
        )


def as_image_shape(where: str, name: str, shape: Any) -> tuple[int, int, int, int]:
    """Return ``shape``, that of a batch of images (N, C, H, W), as a tuple.

    Raises
    ------
    ShapeError
        If it is not four integers from 0 up.
    """
    given = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if len(given) != 4 or any(
        not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in given
    ):
        raise ShapeError(
            f"{where}: {name} must be the shape of a batch of images, four integers >= 0 "
            f"(N, C, H, W), got {shape!r}"
        )
    return given[0], given[1], given[2], given[3]
