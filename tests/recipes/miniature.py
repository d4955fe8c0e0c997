"""A recipe of seconds' fractions, a data set for it, and what tests ask of its runs.

Run as a program it trains the recipe in a folder, or goes on with it:

    python tests/recipes/miniature.py FOLDER

saving after every step, for tests that kill it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refkd.data.dataset import Dataset, Normalization, Split
from refkd.recipes.config import Recipe
from refkd.recipes.load import parse_recipe
from refkd.recipes.run import RecipeRun, Trained
from refkd.train.run import RunFolder

TEXT = """
title = "Miniature"
data = "drawn"
teacher = { model = "mlp", hyperparameters = { hidden = [9], dropout = 0.3 } }
student = { model = "mlp", hyperparameters = { hidden = [4], dropout = 0.1 } }

[protocols.fair]
description = "two seeds"
seeds = 2

[protocols.fair.teacher]
epochs = 2
batch_size = 16
optimizer = { name = "sgd", parameters = { lr = 0.5, momentum = 0.9 } }
schedule = { name = "cosine" }
warmup_steps = 2

[protocols.fair.student]
epochs = 2
batch_size = 12
optimizer = { name = "adam", parameters = { lr = 1e-2 } }

[protocols.fair.students.alone]
label_smoothing = 0.1

[protocols.fair.students.distilled]
train_images = 20
distill = { name = "hinton", parameters = { temperature = 3.0, alpha = 0.2 } }
"""
SEEDS = (5, 6)
STEPS = 2 * 3 + 2 * (2 * 4 + 2 * 2)
"""Of the whole run: 40 images in batches of 16; 40 and 20 in batches of 12, for two seeds."""


class Silent:
    """A display that shows nothing and keeps which epochs it was told of."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.epochs: list[str] = []

    def step(self, training: str, progress: Any, steps_per_epoch: int, epochs: int) -> None:
        self.steps.append(training)

    def epoch(self, training: str, record: Any, epochs: int) -> None:
        self.epochs.append(training)


def recipe(text: str = TEXT) -> Recipe:
    return parse_recipe(text, "miniature")


def dataset(*, stored_logits: bool = False) -> Dataset:
    rng = np.random.default_rng(0)
    centres = rng.integers(60, 200, size=(4, 2, 3))

    def split(rows: int) -> Split:
        labels = rng.permutation(np.arange(rows) % 4)
        images = centres[labels] + rng.integers(-50, 50, size=(rows, 2, 3))
        logits = rng.standard_normal((rows, 4)).astype(np.float32) if stored_logits else None
        return Split(images.astype(np.uint8), labels, logits)

    return Dataset(
        "drawn", split(40), split(24), split(12), 4, tuple("abcd"), Normalization(1 / 255)
    )


def new_run(path: Path, *, text: str = TEXT, data: Dataset | None = None, **settings: Any) -> Any:
    """Return a run of the recipe in a new folder, or in that of an earlier one."""
    opened = (path / "config.toml").is_file()
    folder = RunFolder.open(path) if opened else RunFolder.create(path, text)
    parsed = recipe(text)
    return RecipeRun(
        parsed,
        parsed.protocols["fair"],
        dataset() if data is None else data,
        folder,
        SEEDS,
        Silent(),
        **settings,
    )


def after_steps(count: int) -> Callable[[], bool]:
    """Return a request to stop that becomes true with the ``count``-th step."""
    left = count

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    return stop


def files(path: Path) -> dict[str, bytes]:
    """Return all that a run left in its folder."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def train(path: Path, **settings: Any) -> Trained:
    trained: Trained = new_run(path, **settings).train_all()
    return trained


if __name__ == "__main__":
    train(Path(sys.argv[1]), save_every=-1.0)
