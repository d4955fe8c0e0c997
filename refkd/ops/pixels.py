"""Stored images become what a network takes. The data sets that hold them are elsewhere."""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import DtypeError, ShapeError

__all__ = ["pixels_to_float"]


@kernel(pair=None, reason="reads data; nothing that is learnt lies before it")
def pixels_to_float(
    pixels: Array, *, scale: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Array:
    """Return (pixels · scale − mean) / std, channel by channel.

    Parameters
    ----------
    pixels : array, shape (B, ...) or (B, C, ...), uint8 or floating
    scale : float
        Brings pixels to the range that ``mean`` and ``std`` are given in.
    mean, std : tuple of float
        C numbers, or one for all channels; a mean of 0 and a deviation of 1 cost nothing.
    dtype : float32 or float64
        Dtype of the result, in which every step is rounded.

    Returns
    -------
    array of ``dtype``, the shape and layout of ``pixels``
        Fresh.

    Raises
    ------
    ShapeError, DtypeError
        If a dtype is another, or ``mean`` or ``std`` has neither one number nor C.
    """
    where = "pixels_to_float"
    _check_pixels(where, pixels, mean=mean, std=std)
    x = pixels.astype(dtype)
    if x.dtype.char not in "fd":
        raise DtypeError(f"{where}: dtype must be float32 or float64, got {x.dtype}")
    x *= scale
    if any(mean):
        x -= _per_channel(mean, x)
    if any(value != 1 for value in std):
        x /= _per_channel(std, x)
    return x


def _per_channel(values: tuple[float, ...], x: Array) -> Array:
    shape = (1,) * x.ndim if len(values) == 1 else (1, -1, *(1,) * (x.ndim - 2))
    return namespace(x).asarray(values, dtype=x.dtype).reshape(shape)


def _check_pixels(where: str, pixels: Array, **statistics: tuple[float, ...]) -> None:
    dtype = getattr(pixels, "dtype", type(pixels).__name__)
    if getattr(dtype, "kind", None) != "f" and getattr(dtype, "char", None) != "B":
        raise DtypeError(f"{where}: pixels must be an array, uint8 or floating, got {dtype}")
    channels = int(pixels.shape[1]) if pixels.ndim > 1 else 1
    for name, values in statistics.items():
        if len(values) not in (1, channels):
            raise ShapeError(
                f"{where}: {name} must have one number, or one for each of the {channels} "
                f"channels of pixels {tuple(pixels.shape)}, got {len(values)}"
            )
