"""What a run would cost: shapes, sizes, peak memory and time, from a few timed steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import tracemalloc
from collections.abc import Mapping

import numpy as np

from refkd.data.dataset import Dataset, Split
from refkd.dispatch import current_backend
from refkd.distill.logit import LogitDistillation
from refkd.distill.stage import Stage
from refkd.models import parameter_count
from refkd.nn.layer import Layer
from refkd.recipes.build import build_stage
from refkd.recipes.rehearsal import begin_drawn, take_step
from refkd.recipes.run import RecipeRun
from refkd.report.words import human_seconds
from refkd.train.evaluate import evaluate_logits
from refkd.train.loop import train
from refkd.train.progress import Progress

__all__ = ["describe"]

_TIMED_STEPS = 20
_FIRST_IMAGES, _TIMED_IMAGES = 8, 512
_ENOUGH_SECONDS = 0.5  # of timing one thing, where once takes less than that
_COPIES = 4  # parameters, the best ones so far, and Adam's two moments
_BASE_MEGABYTES = 90  # the interpreter, NumPy and its BLAS, matplotlib at the end


def describe(run: RecipeRun) -> str:
    """Return a table of the networks and trainings of a run, with memory and time expected.

    Parameters
    ----------
    run : RecipeRun
        Nothing of it is trained, and its folder need not exist.
    """
    dataset = run.dataset
    lines = [run.recipe.title, f"data: {dataset.name}, {len(dataset.train):,} training images"]
    teacher, student = run.spec("teacher").build(), run.spec("student_alone").build()
    stored = dataset.train.teacher_logits is not None
    for role, network in (("teacher", teacher), ("student", student)):
        if role == "teacher" and stored:
            lines.append("teacher: stored logits")
            continue
        lines.append(f"{role}: {parameter_count(network):,} parameters")
        lines += [f"    {name} {shape}" for name, shape in network.shapes()[0].items()]
    trainings = [] if stored else [("teacher", len(dataset.train), 1)]
    for name, settings in run.protocol.students.items():
        images = len(run.training_rows(settings, run.seeds[0]))
        trainings.append((f"student_{name}", images, len(run.seeds)))
    total = 0.0
    for name, images, repeats in trainings:
        training = run.settings(name)
        steps = training.epochs * math.ceil(images / training.batch_size)
        seconds = repeats * (
            steps * _seconds_per_step(run, name)
            + training.epochs * _seconds_per_evaluation(run.spec(name).build(), dataset)
        )
        total += seconds
        lines.append(
            f"train {name.removeprefix('student_')}: {repeats} x {training.epochs} epochs of "
            f"{images:,} images, {steps:,} steps each, about {human_seconds(seconds)}"
        )
    step_bytes = max(_step_bytes(run, name) for name, _, _ in trainings)
    memory = _peak_memory(dataset, teacher, student) + step_bytes / 1e6
    lines.append(f"expected peak memory: about {memory:.0f} MB")
    lines.append(
        f"expected time: about {human_seconds(total)}, at the machine's speed of this moment"
    )
    return "\n".join(lines)


def _seconds_per_step(run: RecipeRun, name: str) -> float:
    stage, split = _training(run, name, _TIMED_STEPS)
    progress, clock = begin_drawn(stage), _Clock()
    with contextlib.suppress(_EnoughSteps):
        train(
            [stage],
            progress,
            split,
            normalization=run.dataset.normalization,
            augment=run.recipe.images.transforms(),
            monitor=clock,
        )
    return clock.seconds_per_step()


class _EnoughSteps(Exception):
    """Ends a training between two steps."""


class _Clock:
    """Notes when steps have ended, and ends the training once that is enough."""

    def __init__(self) -> None:
        self._compiles = current_backend().name != "numpy"
        self._stamps = [time.perf_counter()]

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        self._stamps.append(time.perf_counter())
        counted = self._stamps[1:] if self._compiles else self._stamps
        if len(counted) > _TIMED_STEPS or counted[-1] - counted[0] > _ENOUGH_SECONDS:
            raise _EnoughSteps

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        """An epoch's end costs what it costs; its time falls on the next step."""

    def seconds_per_step(self) -> float:
        """Return the time of a usual step: one after the first, which prepares much."""
        seconds = np.diff(self._stamps)
        return float(np.median(seconds[1:] if len(seconds) > 1 else seconds))


def _training(run: RecipeRun, name: str, steps: int) -> tuple[Stage, Split]:
    """Return a training of some steps and one more, and its images."""
    settings, split = run.settings(name), run.dataset.train
    stored = split.teacher_logits is not None
    will_store = run.cache_teacher and not stored
    split = split.take(np.arange(min(len(split), settings.batch_size * steps)))
    teacher = None if stored else run.spec("teacher").build()
    objective = run.objective(name, run.spec(name).build(), teacher)
    if isinstance(objective, LogitDistillation) and objective.exact and will_store:
        # With stored logits, as a run has them: their values do not change the time.
        logits = np.zeros((len(split), run.dataset.num_classes), np.float32)
        split = dataclasses.replace(split, teacher_logits=logits)
        objective = dataclasses.replace(objective, teacher=None)
    epochs = math.ceil((steps + 1) * settings.batch_size / len(split))
    few = dataclasses.replace(settings, epochs=epochs, keep="last")
    return build_stage(objective, few), split


def _step_bytes(run: RecipeRun, name: str) -> int:
    """Return the memory of what a step keeps for its backward, gradients included."""
    stage, split = _training(run, name, 1)
    progress = begin_drawn(stage)
    tracemalloc.start()
    try:
        take_step(stage, progress, split, run.dataset.normalization)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _seconds_per_evaluation(network: Layer, dataset: Dataset) -> float:
    params, state = network.init(np.random.default_rng(0))

    def seconds_per_image(count: int) -> float:
        images = dataset.test.images[:count]
        started = time.perf_counter()
        evaluate_logits(network, params, state, images, normalization=dataset.normalization)
        return (time.perf_counter() - started) / len(images)

    seconds_per_image(_FIRST_IMAGES)  # which compiles
    per_image = seconds_per_image(_FIRST_IMAGES)
    if per_image * _TIMED_IMAGES < _ENOUGH_SECONDS:
        per_image = min(seconds_per_image(_TIMED_IMAGES) for _ in range(3))
    evaluated = sum(len(s) for s in (dataset.test, dataset.validation) if s is not None)
    return per_image * evaluated


def _peak_memory(dataset: Dataset, *networks: Layer) -> float:
    splits = (dataset.train, dataset.train, dataset.validation, dataset.test)  # a student's copy
    # Images of a folder are files: they are decoded when they are needed, and not kept.
    arrays = (s.images for s in splits if s is not None and isinstance(s.images, np.ndarray))
    images = sum(array.nbytes for array in arrays)
    largest = max(parameter_count(network) for network in networks)
    return _BASE_MEGABYTES + (images + 4 * _COPIES * largest) / 1e6
