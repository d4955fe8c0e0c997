"""A user's own data set: one ``.npz`` file, and a teacher's logits as ``.npy``.

What the arrays must be and how rows become splits is here; how the files are
opened without trusting them is in ``_npy``.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import memory_limit, open_regular, reading
from refkd.data._npy import NpyStream, open_archive, open_member, open_npy
from refkd.data.dataset import Dataset, Normalization, Split
from refkd.errors import DataError, suggest

__all__ = ["load_npz", "read_teacher_logits"]

_SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
_KEYS = ("x", "y", "split", "teacher_logits")
_MAX_CLASSES = 1 << 16
_ROW_OVERHEAD_BYTES = 32  # int64 labels; sorting for the default split; masks


def load_npz(
    path: str | os.PathLike[str], teacher_logits: str | os.PathLike[str] | None = None
) -> Dataset:
    """Read a data set from an ``.npz`` file of ``numpy.savez`` or ``savez_compressed``.

    Parameters
    ----------
    path : path-like
        Its arrays: ``x`` (N, ...) images, uint8 (scaled by 1/255) or floating
        (as they are); ``y`` (N,) integer labels from 0; optionally ``split`` (N,)
        of ``"train"``, ``"validation"``, ``"test"`` or of 0, 1, 2 in that order;
        optionally ``teacher_logits`` (N, C), floating.
    teacher_logits : path-like, optional
        An ``.npy`` file of (N, C) logits, row i for image i of ``x``; taken
        instead of those in ``path``.

    Returns
    -------
    Dataset
        C classes where there are teacher logits, else the largest label + 1.
        Without ``split`` a fifth of the rows, at least one, is the test split:
        those that come first when the rows are sorted by the raw 64-bit output
        of PCG64 with seed 0, the same on every machine and NumPy version.

    Raises
    ------
    DataError
        If a file is missing, corrupt or truncated, holds Python objects or
        arrays other than the above, or would take more than 4 times its size
        + 60 MB of memory.
    """
    path = Path(path)
    given_logits = None if teacher_logits is None else read_teacher_logits(teacher_logits)
    with reading(path), ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        archive = open_archive(file, stack)
        _check_names([filename.removesuffix(".npy") for filename in archive.namelist()])
        members = {
            filename.removesuffix(".npy"): open_member(archive, filename, stack)
            for filename in archive.namelist()
        }
        _check_headers(members)
        _check_memory(members, memory_limit(file))
        split_of_row = (
            _named_splits(members["split"].read())
            if "split" in members
            else _default_splits(members["y"].shape[0])
        )
        labels = members["y"].read()
        logits = given_logits
        if logits is None and "teacher_logits" in members:
            logits = _widened(members["teacher_logits"].read())
        num_classes = _check_classes(labels, logits)
        images = _read_by_split(members["x"], split_of_row)
        train, validation, test = (
            _split(index, split_of_row, images[index], labels, logits) for index in range(3)
        )
        if train is None or test is None:
            raise DataError("expected at least one row to train on and one to test on")
        return Dataset(
            name=path.stem,
            train=train,
            test=test,
            validation=validation,
            num_classes=num_classes,
            class_names=tuple(map(str, range(num_classes))),
            normalization=Normalization(1 / 255 if train.images.dtype == np.uint8 else 1.0),
        )


def read_teacher_logits(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a teacher's logits from an ``.npy`` file.

    Parameters
    ----------
    path : path-like
        Holds an (N, C) array of floating dtype.

    Returns
    -------
    (N, C) array
        float32, or float64 if the file holds float64.

    Raises
    ------
    DataError
        If the file is missing, corrupt, truncated, too long or holds anything
        else.
    """
    path = Path(path)
    with reading(path), open_regular(path) as file:
        npy = open_npy(file, os.fstat(file.fileno()).st_size)
        _check_header("teacher_logits", npy)
        return _widened(npy.read())


def _check_names(names: list[str]) -> None:
    known = "x (images) and y (labels), optionally split and teacher_logits"
    for name in names:
        if name not in _KEYS:
            others = [other for other in names if other not in _KEYS]
            raise DataError(
                f"unknown array {', '.join(map(repr, others[:5]))}"
                f"{suggest(name.lower(), _KEYS)}; expected {known}"
            )
    if len(set(names)) < len(names):
        raise DataError(f"an array is there twice: {', '.join(names)}")
    for name in ("x", "y"):
        if name not in names:
            raise DataError(f"has no array {name!r}; expected {known}")


# What each array is, kinds of dtype, numbers of dimensions (64 is NumPy's limit).
_EXPECTED = {
    "x": ("uint8 or floating values of shape (N, ...)", "uf", range(2, 65)),
    "y": ("integers of shape (N,)", "iu", range(1, 2)),
    "split": (f"{', '.join(_SPLITS)} or 0, 1, 2, of shape (N,)", "iuSU", range(1, 2)),
    "teacher_logits": ("floating values of shape (N, C)", "f", range(2, 3)),
}


def _check_header(name: str, npy: NpyStream) -> None:
    what, kinds, dimensions = _EXPECTED[name]
    wide_integer = name == "x" and npy.dtype.kind == "u" and npy.dtype.itemsize > 1
    if npy.dtype.kind not in kinds or wide_integer or len(npy.shape) not in dimensions:
        raise DataError(f"{name}: expected {what}, got {npy.dtype} {npy.shape}")


def _check_headers(members: dict[str, NpyStream]) -> None:
    for name, npy in members.items():
        _check_header(name, npy)
    rows = {name: npy.shape[0] for name, npy in members.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DataError(f"expected as many rows in each array, got {counts}")


def _check_memory(members: dict[str, NpyStream], limit: int) -> None:
    x = members["x"]
    block_of_one_row = x.nbytes // x.shape[0]
    needed = x.shape[0] * _ROW_OVERHEAD_BYTES + 3 * block_of_one_row
    for name, npy in members.items():
        # x goes to its splits block by block as it is read, unless its rows are interleaved;
        # logits are read whole, split, and float16 ones widened.
        copies = {"x": 1 + npy.fortran_order, "teacher_logits": 4}.get(name, 1)
        needed += copies * npy.nbytes
    if needed > limit:
        raise DataError(
            f"would take {needed} bytes of memory, more than the {limit} that a file of this size "
            f"may; save it with numpy.savez, uncompressed and in C order"
        )


def _named_splits(split: NDArray[Any]) -> NDArray[np.int8]:
    """Index into _SPLITS of each row."""
    split_of_row = np.full(len(split), -1, np.int8)
    for index, name in enumerate(_SPLITS):
        value = {"U": name, "S": name.encode()}.get(split.dtype.kind, index)
        split_of_row[split == value] = index
    row = int(split_of_row.argmin())
    if split_of_row[row] < 0:
        raise DataError(
            f"split: expected {', '.join(map(repr, _SPLITS))} or 0, 1, 2, "
            f"got {_text(split[row : row + 1])} in row {row}"
        )
    return split_of_row


def _text(value: NDArray[Any]) -> str:
    if value.dtype.kind != "U":
        return repr(value.item())[:40]
    # NumPy cannot make a string of code points that are no Unicode; a decoder can replace them.
    codec = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"
    return repr(value.tobytes().decode(codec, errors="replace").rstrip("\0"))[:40]


def _default_splits(rows: int) -> NDArray[np.int8]:
    split_of_row = np.full(rows, _TRAIN, np.int8)
    order = np.argsort(np.random.PCG64(0).random_raw(rows), kind="stable")
    split_of_row[order[: max(1, rows // 5)]] = _TEST
    return split_of_row


def _check_classes(labels: NDArray[Any], logits: NDArray[Any] | None) -> int:
    """Check the labels against the number of classes, and return that number."""
    if logits is not None and len(logits) != len(labels):
        raise DataError(f"expected {len(labels)} rows of teacher logits as in y, got {len(logits)}")
    num_classes = min(int(labels.max()) + 1, _MAX_CLASSES) if logits is None else logits.shape[1]
    for row in (int(labels.argmin()), int(labels.argmax())):
        if not 0 <= labels[row] < num_classes:
            raise DataError(
                f"y: expected labels 0 to C - 1 for C classes, C = {num_classes} at most, got "
                f"{labels[row]} in row {row}; number them with "
                f"numpy.unique(y, return_inverse=True)"
            )
    return num_classes


def _read_by_split(x: NpyStream, split_of_row: NDArray[np.int8]) -> list[NDArray[Any]]:
    dtype = x.dtype.newbyteorder("=")
    counts = np.bincount(split_of_row, minlength=len(_SPLITS))
    images = [np.empty((count, *x.shape[1:]), dtype) for count in counts]
    filled = [0, 0, 0]
    for start, block in x.blocks():
        for index in range(len(_SPLITS)):
            rows = block[split_of_row[start : start + len(block)] == index]
            images[index][filled[index] : filled[index] + len(rows)] = rows
            filled[index] += len(rows)
    return images


def _split(
    index: int,
    split_of_row: NDArray[np.int8],
    images: NDArray[Any],
    labels: NDArray[Any],
    logits: NDArray[Any] | None,
) -> Split | None:
    if not len(images):
        return None
    chosen = split_of_row == index
    try:
        return Split(images, labels[chosen], None if logits is None else logits[chosen])
    except DataError as error:
        raise DataError(f"{_SPLITS[index]} rows: {error}") from error


def _widened(logits: NDArray[Any]) -> NDArray[Any]:
    """float16, a storage format, as float32; anything wider as it is."""
    return logits.astype(np.result_type(logits, np.float32), copy=False)
