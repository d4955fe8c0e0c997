"""A step of every training on a few images, before the first one starts in earnest."""

from __future__ import annotations

import numpy as np

from refkd.data.dataset import Normalization, Split, to_batch
from refkd.distill.objective import Batch
from refkd.distill.stage import Stage
from refkd.errors import ConfigError, DataError, ShapeError
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.recipes import config
from refkd.recipes.build import build_stage
from refkd.recipes.run import RecipeRun
from refkd.train.loop import begin
from refkd.train.progress import Progress

__all__ = ["begin_drawn", "rehearse", "take_step"]


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
    take_step(stage, begin_drawn(stage), few, run.dataset.normalization)


def begin_drawn(stage: Stage) -> Progress:
    """Return the beginning of a training in which what does not learn is drawn, too."""
    params: Arrays = {}
    state: Arrays = {}
    for name, network in stage.objective.networks.items():
        if name not in stage.objective.learns:
            drawn = network.init(np.random.default_rng(0))
            params |= add_prefix(name, drawn[0])
            state |= add_prefix(name, drawn[1])
    return begin([stage], 0, frozen_params=params, frozen_state=state)


def take_step(stage: Stage, progress: Progress, split: Split, normalization: Normalization) -> None:
    """Compute the gradient of one batch, all of ``split``, and throw it away."""
    images = to_batch(split.images[:], normalization, np.float32)
    logits = split.teacher_logits
    batch = Batch(
        images, split.labels, None if logits is None else logits.astype(np.float32), len(split)
    )
    stage.objective.value_and_grad(progress.params, progress.state, batch, progress.rng)


def _check_classes(run: RecipeRun, name: str, student: config.Student) -> None:
    largest = max((*student.only_classes, *student.without_classes), default=0)
    if largest >= run.dataset.num_classes:
        raise DataError(
            f"recipe {run.recipe.name!r}: {name} names class {largest}, "
            f"{run.dataset.name} has classes 0 to {run.dataset.num_classes - 1}"
        )
