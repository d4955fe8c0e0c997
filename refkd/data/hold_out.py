"""A validation split for data that come without one."""

from __future__ import annotations

import dataclasses

import numpy as np

from refkd.data.dataset import Dataset
from refkd.errors import ConfigError, DataError, check_unit_interval

__all__ = ["hold_out_validation"]

_SEED = 1  # not that of load_npz, which holds test images out of the same rows


def hold_out_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Make a fraction of the training images the validation split, if there is none.

    Parameters
    ----------
    dataset : Dataset
        Returned as it is if it has a validation split.
    fraction : float, in (0, 1)
        Of each class's training images, rounded, at least one and not all.

    Returns
    -------
    Dataset
        Both splits keep the order of the training images. Held out are, of each class,
        those that come first when the rows are sorted by the raw 64-bit output of PCG64
        with seed 1, the same on every machine and NumPy version.

    Raises
    ------
    ConfigError
        If ``fraction`` is not in (0, 1).
    DataError
        If a class has a single training image.
    """
    check_unit_interval("hold_out_validation", "fraction", fraction)
    if fraction in (0, 1):
        raise ConfigError(
            f"hold_out_validation: fraction must be more than 0 and less than 1, got {fraction!r}"
        )
    if dataset.validation is not None:
        return dataset
    labels = dataset.train.labels
    order = np.argsort(np.random.PCG64(_SEED).random_raw(len(labels)), kind="stable")
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        if len(of_class) < 2:
            raise DataError(
                f"hold_out_validation: {dataset.name} has a single training image of class "
                f"{dataset.class_names[label]!r}; none of it can be held out for validation"
            )
        count = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        held_out[of_class[:count]] = True
    return dataclasses.replace(
        dataset, train=dataset.train.take(~held_out), validation=dataset.train.take(held_out)
    )
