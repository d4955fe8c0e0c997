"""The shipped recipes of images, each in miniature: same networks and losses, few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.recipes.load import parse_recipe, shipped_recipes
from refkd.recipes.result import summarise
from refkd.recipes.run import RecipeRun
from refkd.recipes.source import load_data
from refkd.train.run import RunFolder, load
from tests.recipes.miniature import Silent, after_steps, files

SMALLEST = 80  # pixels, of GoogLeNet with its auxiliary classifiers


def miniature(name: str) -> str:
    """Return a shipped recipe with two epochs of small batches, one seed, small images."""
    lines = []
    for line in shipped_recipes()[name].splitlines():
        key = line.partition(" =")[0]
        if key in ("epochs", "seeds", "batch_size"):
            line = {"epochs": "epochs = 2", "seeds": "seeds = 1"}.get(key, "batch_size = 6")
        lines.append(line)
    text = "\n".join(lines)
    for size in ("224", "96"):
        text = text.replace(f"size = {size}", f"size = {SMALLEST}")
    wide = "blocks = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]"
    return text.replace(wide, "blocks = [[8], [8], [8], [8], [16]]").replace(
        "depth = 56", "depth = 8"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn images of several sizes, two classes."""
    pillow = pytest.importorskip("PIL.Image", reason="images need Pillow")
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(256, size=(90 + i, 100, 3)).astype(np.uint8)
                pillow.fromarray(image).save(path / split / name / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 32 x 32, as CIFAR-10 is."""
    pillow = pytest.importorskip("PIL.Image", reason="images need Pillow")
    path, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(1)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(256, size=(32, 32, 3)).astype(np.uint8)
                pillow.fromarray(image).save(path / split / name / f"{i}.png")
    return path


def new_run(path: Path, name: str, protocol: str, data: Path, **settings: Any) -> RecipeRun:
    text = miniature(name)
    opened = (path / "config.toml").is_file()
    run_folder = RunFolder.open(path) if opened else RunFolder.create(path, text)
    recipe = parse_recipe(text, name)
    dataset = load_data(recipe, data)
    return RecipeRun(
        recipe, recipe.protocols[protocol], dataset, run_folder, [3], Silent(), **settings
    )


RECIPES = [
    ("googlenet-flowers", "fair"),
    ("googlenet-flowers-small", "published"),
    ("vgg-cifar10", "fair"),
    ("vgg-cifar10-small", "published"),
    ("resnet-cifar10", "fair"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol"), RECIPES)
def test_a_recipe_of_images_runs_from_files_to_figures(
    name: str, protocol: str, tmp_path: Path, folder: Path, small_folder: Path
) -> None:
    data = folder if "flowers" in name else small_folder
    run = new_run(tmp_path / "run", name, protocol, data)
    trained = run.train_all()
    result = summarise(run, trained, protocol, 1.0)
    assert set(trained.students) == set(run.protocol.students)
    for network in (trained.teacher, *(n for kind in trained.students.values() for n in kind)):
        assert network is not None
        assert len(network.history) == 2
        assert all(np.isfinite(array).all() for array in network.params.values())
    assert "{" not in result["explanation"]
    images = run.dataset.test.images[:]
    kept = load(tmp_path / "run", seed=3)
    probabilities = kept.predict(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    accuracy = (probabilities.argmax(axis=1) == run.dataset.test.labels).mean()
    assert result["student_distilled"]["accuracies"] == [accuracy]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet-flowers-small", "vgg-cifar10-small"])
def test_a_run_of_augmented_images_resumes_to_the_same_bytes(
    name: str, tmp_path: Path, folder: Path, small_folder: Path
) -> None:
    data = folder if "flowers" in name else small_folder
    whole = new_run(tmp_path / "whole", name, "published", data)
    whole.train_all()
    expected = files(tmp_path / "whole")
    steps = len(whole.display.steps)  # type: ignore[attr-defined]
    for stop in range(2, steps, 3):
        path = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            new_run(path, name, "published", data, stop_requested=after_steps(stop)).train_all()
        new_run(path, name, "published", data).train_all()
        assert files(path) == expected
