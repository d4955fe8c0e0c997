"""The safetensors file format, read and written with NumPy alone.

A file is an 8-byte little-endian header length, a JSON header naming the dtype,
shape and byte range of every tensor, and the tensors' bytes. The reader trusts
nothing: any bytes whatsoever give arrays or a CheckpointError, and take at most
4 times the file's size plus 64 MB of memory. The checks of the header are in
``safetensors_header.py``; digests and crash-safe writing are in ``checkpoint.py``
and ``atomic.py``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import CheckpointError
from refkd.train.safetensors_header import (
    STORED_DTYPES,
    WIDENED_DTYPES,
    Header,
    by_falling_item_size,
    compose_header,
    read_header,
    refuse,
)

__all__ = ["open_safetensors", "parse", "read_arrays", "read_safetensors", "serialize"]

_BLOCK = 1 << 20


def serialize(
    arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, chunk by chunk: the header, then each tensor.

    Parameters
    ----------
    arrays : mapping of str to array
        Any shape, strides and byte order. Bool, integers of 8 to 64 bits, float16,
        float32, float64 and complex64.
    metadata : mapping of str to str, optional

    Returns
    -------
    iterator of bytes or memoryview
        Contiguous little-endian arrays are passed on without a copy, others are copied
        one at a time.

    Raises
    ------
    CheckpointError
        At once, for values that are no arrays of such a dtype, names that are no text or
        hold a NUL, metadata that is no text, and headers too large to be read back.

    Notes
    -----
    The header keeps the order of ``arrays``. The data goes by falling item size, so
    that every tensor is aligned in the file.
    """
    header = compose_header(arrays, metadata or {})
    names = by_falling_item_size(arrays)
    return chain([header], (_little_endian_bytes(arrays[name]) for name in names))


def parse(buffer: bytes, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and metadata of a safetensors file held in memory.

    Parameters
    ----------
    buffer : bytes
        The whole file.
    name : str
        The file's name, for messages.

    Returns
    -------
    arrays, metadata
        As `read_safetensors` returns them.

    Raises
    ------
    CheckpointError
        If the bytes are no valid safetensors file.
    """
    stream = io.BytesIO(buffer)
    header = read_header(stream, len(buffer), name)
    return read_arrays(stream, header), header.metadata


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and metadata of a safetensors file.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    arrays : dict of str to array
        Fresh, writable, C-ordered, in the header's order. BF16, F8_E4M3 and F8_E5M2
        come as float32, which holds each of their values exactly.
    metadata : dict of str to str

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable or no valid safetensors file.
    """
    with open_safetensors(path) as (stream, header):
        return read_arrays(stream, header), header.metadata


@contextmanager
def open_safetensors(
    path: str | os.PathLike[str],
) -> Iterator[tuple[io.BufferedIOBase, Header]]:
    """Open a file, check its header, and give both; the stream stands at the data.

    Raises
    ------
    CheckpointError
        As `read_safetensors`, and for any OSError inside the ``with`` block.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            yield stream, read_header(stream, os.fstat(stream.fileno()).st_size, file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; check the path") from error
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror or error}); expected a readable file, "
            f"check the path, its permissions and the disk"
        ) from error


def read_arrays(
    stream: io.BufferedIOBase,
    header: Header,
    observe: Callable[[memoryview], object] | None = None,
) -> dict[str, NDArray[Any]]:
    """Read every tensor from a stream that stands at the first byte of the data.

    Parameters
    ----------
    stream : binary stream
    header : Header
    observe : callable, optional
        Is given all the data as it is read, in blocks of bytes and in the file's order.

    Returns
    -------
    dict of str to array
        As `read_safetensors`.

    Raises
    ------
    CheckpointError
        If the stream ends early or a BOOL is neither 0 nor 1.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in sorted(header.tensors.items(), key=lambda item: item[1][2:]):
        stored_dtype, widened = STORED_DTYPES[entry.dtype], entry.dtype in WIDENED_DTYPES
        array: NDArray[Any] = np.empty(entry.shape, np.float32 if widened else stored_dtype)
        flat = array.reshape(-1)
        step = _BLOCK // array.itemsize
        for start in range(0, flat.size, step):
            values = flat[start : start + step]
            stored = np.empty(values.size, stored_dtype) if widened else values
            block = stored.view(np.uint8)
            if stream.readinto(block.data) != block.size:
                refuse(header.file, "it ends before its data does")
            if observe is not None:
                observe(block.data)
            if widened:
                values[:] = _widen(stored, entry.dtype)
            elif entry.dtype == "BOOL" and block.max() > 1:
                refuse(header.file, f"BOOL tensor {name[:200]!r} holds bytes other than 0 and 1")
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return {name: arrays[name] for name in header.tensors}


def _widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The float32 values of bfloat16 or 8-bit floats given as integers."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    codes = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":
        table = (codes << 8).view(np.float16).astype(np.float32)
    else:
        # Sign, 4 exponent and 3 mantissa bits are set into a float16, whose exponent bias
        # is 15 and not 7. There is no infinity, and only all ones are NaN.
        half = ((codes & 0x80) << 8) | ((codes & 0x7F) << 7)
        table = half.view(np.float16).astype(np.float32) * np.float32(2**8)
        table[[0x7F, 0xFF]] = np.nan
    return np.asarray(table[stored])


def _little_endian_bytes(array: NDArray[Any]) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
