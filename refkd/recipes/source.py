"""The data of a recipe: loaded, held out, normalised, and checked against what it asks."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from refkd import data
from refkd.data.dataset import Dataset
from refkd.data.image_files import ImageFiles
from refkd.errors import ConfigError, DataError
from refkd.recipes.config import Recipe

__all__ = ["load_data"]


def load_data(
    recipe: Recipe,
    source: str | os.PathLike[str],
    teacher_logits: str | os.PathLike[str] | None = None,
    *,
    corrupt: str = "raise",
) -> Dataset:
    """Load the data set that a recipe runs on.

    Parameters
    ----------
    recipe : Recipe
        Its ``images`` and ``validation`` are applied.
    source, teacher_logits, corrupt
        See :func:`refkd.data.load`.

    Raises
    ------
    DataError
        As :func:`refkd.data.load`; also if the images are of another size than the recipe
        says, or the augmentation makes others than the networks are evaluated on.
    ConfigError
        If there are stored teacher logits and the augmentation is random.
    """
    dataset = data.load(source, teacher_logits, image_size=recipe.images.size, corrupt=corrupt)
    if recipe.validation and dataset.validation is None:
        dataset = data.hold_out_validation(dataset, recipe.validation)
    normalization = dataclasses.replace(
        dataset.normalization, mean=recipe.images.mean, std=recipe.images.std
    )
    dataset = dataclasses.replace(dataset, normalization=normalization)
    _check_size(recipe, dataset)
    _check_augmentation(recipe, dataset)
    return dataset


def _check_size(recipe: Recipe, dataset: Dataset) -> None:
    size, shape = recipe.images.size, dataset.image_shape
    if size is not None and shape[-2:] != (size, size):
        raise DataError(
            f"recipe {recipe.name!r} takes images of {size} x {size}, and those of {dataset.name} "
            f"are {shape}; only the images of a folder are resized"
        )


def _check_augmentation(recipe: Recipe, dataset: Dataset) -> None:
    transforms = recipe.images.transforms()
    if not transforms:
        return
    if dataset.train.teacher_logits is not None and any(t.random for t in transforms):
        raise ConfigError(
            f"recipe {recipe.name!r}: stored teacher logits belong to the images as they are, and "
            f"the augmentation changes them at random; leave out one of the two"
        )
    shape = dataset.image_shape
    if len(shape) != 3 or dataset.train.images.dtype != np.uint8:
        raise DataError(
            f"recipe {recipe.name!r} augments uint8 images (C, H, W); those of {dataset.name} are "
            f"{dataset.train.images.dtype} {shape}"
        )
    images, rng = dataset.train.images, np.random.default_rng(0)
    image = images.original(0) if isinstance(images, ImageFiles) else images[0]
    for transform in transforms:
        image = transform(image, rng)
    if image.shape != shape:
        raise DataError(
            f"recipe {recipe.name!r}: the augmentation makes images of shape {image.shape}, and "
            f"the networks are evaluated on {shape}; give both one size"
        )
