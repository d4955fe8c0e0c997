"""Arrays as pictures a browser shows: which arrays are images, their pixels, and PNG.

NumPy and zlib only: an image needs no imaging library to be looked at.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_pixels", "data_url", "is_image", "png", "shrunk"]

Pixels = NDArray[np.uint8]

_COLOUR_TYPES = {1: 0, 3: 2}  # PNG's, by the number of channels: grey, red-green-blue


def is_image(shape: Sequence[int]) -> bool:
    """Whether arrays of this shape are shown: (H, W), or (C, H, W) of one or three channels."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in _COLOUR_TYPES)


def as_pixels(images: NDArray[Any], scale: float) -> tuple[Pixels, bool]:
    """Return images as they are shown, 0 dark and 255 bright, and whether they are stretched.

    Parameters
    ----------
    images : array, shape (N, H, W) or (N, C, H, W), uint8 or floating
    scale : float
        Of the data set's normalisation. Images times it are usually in [0, 1], and are
        shown so; otherwise each one is stretched from its least value to its greatest.

    Returns
    -------
    pixels : array of uint8, the shape of ``images``
    stretched : bool
    """
    values = images.reshape(len(images), math.prod(images.shape[1:])) * np.float64(scale)
    stretched = bool((values < 0).any() or (values > 1 + 1e-6).any())
    if stretched:
        values -= values.min(axis=1, keepdims=True)
        most = values.max(axis=1, keepdims=True)
        values /= np.where(most > 0, most, 1.0)
    pixels = np.rint(255 * values).astype(np.uint8)
    return pixels.reshape(images.shape), stretched


def shrunk(pixels: Pixels, most: int) -> Pixels:
    """Average blocks of pixels until neither side is longer than ``most``.

    Parameters
    ----------
    pixels : array of uint8, shape (H, W) or (C, H, W)
    most : int

    Returns
    -------
    array of uint8
        Both sides are divided by the same whole number, which leaves off the rest.
    """
    *channels, height, width = pixels.shape
    factor = -(-max(height, width) // most)
    tall, wide = min(factor, height), min(factor, width)
    kept = pixels[..., : height // tall * tall, : width // wide * wide]
    blocks = kept.reshape(*channels, height // tall, tall, width // wide, wide)
    averages: Pixels = np.rint(blocks.mean(axis=(-3, -1))).astype(np.uint8)
    return averages


def png(pixels: Pixels) -> bytes:
    """Return a PNG file.

    Parameters
    ----------
    pixels : array of uint8, shape (H, W) or (C, H, W) with C of 1 or 3

    Notes
    -----
    Every row is stored as its difference from the one above (filter type 2, which does
    photographs a third of their size).

    References
    ----------
    W3C: Portable Network Graphics (PNG) Specification, 2003.
    """
    planes = pixels[None] if pixels.ndim == 2 else pixels
    channels, height, width = planes.shape
    scanlines = np.moveaxis(planes, 0, -1).reshape(height, width * channels)
    filtered = np.full((height, 1 + width * channels), 2, np.uint8)
    filtered[:, 1:] = np.diff(scanlines, axis=0, prepend=np.uint8(0))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def data_url(pixels: Pixels) -> str:
    """Return the PNG file as a ``data:`` URL, which a page carries within itself."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
