"""The data of a recipe: held out, normalised, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data import Normalization
from refkd.errors import ConfigError, DataError
from refkd.recipes.build import network_spec
from refkd.recipes.config import Recipe
from refkd.recipes.load import parse_recipe
from refkd.recipes.source import load_data

CROP = '{ name = "padded_crop", parameters = { size = 8, padding = 2 } }'
FLIP = '{ name = "horizontal_flip" }'
TEXT = """
title = "Of images"
data = "an .npz"
validation = VALIDATION
teacher = { model = "small_cnn" }
student = { model = "small_cnn" }
[images]
IMAGES
[protocols.p]
description = "d"
seeds = 1
teacher = { epochs = 1, batch_size = 4, optimizer = { name = "adam" }, keep = "KEEP" }
student = { epochs = 1, batch_size = 4, optimizer = { name = "adam" } }
students.alone = {}
[protocols.p.students.distilled]
distill = { name = "hinton", parameters = { temperature = 2, alpha = 0.5 } }
"""


def recipe(images: str = "", *, validation: float = 0, keep: str = "last") -> Recipe:
    text = TEXT.replace("IMAGES", images).replace("KEEP", keep)
    return parse_recipe(text.replace("VALIDATION", str(validation)), "m")


def archive(path: Path, shape: tuple[int, ...] = (3, 8, 8), **more: Any) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(40, *shape)).astype(more.pop("dtype", np.uint8))
    np.savez(path / "x.npz", x=x, y=np.arange(40) % 2, **more)
    return path / "x.npz"


def photographs(path: Path, sizes: tuple[tuple[int, int], ...] = ((9, 12), (8, 8))) -> Path:
    pillow = pytest.importorskip("PIL.Image", reason="images need Pillow")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for i, size in enumerate(sizes):
                image = pillow.fromarray(rng.integers(256, size=(*size, 3)).astype(np.uint8))
                image.save(path / split / name / f"{i}.png")
    return path


def test_means_and_deviations_join_the_scale_of_the_data(tmp_path: Path) -> None:
    dataset = load_data(recipe("mean = [0.1, 0.2, 0.3]\nstd = [1.0, 2.0, 3.0]"), archive(tmp_path))
    assert dataset.normalization == Normalization(1 / 255, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert load_data(recipe(), archive(tmp_path)).normalization == Normalization(1 / 255)


def test_a_fraction_of_the_training_images_is_held_out(tmp_path: Path) -> None:
    path = archive(tmp_path)
    whole, held = load_data(recipe(), path), load_data(recipe(validation=0.25), path)
    assert whole.validation is None
    assert held.validation is not None
    assert len(held.train) + len(held.validation) == len(whole.train)
    np.testing.assert_array_equal(held.test.images, whole.test.images)


def test_stored_logits_are_refused_where_the_augmentation_is_random(tmp_path: Path) -> None:
    path = archive(tmp_path, teacher_logits=np.zeros((40, 2), np.float32))
    with pytest.raises(ConfigError, match="stored teacher logits belong to the images as they are"):
        load_data(recipe(f"augment = [{FLIP}]"), path)
    same = 'augment = [{ name = "center_crop", parameters = { size = 8 } }]'
    assert load_data(recipe(same), path).train.teacher_logits is not None


@pytest.mark.parametrize(
    ("images", "shape", "dtype", "words"),
    [
        ("size = 9", (3, 8, 8), np.uint8, r"takes images of 9 x 9, .* are \(3, 8, 8\)"),
        (f"augment = [{FLIP}]", (8, 8), np.uint8, r"augments uint8 images \(C, H, W\)"),
        (f"augment = [{FLIP}]", (3, 8, 8), np.float32, "are float32"),
        (f"augment = [{CROP}]", (3, 9, 9), np.uint8, r"shape \(3, 8, 8\), .* on \(3, 9, 9\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    tmp_path: Path, images: str, shape: tuple[int, ...], dtype: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_data(recipe(images), archive(tmp_path, shape, dtype=dtype))


def test_a_folder_is_resized_and_its_augmentation_tried_at_native_size(tmp_path: Path) -> None:
    folder = photographs(tmp_path)
    assert load_data(recipe("size = 8"), folder).image_shape == (3, 8, 8)
    crop = '{ name = "random_resized_crop", parameters = { size = 8 } }'
    assert load_data(recipe(f"size = 8\naugment = [{crop}, {FLIP}]"), folder).validation is None
    with pytest.raises(DataError, match=r"shape \(3, 9, 12\), .* on \(3, 8, 8\)"):
        load_data(recipe(f"size = 8\naugment = [{FLIP}]"), folder)
    with pytest.raises(DataError, match="size"):
        load_data(recipe(), folder)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("size = 0", "size must be at least 1"),
        ("std = [0.0]", "must be finite and > 0"),
        ("mean = [0.5, 0.5]", "as many means as standard deviations"),
        ('augment = [{ name = "horizontl_flip" }]', "did you mean 'horizontal_flip'"),
        ('augment = [{ name = "padded_crop" }]', "missing size, padding"),
        ('augment = [{ name = "resize", parameters = { size = -1 } }]', "size must be an integer"),
        ("crop = 3", "unknown key 'crop'"),
    ],
)
def test_what_a_recipe_says_of_images_must_make_sense(images: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(images)


@pytest.mark.parametrize("validation", [-0.1, 1.0])
def test_the_fraction_to_hold_out_is_one(validation: float) -> None:
    with pytest.raises(ConfigError, match=r"validation must be in \[0, 1\)"):
        recipe(validation=validation)


def test_a_network_takes_its_sizes_from_the_data(tmp_path: Path) -> None:
    dataset = load_data(recipe(), archive(tmp_path, (1, 32, 32)))
    found = recipe()
    spec = network_spec(found.student, found.protocols["p"].students["alone"], dataset)
    assert spec.hyperparameters == {"num_classes": 2, "in_channels": 1, "image_size": 32}
    for shape, words in (((32, 32), r"square images \(C, S, S\)"), ((3, 32, 31), "square")):
        other = load_data(found, archive(tmp_path, shape))
        with pytest.raises(DataError, match=words):
            network_spec(found.student, found.protocols["p"].students["alone"], other)


def test_a_protocol_may_change_a_hyperparameter(tmp_path: Path) -> None:
    found = parse_recipe(
        TEXT.replace("IMAGES", "")
        .replace("VALIDATION", "0")
        .replace("KEEP", "last")
        .replace(
            "students.alone = {}", "students.alone = { hyperparameters = { dropout = 0.25 } }"
        ),
        "m",
    )
    dataset = load_data(found, archive(tmp_path, (3, 32, 32)))
    students = found.protocols["p"].students
    specs = {name: network_spec(found.student, s, dataset) for name, s in students.items()}
    assert specs["alone"].hyperparameters["dropout"] == 0.25
    assert "dropout" not in specs["distilled"].hyperparameters
