from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np

from refkd.data import load_digits


def test_the_shipped_digits_are_the_published_ones_in_file_order() -> None:
    digits = load_digits()
    assert digits.validation is not None
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split) for split in splits] == [1000, 297, 500]
    content = b"".join(split.images.tobytes() for split in splits) + b"".join(
        split.labels.astype(np.uint8).tobytes() for split in splits
    )
    assert (
        hashlib.sha256(content).hexdigest()
        == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )


def test_digits_scale_to_the_unit_interval() -> None:
    digits = load_digits()
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.max() * digits.normalization.scale == 1
    assert digits.image_shape == (8, 8)
    assert np.unique(digits.train.labels).tolist() == list(range(digits.num_classes))


def test_the_attribution_ships_beside_the_data() -> None:
    text = resources.files("refkd.data.digits").joinpath("LICENSE.txt").read_text("utf-8")
    for wanted in ("E. Alpaydin, C. Kaynak", "10.24432/C50P49", "CC BY 4.0", "What was changed"):
        assert wanted in text
