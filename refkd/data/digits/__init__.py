"""The UCI optical digits: 1,797 real images of 8x8 pixels, shipped with the package.

``digits.npz`` beside this file holds them in the order of the original file;
``LICENSE.txt`` says who made them and what was changed.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from refkd.data.dataset import Dataset, Normalization, Split

__all__ = ["load_digits"]

_TRAIN = slice(0, 1000)
_VALIDATION = slice(1000, 1297)
_TEST = slice(1297, 1797)


def load_digits() -> Dataset:
    """The UCI optical digits.

    Returns
    -------
    Dataset
        uint8 images (N, 8, 8) of values 0 to 16, to be scaled by 1/16, ten classes:
        1,000 train, 297 validation and 500 test images.

    Notes
    -----
    The splits follow the order of the file. Its writers change along the file,
    so the test images are mostly by other people than the training images, and
    the split is harder than a shuffled one: the nearest training image gives
    the right label for 95.6% of the test images, after a shuffle for 98 to 99%.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998, doi:10.24432/C50P49 (CC BY 4.0).
    """
    file = resources.files(__name__).joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = arrays["x"], arrays["y"]
    train, validation, test = (
        Split(images[rows], labels[rows]) for rows in (_TRAIN, _VALIDATION, _TEST)
    )
    return Dataset(
        name="digits",
        train=train,
        test=test,
        validation=validation,
        num_classes=10,
        class_names=tuple("0123456789"),
        normalization=Normalization(1 / 16),
    )
