"""What the readers share: one bound on memory, one way to name the file in an error.

A reader raises `DataError` with the reason alone and wraps its body in
`reading`, which adds the file's name.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from refkd.errors import DataError

__all__ = ["CHUNK_BYTES", "memory_limit", "open_regular", "read_exactly", "reading"]

CHUNK_BYTES = 1 << 18
_ALLOWANCE_BYTES = 60_000_000  # of the 64 MB promised; the rest is for working buffers


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading ``path`` can raise into a DataError that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__
    except EOFError as error:
        raise DataError(f"{path}: truncated; the compressed data end too early") from error
    except (zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: corrupt ({error})") from error
    except OSError as error:  # a bad gzip stream is one, too
        raise DataError(f"{path}: {error.strerror or f'corrupt ({error})'}") from error


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a folder, pipe or device is a DataError."""
    if not path.is_file():
        raise DataError("not a regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        yield file


def memory_limit(file: BinaryIO) -> int:
    """Bytes a reader may allocate for the content of ``file``: 4 times its size + 60 MB."""
    return 4 * os.fstat(file.fileno()).st_size + _ALLOWANCE_BYTES


def read_exactly(stream: Any, nbytes: int) -> NDArray[np.uint8]:
    """Read ``nbytes`` bytes of a stream that has ``readinto``, or raise DataError."""
    buffer = np.empty(nbytes, np.uint8)
    view = buffer.data
    filled = 0
    while filled < nbytes:
        received = stream.readinto(view[filled : filled + CHUNK_BYTES])
        if not received:
            raise DataError(f"truncated: expected {nbytes} bytes of data, got {filled}")
        filled += received
    return buffer
