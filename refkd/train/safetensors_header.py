"""The header of a safetensors file: composed from arrays, and read with every check.

The header is JSON text that gives each tensor's dtype, shape and byte range, and free
metadata. The data that follows it is the business of ``safetensors.py``.
"""

from __future__ import annotations

import io
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from refkd.errors import CheckpointError

__all__ = [
    "STORED_DTYPES",
    "WIDENED_DTYPES",
    "Header",
    "TensorEntry",
    "by_falling_item_size",
    "compose_header",
    "read_header",
    "refuse",
]

MAX_HEADER = 100_000_000

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
_NAMES = {dtype: name for name, dtype in _NUMPY_DTYPES.items()}

WIDENED_DTYPES = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})
"""Formats NumPy lacks: read as integers and widened to float32, never written."""

STORED_DTYPES = _NUMPY_DTYPES | {
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}


class TensorEntry(NamedTuple):
    """One tensor of a header: its dtype's name, its shape, and its range in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes
    ----------
    file : str
        Name of the file, for messages.
    raw : bytes
        The length and the JSON text as stored: everything before the data.
    tensors : dict of str to TensorEntry
        In the order of the JSON text.
    metadata : dict of str to str
    """

    file: str
    raw: bytes
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def refuse(file: str, reason: object, cause: Exception | None = None) -> NoReturn:
    """Raise the CheckpointError that says why ``file`` cannot be read."""
    raise CheckpointError(
        f"{file}: no valid safetensors file: {reason}; restore it from a copy or save it again"
    ) from cause


def by_falling_item_size(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """The order of the tensors in the data, which aligns each of them in the file."""
    return sorted(arrays, key=lambda name: -arrays[name].itemsize)


def compose_header(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON text, padded with spaces to a multiple of 8 bytes.

    Raises
    ------
    CheckpointError
        If an array, a name or the metadata cannot be stored.
    """
    try:
        _check_arrays(arrays)
        _check_metadata(dict(metadata))
        _check_names([*arrays, *metadata])
        ranges, begin = {}, 0
        for name in by_falling_item_size(arrays):
            ranges[name] = [begin, begin := begin + arrays[name].nbytes]
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        for name, array in arrays.items():
            dtype = _NAMES[array.dtype.newbyteorder("<")]
            header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": ranges[name]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        _check_cost(text)
    except ValueError as error:
        raise CheckpointError(f"safetensors: cannot be stored: {error}") from error
    return len(text).to_bytes(8, "little") + text


def read_header(stream: io.BufferedIOBase, size: int, file: str) -> Header:
    """Read and check the header of a file of ``size`` bytes.

    Raises
    ------
    CheckpointError
        If the header is not valid, or does not describe exactly the data that follows.
    """
    try:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError(f"expected at least 8 bytes, got {len(prefix)}")
        length, available = int.from_bytes(prefix, "little"), min(MAX_HEADER, size - 8)
        if length > available:
            raise ValueError(f"expected a header of at most {available} bytes, got {length}")
        text = stream.read(length)
        _check_cost(text)
        tensors, metadata = _parse(text)
        _check_ranges(tensors, size - 8 - length)
    except (ValueError, RecursionError) as error:
        refuse(file, error, error)
    return Header(file, prefix + text, tensors, metadata)


def _parse(text: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if text[:1] != b"{":
        raise ValueError("expected a header that starts with '{'")
    header = json.loads(text.decode(), object_pairs_hook=_unique_keys, parse_int=_natural_number)
    metadata = header.pop("__metadata__", {})
    _check_metadata(metadata)
    _check_names([*header, *metadata])
    return {name: _tensor_entry(name, entry) for name, entry in header.items()}, metadata


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the header has the key {key[:200]!r} twice")
        found[key] = value
    return found


def _natural_number(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"expected no negative number, got {text[:40]}")
    return int(text)


def _tensor_entry(name: str, entry: object) -> TensorEntry:
    where = f"tensor {name[:200]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORED_DTYPES:
        known = ", ".join(STORED_DTYPES)
        raise ValueError(f"{where}: expected a dtype of {known}; got {reprlib.repr(dtype)}")
    for numbers in (shape, offsets):
        # type() and not isinstance(): true and false are no numbers.
        if not isinstance(numbers, list) or any(type(n) is not int for n in numbers):
            raise ValueError(f"{where}: expected a list of integers, got {reprlib.repr(numbers)}")
    if len(offsets) != 2:
        raise ValueError(f"{where}: expected 2 data_offsets, got {len(offsets)}")
    # NumPy counts an axis of length 0 as 1 when it checks that a shape is addressable.
    if len(shape) > 64 or 8 * math.prod(max(n, 1) for n in shape) >= 2**63:
        raise ValueError(f"{where}: shape {reprlib.repr(shape)} is too large for an array")
    nbytes = math.prod(shape) * STORED_DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"{where}: {dtype} of shape {reprlib.repr(shape)} takes {nbytes} bytes, "
            f"its data_offsets are {reprlib.repr(offsets)}"
        )
    return TensorEntry(dtype, tuple(shape), *offsets)


def _check_ranges(tensors: dict[str, TensorEntry], size: int) -> None:
    """Require ranges that follow each other from 0 to the end of the data."""
    ranges = sorted((entry.begin, entry.end) for entry in tensors.values())
    for (_, end), (begin, _) in pairwise([(0, 0), *ranges, (size, size)]):
        if begin != end:
            fault = "unused bytes" if begin > end else "an overlap, or missing bytes,"
            raise ValueError(f"expected ranges that cover the data once, got {fault} at {end}")


def _check_arrays(arrays: Mapping[str, object]) -> None:
    for name, array in arrays.items():
        if name == "__metadata__":
            raise ValueError(
                "'__metadata__' is reserved by the format; give the array another name"
            )
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name!r} must be a NumPy array, got {type(array).__name__}")
        if array.dtype.newbyteorder("<") not in _NAMES:
            known = ", ".join(map(str, _NAMES))
            raise ValueError(f"{name!r} must have a dtype of {known}; got {array.dtype}")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict):
        raise ValueError(f"expected metadata as text by name, got {reprlib.repr(metadata)}")
    for value in metadata.values():
        if not isinstance(value, str):
            raise ValueError(f"expected metadata as text, got {reprlib.repr(value)}; use json")
        value.encode()  # a lone surrogate is no text, and raises a ValueError


def _check_names(names: Iterable[object]) -> None:
    for name in names:
        if not isinstance(name, str) or "\0" in name:
            raise ValueError(f"expected a name of text without NUL, got {reprlib.repr(name)}")
        name.encode()


def _check_cost(text: bytes) -> None:
    """Refuse a header that would take far more memory as Python objects than as text.

    Measured over the worst headers known: at most 126 bytes for each of the characters
    counted here, and 3 times the text, 10 times once it has an escape or leaves ASCII.
    The bound keeps the whole under 4 times the text plus 56 MB: 25,000 empty tensors.
    """
    if len(text) > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, got {len(text)}")
    characters = sum(map(text.count, (b"{", b"[", b",", b":")))
    growth = 3 if text.isascii() and b"\\" not in text else 11
    if 160 * characters + growth * len(text) > 4 * len(text) + 56_000_000:
        raise ValueError(
            f"its header of {len(text)} bytes would take too much memory to decode; "
            f"expected fewer tensors or less metadata"
        )
