"""CIFAR-10 in its binary version: files of records, a label and the pixels of one image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import open_regular, read_exactly, reading
from refkd.data.dataset import Dataset, Normalization, Split
from refkd.errors import DataError

__all__ = ["load_cifar10"]

_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST_FILES = ("test_batch.bin",)
_NAMES_FILE = "batches.meta.txt"
_NAMES_BYTES = 1 << 12
_PICKLED_FILES = ("data_batch_1", "test_batch", "batches.meta")
_NUM_CLASSES = 10
_IMAGE_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
_WHERE = "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"


def load_cifar10(folder: str | os.PathLike[str]) -> Dataset:
    """Read CIFAR-10, or a data set in its layout with ten classes, from a folder.

    Parameters
    ----------
    folder : path-like
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin`` and
        ``batches.meta.txt``, each batch with any number of records.

    Returns
    -------
    Dataset
        uint8 images (N, 3, 32, 32), ``normalization`` 1/255, the published train and
        test splits, no validation split.

    Raises
    ------
    DataError
        If a file is missing, truncated or not what its name says, or the folder holds
        the pickled version, which is not read: unpickling runs what a file says.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the
    section "Binary version" of https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    folder = Path(folder)
    with reading(folder):
        _check_complete(folder)
    class_names = _read_names(folder / _NAMES_FILE)
    train, test = (
        _read_split([folder / name for name in names]) for names in (_TRAIN_FILES, _TEST_FILES)
    )
    return Dataset(
        name="cifar10",
        train=train,
        test=test,
        validation=None,
        num_classes=_NUM_CLASSES,
        class_names=class_names,
        normalization=Normalization(1 / 255),
    )


def _check_complete(folder: Path) -> None:
    names = (*_TRAIN_FILES, *_TEST_FILES, _NAMES_FILE)
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    if any((folder / name).is_file() for name in _PICKLED_FILES):
        raise DataError(
            f"holds the pickled version of CIFAR-10, which is not read, because unpickling runs "
            f"what a file says; get the binary version, {_WHERE}"
        )
    state = "lacks" if folder.is_dir() else "no such folder; it should hold"
    raise DataError(f"{state} {', '.join(missing)}; get {_WHERE}")


def _read_names(path: Path) -> tuple[str, ...]:
    with reading(path), open_regular(path) as file:
        content = file.read(_NAMES_BYTES)
        try:
            names = content.decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise DataError("is no text; it should hold the names of the classes") from error
        if len(names) != _NUM_CLASSES:
            raise DataError(f"expected the names of {_NUM_CLASSES} classes, got {len(names)}")
        return tuple(names)


def _read_split(paths: list[Path]) -> Split:
    """Read the batches into one array; no more than one of them is there twice."""
    counts = []
    for path in paths:
        with reading(path):
            counts.append(_count_records(path.stat().st_size))
    images = np.empty((sum(counts), *_IMAGE_SHAPE), np.uint8)
    labels = np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        _read_batch(path, images[start : start + count], labels[start : start + count])
        start += count
    return Split(images, labels)


def _count_records(nbytes: int) -> int:
    count, rest = divmod(nbytes, _RECORD_BYTES)
    if rest or not count:
        raise DataError(
            f"expected a whole number of records of {_RECORD_BYTES} bytes, got {nbytes} bytes; "
            f"the file is truncated or no batch of CIFAR-10"
        )
    return count


def _read_batch(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    with reading(path), open_regular(path) as file:
        records = read_exactly(file, len(images) * _RECORD_BYTES).reshape(-1, _RECORD_BYTES)
    labels[:] = records[:, 0]
    images[:] = records[:, 1:].reshape(images.shape)
    row = int(labels.argmax())
    if labels[row] >= _NUM_CLASSES:
        raise DataError(
            f"{path}: expected labels 0 to {_NUM_CLASSES - 1}, got {labels[row]} in record {row}"
        )
