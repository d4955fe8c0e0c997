"""Test images that a run keeps for its report, in ``examples.safetensors``.

With them the report can be drawn again where the data are not at hand. Which images
are kept is decided in :mod:`refkd.recipes.mistakes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import CheckpointError
from refkd.report.pixels import is_image
from refkd.train.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["Examples", "load_examples", "save_examples"]


@dataclass(frozen=True, eq=False)
class Examples:
    """A few test images, and what the networks make of them.

    Attributes
    ----------
    rows : array of int, shape (n,)
        Their places in the test split.
    labels : array of int, shape (n,)
    images : array of uint8, shape (n, H, W) or (n, C, H, W)
        As they are shown.
    student : array, shape (n, num_classes)
        Logits of the distilled student, first seed.
    teacher : array, shape (n, num_classes), or None
        Logits of the teacher; None where they are not known.
    temperature : float
        Of the recipe's soft targets.
    stretched : bool
        Whether every image is shown from its own least value to its greatest.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    student: NDArray[np.floating[Any]]
    teacher: NDArray[np.floating[Any]] | None
    temperature: float
    stretched: bool

    def __len__(self) -> int:
        return len(self.rows)


def save_examples(path: Path, examples: Examples) -> None:
    """Write the file, atomically and with a digest.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "rows": examples.rows,
        "labels": examples.labels,
        "images": examples.images,
        "student": examples.student,
    }
    if examples.teacher is not None:
        arrays["teacher"] = examples.teacher
    metadata = {
        "temperature": repr(examples.temperature),
        "stretched": str(examples.stretched).lower(),
    }
    save_checkpoint(path, arrays, metadata)


def load_examples(path: Path, *, num_classes: int) -> Examples:
    """Read what :func:`save_examples` wrote.

    Parameters
    ----------
    path : Path
    num_classes : int
        Of the run; every label is below it, and there are as many logits.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds no examples of such a run.
    """
    arrays, metadata = load_checkpoint(path)
    try:
        examples = Examples(
            arrays["rows"],
            arrays["labels"],
            arrays["images"],
            arrays["student"],
            arrays.get("teacher"),
            float(metadata["temperature"]),
            {"true": True, "false": False}[metadata["stretched"]],
        )
        _check(examples, num_classes)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds no examples of this run ({type(error).__name__}: {error})"
        ) from error
    return examples


def _check(examples: Examples, num_classes: int) -> None:
    """Raise ValueError unless everything fits together."""
    count = len(examples)
    images, labels = examples.images, examples.labels
    if images.dtype != np.uint8 or 0 in images.shape[1:] or not is_image(images.shape[1:]):
        raise ValueError(f"images are {images.dtype} {images.shape}")
    for name, array in (("rows", examples.rows), ("labels", labels)):
        if array.dtype != np.int64 or array.shape != (count,) or (array < 0).any():
            raise ValueError(f"{name} are no {count} indices")
    if len(images) != count or (labels >= num_classes).any():
        raise ValueError(f"{count} labels of {num_classes} classes for {len(images)} images")
    for name, logits in (("student", examples.student), ("teacher", examples.teacher)):
        if logits is not None and not _are_logits(logits, (count, num_classes)):
            raise ValueError(f"{name} logits are {logits.dtype} {logits.shape}")
    if not (math.isfinite(examples.temperature) and examples.temperature > 0):
        raise ValueError(f"temperature is {examples.temperature}")


def _are_logits(array: NDArray[Any], shape: tuple[int, int]) -> bool:
    floating = array.dtype in (np.float32, np.float64)
    return floating and array.shape == shape and bool(np.isfinite(array).all())
