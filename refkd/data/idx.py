"""IDX, the format of MNIST: a reader for one file, and for a folder of the four.

IDX is two zero bytes, a dtype code, the number of dimensions, each dimension as
a big-endian uint32, then the values in C order, big-endian. The reader takes
plain and gzip files and tells them apart by their first bytes.
"""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import memory_limit, open_regular, read_exactly, reading
from refkd.data.dataset import Dataset, Normalization, Split
from refkd.errors import DataError

__all__ = ["load_mnist", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DIMENSIONS = 64  # NumPy's own limit


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an IDX file, plain or gzip.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    array
        Of the file's shape; uint8, int8, int16, int32, float32 or float64 in
        native byte order.

    Raises
    ------
    DataError
        If the file is missing, corrupt, truncated or too long, has a wrong magic
        number or a zero dimension, or is a gzip file that asks for more than 4
        times its size + 60 MB of memory (decompress it first).

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
    section "File formats for the MNIST database".
    """
    path = Path(path)
    with reading(path), open_regular(path) as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=file) as stream:
                advice = "if the header is right, decompress the file first"
                return _read_array(stream, memory_limit(file), advice)
        size = os.fstat(file.fileno()).st_size
        return _read_array(file, size, "the file is truncated or its header is wrong")


def load_mnist(folder: str | os.PathLike[str]) -> Dataset:
    """Read MNIST, or a data set in its layout with ten classes, from a folder.

    Parameters
    ----------
    folder : path-like
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or
        with ``.gz``; ``train-images.idx3-ubyte`` and the like will do.

    Returns
    -------
    Dataset
        uint8 images to be scaled by 1/255, the published train and test splits,
        no validation split.

    Raises
    ------
    DataError
        If a file is missing or not what its name says, or images and labels do
        not match.
    """
    folder = Path(folder)
    files = _find_files(folder)
    images = {split: read_idx(files[split, "images"]) for split in ("train", "t10k")}
    labels = {split: read_idx(files[split, "labels"]) for split in ("train", "t10k")}
    with reading(folder):
        return Dataset(
            name="mnist",
            train=_pair("train", images["train"], labels["train"]),
            test=_pair("t10k", images["t10k"], labels["t10k"]),
            validation=None,
            num_classes=10,
            class_names=tuple("0123456789"),
            normalization=Normalization(1 / 255),
        )


def _find_files(folder: Path) -> dict[tuple[str, str], Path]:
    found, missing = {}, []
    with reading(folder):
        for split in ("train", "t10k"):
            for kind, extension in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte")):
                names = [f"{split}-{kind}{mark}{extension}" for mark in "-."]
                paths = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
                path = next(filter(Path.is_file, paths), None)
                if path is None:
                    missing.append(names[0])
                else:
                    found[split, kind] = path
        if missing:
            raise DataError(
                f"{'lacks' if folder.is_dir() else 'no such folder; it should hold'} "
                f"{', '.join(missing)} (with or without .gz; train-images.idx3-ubyte and the like "
                f"will do); get them with: refkd data fetch mnist"
            )
    return found


def _pair(split: str, images: NDArray[Any], labels: NDArray[Any]) -> Split:
    for kind, array, ndim in (("images", images, 3), ("labels", labels, 1)):
        if array.ndim != ndim or array.dtype != np.uint8:
            raise DataError(
                f"the {split}-{kind} file should hold uint8 values in {ndim} dimensions, "
                f"got {array.dtype} {array.shape}"
            )
    if len(images) != len(labels):
        raise DataError(
            f"the {split}-images file has {len(images)} images, the {split}-labels file "
            f"{len(labels)} labels; they do not belong together"
        )
    return Split(images, labels)


def _read_array(stream: Any, limit: int, advice: str) -> NDArray[Any]:
    dtype, shape = _read_header(stream)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > limit:
        raise DataError(
            f"its header {shape} {dtype.name} asks for {nbytes} bytes, "
            f"more than the limit of {limit}; {advice}"
        )
    data = read_exactly(stream, nbytes)
    # Asking for one byte more also makes gzip verify its checksum.
    if stream.read(1):
        raise DataError(f"trailing bytes after the {nbytes} that its header {shape} asks for")
    array = data.view(dtype).reshape(shape)
    native = dtype.newbyteorder("=")
    return array if dtype == native else array.byteswap(inplace=True).view(native)


def _read_header(stream: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"truncated: expected a magic number of 4 bytes, got {len(magic)}")
    code, ndim = magic[2], magic[3]
    if magic[:2] != b"\0\0" or code not in _DTYPES or not 1 <= ndim <= _MAX_DIMENSIONS:
        raise DataError(
            f"wrong magic number {magic.hex()}, not an IDX file; "
            f"images of MNIST begin with 00000803, labels with 00000801"
        )
    dimensions = stream.read(4 * ndim)
    if len(dimensions) < 4 * ndim:
        raise DataError(f"truncated: expected {ndim} dimensions, the header ends before")
    shape = tuple(np.frombuffer(dimensions, ">u4").tolist())
    if 0 in shape:
        raise DataError(f"empty: its header says shape {shape}")
    return np.dtype(_DTYPES[code]), shape
