"""A data set: images, labels and, where there are any, a teacher's logits.

Images keep the dtype they are stored in (uint8 is a quarter of float32), or stay in
their files, and are converted batch by batch with `to_batch`. Whatever a reader produced
is checked here once, on construction. Files are read elsewhere, augmentation is elsewhere.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refkd.data.image_files import ImageFiles
from refkd.errors import ConfigError, DataError
from refkd.ops.pixels import pixels_to_float

__all__ = ["Dataset", "Normalization", "Split", "to_batch"]

_SCAN_BYTES = 1 << 18


@dataclass(frozen=True)
class Normalization:
    """What makes stored pixels model inputs: (pixels · scale − mean) / std, per channel.

    Attributes
    ----------
    scale : float, > 0
        Brings stored pixels to the range that ``mean`` and ``std`` are given in: 1/255
        for uint8 images, 1 for floating ones.
    mean, std : tuple of float
        One per channel, or one for all; ``std`` > 0.

    Raises
    ------
    ConfigError
        On construction, if a value is not finite, or ``scale`` or ``std`` not positive.
    """

    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        positive = (self.scale, *self.std)
        if not all(map(math.isfinite, (*positive, *self.mean))) or not min(positive) > 0:
            raise ConfigError(
                f"Normalization: scale and std must be finite and > 0 and mean finite, got {self}"
            )
        if not len(self.mean) == len(self.std) >= 1:
            raise ConfigError(
                f"Normalization: expected as many means as standard deviations, got {self}"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, row by row.

    Parameters
    ----------
    images : (N, ...) array or ImageFiles
        uint8 or floating, every value finite; kept as it is.
    labels : (N,) array
        Class indices >= 0, of any integer dtype; held as int64.
    teacher_logits : (N, num_classes) array, optional
        float32 or float64, finite; row i belongs to image i.

    Raises
    ------
    DataError
        If the split is empty, shapes or dtypes are wrong, counts differ, a
        label is negative, or an image or logit is NaN or infinite.
    """

    images: NDArray[Any] | ImageFiles
    labels: NDArray[np.int64]
    teacher_logits: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        _check_images(self.images)
        rows = len(self.images)
        object.__setattr__(self, "labels", _checked_labels(self.labels, rows))
        if self.teacher_logits is not None:
            _check_logits(self.teacher_logits, rows)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Any) -> Split:
        """A new split of the rows at ``indices`` (integers or a boolean mask), in that order.

        Images in files stay there.
        """
        images, logits = self.images, self.teacher_logits
        return Split(
            images.subset(indices) if isinstance(images, ImageFiles) else images[indices],
            self.labels[indices],
            None if logits is None else logits[indices],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of one data set and what its classes are called.

    Parameters
    ----------
    name : str
    train, test : Split
    validation : Split or None
    num_classes : int
        At least 2; every label is below it.
    class_names : tuple of str
        ``num_classes`` of them.
    normalization : Normalization
        What makes the stored images model inputs.
    skipped : int
        Files that a reader was told to leave out where it could not read them.

    Raises
    ------
    DataError
        If a label is out of range, or the splits do not fit each other, the
        number of classes or their names.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    num_classes: int
    class_names: tuple[str, ...]
    normalization: Normalization
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(
                f"Dataset {self.name!r}: expected at least 2 classes, got {self.num_classes}; "
                f"with one class there is nothing to tell apart"
            )
        if len(self.class_names) != self.num_classes:
            raise DataError(
                f"Dataset {self.name!r}: expected {self.num_classes} class names, "
                f"got {len(self.class_names)}"
            )
        channels = len(self.normalization.mean)
        if channels > 1 and self.image_shape[:1] != (channels,):
            raise DataError(
                f"Dataset {self.name!r}: normalization has {channels} channels, the images "
                f"{self.image_shape}"
            )
        for split_name in ("train", "test", "validation"):
            split = getattr(self, split_name)
            if split is not None:
                self._check_split(f"Dataset {self.name!r}: {split_name}", split)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, without the batch axis."""
        return self.train.images.shape[1:]

    def sha256(self) -> str:
        """Digest of all images, labels and logits: two data sets that differ have two.

        Images in files count by the bytes of the files and the size they are resized to.

        Raises
        ------
        DataError
            If a file of images cannot be read.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.test, self.validation):
            for array in (split.images, split.labels, split.teacher_logits) if split else ():
                if array is not None:
                    digest.update(f"{array.dtype.str}{array.shape}".encode())
                if isinstance(array, ImageFiles):
                    array.digest_into(digest)
                elif array is not None:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _check_split(self, where: str, split: Split) -> None:
        images, logits = split.images, split.teacher_logits
        if images.shape[1:] != self.image_shape or images.dtype != self.train.images.dtype:
            raise DataError(
                f"{where} images: expected {self.image_shape} {self.train.images.dtype} "
                f"as in train, got {images.shape[1:]} {images.dtype}"
            )
        row = int(split.labels.argmax())
        if split.labels[row] >= self.num_classes:
            raise DataError(
                f"{where} labels: expected 0 to {self.num_classes - 1}, "
                f"got {split.labels[row]} in row {row}"
            )
        if logits is not None and logits.shape[1] != self.num_classes:
            raise DataError(
                f"{where} teacher_logits: expected {self.num_classes} columns, one per class, "
                f"got {logits.shape[1]}"
            )


def to_batch(images: NDArray[Any], normalization: Normalization, dtype: DTypeLike) -> NDArray[Any]:
    """Convert stored images to model inputs, ``(images * scale - mean) / std``.

    Parameters
    ----------
    images : (B, ...) array, uint8 or floating
    normalization : Normalization
    dtype : float32 or float64
        Dtype of the result, in which every step is rounded.

    Returns
    -------
    (B, ...) array of ``dtype``, fresh.

    Raises
    ------
    ShapeError, DtypeError
        As :func:`refkd.ops.pixels_to_float`, which a backend may override.
    """
    batch: NDArray[Any] = pixels_to_float(
        images,
        scale=normalization.scale,
        mean=normalization.mean,
        std=normalization.std,
        dtype=dtype,
    )
    return batch


def _check_images(images: NDArray[Any] | ImageFiles) -> None:
    if not isinstance(images, np.ndarray | ImageFiles) or len(images.shape) < 2:
        raise DataError(
            f"Split: images must be an array of shape (N, ...) with at least two axes, "
            f"got {_describe(images)}"
        )
    if 0 in images.shape:
        raise DataError(f"Split: expected at least one image of one value, got {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(
            f"Split: images must be uint8 or floating, got {images.dtype}; "
            f"convert them with images.astype(numpy.uint8) or numpy.float32"
        )
    if isinstance(images, np.ndarray):
        _check_finite("images", images)


def _checked_labels(labels: NDArray[Any], rows: int) -> NDArray[np.int64]:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"Split: labels must be an integer array of shape (N,), got {_describe(labels)}; "
            f"one-hot labels become indices with labels.argmax(1)"
        )
    if len(labels) != rows:
        raise DataError(f"Split: expected as many labels as images, got {len(labels)} and {rows}")
    as_int64 = labels.astype(np.int64, copy=False)  # a uint64 beyond int64 becomes negative
    row = int(as_int64.argmin())
    if as_int64[row] < 0:
        raise DataError(f"Split: labels must be class indices >= 0, got {labels[row]} in row {row}")
    return as_int64


def _check_logits(logits: NDArray[Any], rows: int) -> None:
    if (
        not isinstance(logits, np.ndarray)
        or logits.dtype not in (np.float32, np.float64)
        or logits.ndim != 2
    ):
        raise DataError(
            f"Split: teacher_logits must be a float32 or float64 array of shape "
            f"(N, num_classes), got {_describe(logits)}"
        )
    if len(logits) != rows:
        raise DataError(
            f"Split: expected one row of teacher_logits per image, got {len(logits)} rows "
            f"for {rows} images"
        )
    _check_finite("teacher_logits", logits)


def _check_finite(name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    # In blocks that stay in the cache: quicker, and no mask as long as the data.
    step = max(1, _SCAN_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        if not np.isfinite(block).all():
            finite_rows = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            row = start + int(finite_rows.argmin())
            raise DataError(f"Split: {name} must be finite, got NaN or infinity in row {row}")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
