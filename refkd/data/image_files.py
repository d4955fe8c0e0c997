"""The images of a split as files that are decoded when they are asked for.

`ImageFiles` is indexed as an array of its images would be. Which files belong to a
data set is decided in ``image_folder``; decoding ahead of a training is in ``loader``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import CHUNK_BYTES, open_regular, reading
from refkd.data._pillow import MAX_SIDE, decode, require_pillow
from refkd.errors import ConfigError

__all__ = ["ImageFiles"]


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """JPEG and PNG files as uint8 images of one size, (N, 3, S, S) in shape.

    ``images[rows]`` decodes and resizes the images at ``rows`` (an integer, a slice,
    integers or a mask) and returns a fresh array, (3, S, S) for an integer. Nothing is
    kept in memory.

    Parameters
    ----------
    paths : tuple of Path
    size : int
        S. The whole image is resized to S x S, bilinearly with antialiasing, its
        aspect not kept and nothing cropped.

    Raises
    ------
    ConfigError
        On construction, if ``size`` is no integer from 1 to 8192.
    DataError
        On access, if a file has vanished or cannot be decoded.
    MissingExtra
        On access, if Pillow is not installed.

    Notes
    -----
    Every file becomes RGB: grey and palette images are expanded, CMYK ones converted
    without a colour profile, transparent pixels are put on white, and of 16-bit values
    the high byte is kept. Photographs are turned upright as their Exif orientation says.
    """

    paths: tuple[Path, ...]
    size: int

    def __post_init__(self) -> None:
        size = self.size
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIDE:
            raise ConfigError(
                f"ImageFiles: size must be an integer from 1 to {MAX_SIDE}, got {size!r}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, S, S)."""
        return len(self.paths), 3, self.size, self.size

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        chosen = self._rows(rows)
        images = np.empty((chosen.size, *self.shape[1:]), np.uint8)
        bilinear = require_pillow().Resampling.BILINEAR
        for image, row in zip(images, chosen.flat, strict=True):
            resized = decode(self.paths[row]).resize((self.size, self.size), bilinear)
            image[...] = np.asarray(resized).transpose(2, 0, 1)
        return images.reshape(*chosen.shape, *self.shape[1:])

    def original(self, row: int) -> NDArray[np.uint8]:
        """Decode the image at ``row`` at its native size: a fresh (3, h, w) array."""
        return np.array(decode(self.paths[row])).transpose(2, 0, 1)

    def subset(self, rows: Any) -> ImageFiles:
        """The images at ``rows``, in that order; nothing is decoded."""
        return ImageFiles(tuple(self.paths[row] for row in self._rows(rows).flat), self.size)

    def digest_into(self, digest: _Digest) -> None:
        """Feed S and the content of every file, in order, to a hashlib object.

        Raises
        ------
        DataError
            If a file cannot be read.
        """
        digest.update(f"size {self.size}".encode())
        for path in self.paths:
            with reading(path), open_regular(path) as file:
                digest.update(f"file {os.fstat(file.fileno()).st_size}".encode())
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)

    def _rows(self, rows: Any) -> NDArray[np.intp]:
        return np.asarray(np.arange(len(self.paths))[rows])
