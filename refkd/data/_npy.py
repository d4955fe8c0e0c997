"""Opening ``.npy`` and ``.npz`` files: headers first, values when asked, nothing unpickled.

NumPy's own loader trusts the file: it may unpickle, and it allocates whatever a
header asks for. Here a header is parsed and checked against the bytes that are
there, so a caller sees dtypes and shapes, and the memory they add up to, before
it reads a value.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from refkd.data._files import CHUNK_BYTES, read_exactly
from refkd.errors import DataError

__all__ = ["NpyStream", "open_archive", "open_member", "open_npy"]

_END_RECORD_BYTES = 22  # at the end of a zip file without a comment


@dataclass(frozen=True)
class NpyStream:
    """An ``.npy`` stream that stands at its first value."""

    stream: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """The whole array, in native byte order."""
        return self._read_values(self.shape, "F" if self.fortran_order else "C")

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The array as (first row, block) pairs, blocks of whole rows of about CHUNK_BYTES."""
        rows, row_bytes = self.shape[0], self.nbytes // self.shape[0]
        step = max(1, CHUNK_BYTES // row_bytes)
        whole = self.read() if self.fortran_order else None
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            if whole is None:
                yield start, self._read_values((stop - start, *self.shape[1:]), "C")
            else:
                yield start, whole[start:stop]

    def _read_values(self, shape: tuple[int, ...], order: Literal["C", "F"]) -> NDArray[Any]:
        data = read_exactly(self.stream, math.prod(shape) * self.dtype.itemsize)
        array = data.view(self.dtype).reshape(shape, order=order)
        native = self.dtype.newbyteorder("=")
        return array if self.dtype == native else array.byteswap(inplace=True).view(native)


def open_npy(stream: Any, size: int) -> NpyStream:
    """Parse the header of an ``.npy`` stream of ``size`` bytes."""
    with _parsing("an .npy array"):
        version = npy_format.read_magic(stream)
        # Later versions serve structured dtypes, and their headers may be 4 GB long.
        if version != (1, 0):
            raise DataError(f"npy format {version} is for structured arrays; save plain ones")
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(stream)
        header_bytes = stream.tell()
    if dtype.kind == "O":
        raise DataError(
            "holds Python objects, which would have to be unpickled; refkd never does: "
            "save numbers or fixed-width text, for example numpy.array(names, dtype=str)"
        )
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0 or any(length < 1 for length in shape):
        raise DataError(f"expected a non-empty array of numbers or text, got {dtype} {shape}")
    npy = NpyStream(stream, dtype, shape, fortran_order)
    if npy.nbytes != size - header_bytes:
        raise DataError(
            f"truncated or corrupt: {dtype} {shape} takes {npy.nbytes} bytes, "
            f"{size - header_bytes} are there"
        )
    return npy


def open_archive(file: BinaryIO, stack: ExitStack) -> zipfile.ZipFile:
    """Open a zip file; ``stack`` closes it."""
    with _parsing("an .npz file"):
        short_reads = stack.enter_context(_ShortReads(file.fileno(), closefd=False))
        archive = stack.enter_context(zipfile.ZipFile(cast(BinaryIO, short_reads)))
        # A damaged directory can lose an entry, and with it the split; zipfile does not count.
        short_reads.seek(-_END_RECORD_BYTES, io.SEEK_END)
        end_record = short_reads.read()
        entries = int.from_bytes(end_record[10:12], "little")
        if end_record[:4] != b"PK\5\6" or entries != len(archive.infolist()):
            raise DataError("corrupt; its directory of arrays is damaged")
    return archive


def open_member(archive: zipfile.ZipFile, filename: str, stack: ExitStack) -> NpyStream:
    """Open one array of an archive, up to its values; ``stack`` closes it."""
    try:
        with _parsing("an .npz file"):
            entry = archive.getinfo(filename)
            # The other methods of zip give no way to bound what one read unpacks.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError("compressed in a way that numpy.savez never uses")
            stream = stack.enter_context(archive.open(entry))
        return open_npy(stream, entry.file_size)
    except DataError as error:
        raise DataError(f"{filename}: {error}") from error.__cause__


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # On damaged bytes zipfile and numpy let through struct, index, syntax, encoding, token,
    # recursion errors and more; the list differs from one Python to the next.
    except Exception as error:
        raise DataError(f"not {what}, or a corrupt one ({error})") from error


class _ShortReads(io.FileIO):
    """A file that refuses long reads, so that zipfile cannot swallow a huge directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = CHUNK_BYTES + 1 if size is None or size < 0 else min(size, CHUNK_BYTES + 1)
        data = super().read(wanted)
        if len(data) > CHUNK_BYTES:
            raise DataError("corrupt, or an archive of thousands of files")
        return data
