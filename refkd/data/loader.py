"""Batches of images, decoded and augmented ahead of their use by background threads.

What an image becomes depends on its own generator alone, so the batches are the same
whatever the number of threads. Which rows make up a batch is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.data.augment import Transform
from refkd.data.image_files import ImageFiles
from refkd.errors import ConfigError, DataError
from refkd.threads import in_order, usable_cores

__all__ = ["batches", "row_blocks"]

# Batches that are prepared, or being prepared, beyond the one last yielded: with it and one
# native image per thread they are what memory holds.
_AHEAD = 4
_WORKERS: int | None = None  # threads; by default one per core, _AHEAD + 1 at most


def batches(
    images: NDArray[Any] | ImageFiles,
    order: Iterable[NDArray[np.integer]],
    augment: Sequence[Transform] = (),
    generator_of: Callable[[int], np.random.Generator] | None = None,
) -> Generator[NDArray[Any], None, None]:
    """Yield ``images[rows]``, augmented, for each array of rows in ``order``.

    Parameters
    ----------
    images : (N, ...) array or ImageFiles
        To be augmented an array must be uint8 of shape (N, C, H, W); files are augmented
        at their native size.
    order : iterable of integer arrays
        The rows of each batch.
    augment : sequence of transforms
        Applied one after another, image by image. Without any, files are resized to
        `ImageFiles.size` and an array is indexed, in the caller's thread.
    generator_of : callable, optional
        Returns a fresh generator for a row, needed where ``augment`` is given; it is called
        in background threads.

    Yields
    ------
    (B, ...) array
        In the order of ``order``, each fresh. What a thread raises is raised where its
        batch is due, and ends the iteration. Closing or dropping the iterator, or an
        error, ends the threads before it returns.

    Raises
    ------
    ConfigError
        If images of that kind cannot be augmented, or ``augment`` has no ``generator_of``.
        While iterating: if the augmented images of a batch differ in size.
    DataError
        While iterating: if a file cannot be decoded, or a transform cannot take its image.
    MissingExtra
        While iterating: if Pillow is needed and not installed.
    """
    if isinstance(images, np.ndarray):
        if not augment:
            return (images[rows] for rows in order)
        _check_can_be_augmented(images)
    if augment and generator_of is None:
        raise ConfigError("batches: augment needs generator_of, a generator for every row")

    def prepare(rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        if augment and generator_of is not None:
            return _augmented(images, rows, augment, generator_of)
        return images[rows]

    workers = _WORKERS or min(usable_cores(), _AHEAD + 1)
    return in_order(prepare, order, ahead=_AHEAD, workers=workers)


def row_blocks(count: int, step: int) -> Iterator[NDArray[np.intp]]:
    """Yield the rows 0 to ``count`` − 1 in order, ``step`` at a time; of none an empty block."""
    starts = range(0, max(1, count), step)
    return (np.arange(start, min(start + step, count)) for start in starts)


def _augmented(
    images: NDArray[Any] | ImageFiles,
    rows: NDArray[np.integer],
    augment: Sequence[Transform],
    generator_of: Callable[[int], np.random.Generator],
) -> NDArray[np.uint8]:
    batch: NDArray[np.uint8] | None = None
    for index, row in enumerate(map(int, rows)):
        image = images.original(row) if isinstance(images, ImageFiles) else images[row]
        rng = generator_of(row)
        for transform in augment:
            image = transform(image, rng)
        if batch is None:
            batch = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != batch.shape[1:]:
            raise ConfigError(
                f"batches: expected augmented images of one size, got {batch.shape[1:]} and "
                f"{image.shape}; let augment hold a transform to one size, such as Resize"
            )
        batch[index] = image
    if batch is None:
        raise DataError("batches: expected at least one row in every batch, got none")
    return batch


def _check_can_be_augmented(images: NDArray[Any]) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ConfigError(
            f"batches: only uint8 images of shape (N, C, H, W) can be augmented, "
            f"got {images.dtype} {images.shape}"
        )
