"""From what a person types to a data set: which reader takes which source."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from refkd.data.dataset import Dataset
from refkd.data.digits import load_digits
from refkd.data.idx import load_mnist
from refkd.data.npz import load_npz, read_teacher_logits
from refkd.errors import DataError, suggest

__all__ = ["load"]


def load(
    source: str | os.PathLike[str], teacher_logits: str | os.PathLike[str] | None = None
) -> Dataset:
    """Load a data set by name or path.

    Parameters
    ----------
    source : str or path-like
        ``"digits"`` (shipped), a folder with MNIST in IDX files, or an ``.npz``
        file as `load_npz` describes. A folder called digits is ``"./digits"``.
    teacher_logits : path-like, optional
        An ``.npy`` file of (N, C) logits: one row for each row of an ``.npz``
        file, or for each training image of the other sources.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the source is none of these, or the reader finds a fault.
    """
    path = Path(source)
    if source == "digits":
        return _with_teacher_logits(load_digits(), teacher_logits)
    try:
        if path.is_dir():
            return _with_teacher_logits(load_mnist(path), teacher_logits)
        exists = path.exists()
    except OSError as error:
        raise DataError(f"load: {path}: {error.strerror}") from error
    if path.suffix == ".npz":
        return load_npz(path, teacher_logits)
    reason = "is no .npz file" if exists else "does not exist"
    raise DataError(
        f"load: expected 'digits', a folder with the IDX files of MNIST (refkd data fetch mnist "
        f"gets one) or an .npz file with x and y; {str(source)!r} {reason}"
        f"{suggest(source, ['digits'])}"
    )


def _with_teacher_logits(
    dataset: Dataset, teacher_logits: str | os.PathLike[str] | None
) -> Dataset:
    if teacher_logits is None:
        return dataset
    logits = read_teacher_logits(teacher_logits)
    try:
        train = dataclasses.replace(dataset.train, teacher_logits=logits)
        return dataclasses.replace(dataset, train=train)
    except DataError as error:
        raise DataError(f"{teacher_logits}: {error}") from error
