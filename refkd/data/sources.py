"""From what a person types to a data set: which reader takes which source."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from refkd.data._files import reading
from refkd.data.cifar import load_cifar10
from refkd.data.dataset import Dataset
from refkd.data.digits import load_digits
from refkd.data.idx import load_mnist
from refkd.data.image_folder import load_image_folder
from refkd.data.npz import load_npz, read_teacher_logits
from refkd.errors import DataError, suggest

__all__ = ["load"]

_CIFAR_PATTERNS = ("data_batch_*", "test_batch*", "batches.meta*")


def load(
    source: str | os.PathLike[str],
    teacher_logits: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    corrupt: str = "raise",
) -> Dataset:
    """Load a data set by name or path.

    Parameters
    ----------
    source : str or path-like
        ``"digits"`` (shipped); a folder of images, of CIFAR-10 in its binary version or
        of MNIST in IDX files, see `load_image_folder`, `load_cifar10` and `load_mnist`;
        or an ``.npz`` file as `load_npz` describes. A folder called digits is
        ``"./digits"``; one that holds ``train/`` is a folder of images.
    teacher_logits : path-like, optional
        An ``.npy`` file of (N, C) logits: one row for each row of an ``.npz``
        file, or for each training image of the other sources.
    image_size : int, optional
        Side of the square that a folder's images are resized to, needed there; what the
        other sources hold keeps its size.
    corrupt : ``"raise"`` or ``"skip"``
        What is done about an image in a folder that cannot be decoded.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the source is none of these, or the reader finds a fault.
    ConfigError
        If ``image_size`` or ``corrupt`` is out of range.
    MissingExtra
        If the source is a folder of images and Pillow is not installed.
    """
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"load: {path}: {error.strerror}") from error
    if source == "digits":
        return _with_teacher_logits(load_digits(), teacher_logits)
    if is_folder:
        return _with_teacher_logits(_load_folder(path, image_size, corrupt), teacher_logits)
    if path.suffix == ".npz":
        return load_npz(path, teacher_logits)
    reason = "is no .npz file" if exists else "does not exist"
    raise DataError(
        f"load: expected 'digits', a folder with images, CIFAR-10 or the IDX files of MNIST "
        f"(refkd data fetch mnist gets one) or an .npz file with x and y; {str(source)!r} {reason}"
        f"{suggest(source, ['digits'])}"
    )


def _load_folder(folder: Path, image_size: int | None, corrupt: str) -> Dataset:
    with reading(folder):
        is_images = (folder / "train").is_dir()
        is_cifar10 = any(any(folder.glob(pattern)) for pattern in _CIFAR_PATTERNS)
        is_mnist = any(folder.glob("*idx*-ubyte*"))
    if is_images:
        if image_size is None:
            raise DataError(
                f"load: {folder} is a folder of images, which need a size to be resized to: "
                f"size under [images] in a recipe (image_size in Python)"
            )
        return load_image_folder(folder, size=image_size, corrupt=corrupt)
    if is_cifar10:
        return load_cifar10(folder)
    if is_mnist:
        return load_mnist(folder)
    raise DataError(
        f"load: {folder} lacks train-images-idx3-ubyte (MNIST; refkd data fetch mnist gets it), "
        f"data_batch_1.bin (CIFAR-10) and train/CLASS/*.jpg or .png (images); expected one of them"
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
