"""Where refkd meets Pillow: decoding an image file to RGB, and resizing pixels.

Pillow picks a decoder by what a file holds, among dozens, and warns about metadata;
here a file is JPEG or PNG or refused, and metadata are read for the orientation only.
"""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import open_regular, reading
from refkd.errors import DataError, import_extra

__all__ = ["MAX_PIXELS", "MAX_SIDE", "decode", "require_pillow", "resize"]

MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE**2

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EXIF_PREFIX = b"Exif\0\0"
_EXIF_ORIENTATION = 0x0112
_EXIF_SHORT = 3
# By the value of the Exif tag: what turns the stored pixels upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@functools.cache
def require_pillow() -> Any:
    """Return ``PIL.Image``.

    Raises
    ------
    MissingExtra
        If Pillow is not installed.
    """
    return import_extra("PIL.Image", "data", "reading or resizing images")


def decode(path: Path) -> Any:
    """Decode a JPEG or PNG file to an upright RGB image of Pillow, at its native size.

    Transparent pixels are put on white; 16-bit values keep their high byte; of an
    animation the first picture counts; colour profiles are ignored.

    Raises
    ------
    DataError
        If the file is missing, truncated, neither JPEG nor PNG, cannot be decoded, or
        has more than `MAX_PIXELS` pixels; the message names it.
    MissingExtra
        If Pillow is not installed.
    """
    require_pillow()
    with reading(path), open_regular(path) as file:
        content = file.read()
        opener = _opener(content)
        try:
            # From memory: a file's read() allocates as much as a damaged length asks for.
            image = opener(io.BytesIO(content))
            width, height = image.size
            if width * height <= MAX_PIXELS:
                image.load()
                return _in_rgb(_upright(image))
        # On bytes that are no image Pillow raises errors of a dozen kinds, and promises none.
        except Exception as error:
            raise DataError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
        raise DataError(
            f"has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded; "
            f"shrink it"
        )


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to a square bilinearly, with antialiasing where the image shrinks.

    Parameters
    ----------
    image : (C, h, w) uint8 array
    size : int

    Returns
    -------
    (C, size, size) uint8 array
    """
    if image.shape[1:] == (size, size):
        return image
    pillow = require_pillow()
    # Three channels are an RGB image to Pillow; any other number is resized one by one.
    pictures = [image.transpose(1, 2, 0)] if len(image) == 3 else list(image)
    bilinear = pillow.Resampling.BILINEAR
    resized = [
        np.asarray(pillow.fromarray(np.ascontiguousarray(p)).resize((size, size), bilinear))
        for p in pictures
    ]
    return resized[0].transpose(2, 0, 1) if len(image) == 3 else np.stack(resized)


def _opener(content: bytes) -> Any:
    if content.startswith(_JPEG_MAGIC):
        return _jpeg_opener()
    if content.startswith(_PNG_MAGIC):
        return import_extra("PIL.PngImagePlugin", "data", "reading images").PngImageFile
    raise DataError("empty" if not content else "is neither JPEG nor PNG, whatever its name says")


@functools.cache
def _jpeg_opener() -> Any:
    jpeg = import_extra("PIL.JpegImagePlugin", "data", "reading images")
    # Pillow looks for a resolution in the Exif data, and warns where they are damaged.
    return type("_Jpeg", (jpeg.JpegImageFile,), {"getexif": _refuse_to_parse})


def _refuse_to_parse(image: Any) -> NoReturn:
    raise ValueError("the resolution is not needed")


def _upright(image: Any) -> Any:
    method = _UPRIGHT.get(_orientation(image.info.get("exif", b"")))
    if method is None:
        return image
    return image.transpose(getattr(require_pillow().Transpose, method))


def _orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, from Exif data; 1 where they are damaged or lack it."""
    tiff = exif.removeprefix(_EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "<")
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, offset + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION and kind == _EXIF_SHORT:
                return int(value)
    except struct.error:
        pass
    return 1


def _in_rgb(image: Any) -> Any:
    pillow = require_pillow()
    if image.mode.startswith("I"):  # 16-bit grey, in an integer mode that Pillow would clip
        image = _of_high_bytes(image)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, "white")
        image = pillow.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_high_bytes(image: Any) -> Any:
    pillow = require_pillow()
    values = np.asarray(image)
    grey = pillow.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    # Only the pixels that have all 16 bits of the transparent grey are transparent.
    opacity = (values != image.info["transparency"]) * np.uint8(255)
    return pillow.merge("LA", (grey, pillow.fromarray(opacity)))
