"""A step of every training on a few images, before the first one starts in earnest."""

from __future__ import annotations

import numpy as np

from refkd.data.dataset import to_batch
from refkd.distill.objective import Batch
from refkd.errors import ConfigError, DataError, ShapeError
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.recipes import config
from refkd.recipes.build import build_stage
from refkd.recipes.run import RecipeRun
from refkd.train.loop import begin

__all__ = ["rehearse"]


def rehearse(run: RecipeRun) -> None:
    """Find what a late training would stumble over, from parameters drawn and thrown away.

    Raises
    ------
    DataError
        If a student names a class or needs images that the data have not, or a training
        keeps its best epoch where there are no validation images.
    ConfigError, ShapeError
        If a network cannot be built, or its outputs do not fit its loss.
    """
    stored = run.dataset.train.teacher_logits is not None
    teacher = None if stored else run.spec("teacher").build()
    names = [f"student_{name}" for name in run.protocol.students]
    for name in names if stored else ["teacher", *names]:
        try:
            _rehearse(run, name, teacher)
        except (ConfigError, ShapeError) as error:
            raise type(error)(f"recipe {run.recipe.name!r}: {name}: {error}") from error


def _rehearse(run: RecipeRun, name: str, teacher: Layer | None) -> None:
    settings, split = run.settings(name), run.dataset.train
    if settings.keep == "best" and run.dataset.validation is None:
        raise DataError(
            f"recipe {run.recipe.name!r}: {name} keeps its best epoch on validation images, and "
            f"{run.dataset.name} has none; set `validation` to the fraction of the training "
            f"images to hold out"
        )
    count = len(split)
    if isinstance(settings, config.Student):
        _check_classes(run, name, settings)
        count = len(run.training_rows(settings, run.seeds[0]))
    # The last batch of an epoch may be a single image, which batch norm may refuse.
    size = 1 if count % settings.batch_size == 1 else min(2, count)
    few = split.take(np.arange(size))
    stage = build_stage(run.objective(name, run.spec(name).build(), teacher), settings)
    params: Arrays = {}
    state: Arrays = {}
    if teacher is not None:
        params, state = teacher.init(np.random.default_rng(0))
    progress = begin(
        [stage],
        0,
        frozen_params=add_prefix("teacher", params),
        frozen_state=add_prefix("teacher", state),
    )
    images = to_batch(few.images[:], run.dataset.normalization, np.float32)
    logits = few.teacher_logits
    batch = Batch(images, few.labels, None if logits is None else logits.astype(np.float32), size)
    stage.objective.value_and_grad(progress.params, progress.state, batch, progress.rng)


def _check_classes(run: RecipeRun, name: str, student: config.Student) -> None:
    largest = max((*student.only_classes, *student.without_classes), default=0)
    if largest >= run.dataset.num_classes:
        raise DataError(
            f"recipe {run.recipe.name!r}: {name} names class {largest}, "
            f"{run.dataset.name} has classes 0 to {run.dataset.num_classes - 1}"
        )
