"""What a run would cost: shapes, sizes, peak memory and time, from a few timed steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np

from refkd.data.dataset import Dataset, Split, to_batch
from refkd.dispatch import current_backend
from refkd.distill.objective import Batch, Objective, Supervised
from refkd.distill.stage import Stage
from refkd.models import parameter_count
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.recipes.build import build_stage, distillation, network_spec
from refkd.recipes.config import Protocol, Recipe, Student, Training
from refkd.train.evaluate import evaluate_logits
from refkd.train.loop import begin, train
from refkd.train.progress import Progress

__all__ = ["describe"]

_TIMED_STEPS = 20
_FIRST_IMAGES, _TIMED_IMAGES = 8, 512
_ENOUGH_SECONDS = 0.5  # of timing one thing, where once takes less than that
_COPIES = 4  # parameters, the best ones so far, and Adam's two moments
_BASE_MEGABYTES = 90  # the interpreter, NumPy and its BLAS, matplotlib at the end


def describe(recipe: Recipe, protocol: Protocol, dataset: Dataset, seeds: Sequence[int]) -> str:
    """Return a table of the networks and trainings of a run, with memory and time expected.

    Parameters
    ----------
    recipe : Recipe
    protocol : Protocol
    dataset : Dataset
    seeds : sequence of int
        Of the students.
    """
    lines = [recipe.title, f"data: {dataset.name}, {len(dataset.train):,} training images"]
    teacher = network_spec(recipe.teacher, protocol.teacher, dataset).build()
    students = {
        name: network_spec(recipe.student, settings, dataset).build()
        for name, settings in protocol.students.items()
    }
    student = students["alone"]
    stored = dataset.train.teacher_logits is not None
    for role, network in (("teacher", teacher), ("student", student)):
        if role == "teacher" and stored:
            lines.append("teacher: stored logits")
            continue
        lines.append(f"{role}: {parameter_count(network):,} parameters")
        lines += [f"    {name} {shape}" for name, shape in network.shapes()[0].items()]
    trainings: list[tuple[str, Layer, Training, int, int]] = []
    if not stored:
        trainings.append(("teacher", teacher, protocol.teacher, len(dataset.train), 1))
    for name, settings in protocol.students.items():
        size = settings.train_images or _images_of_its_classes(settings, dataset)
        trainings.append((name, students[name], settings, size, len(seeds)))
    total = 0.0
    for name, network, training, images, repeats in trainings:
        steps = training.epochs * math.ceil(images / training.batch_size)
        seconds = repeats * (
            steps * _seconds_per_step(recipe, network, teacher, training, dataset)
            + training.epochs * _seconds_per_evaluation(network, dataset)
        )
        total += seconds
        lines.append(
            f"train {name}: {repeats} x {training.epochs} epochs of {images:,} images, "
            f"{steps:,} steps each, about {_duration(seconds)}"
        )
    step_bytes = max(
        _step_bytes(recipe, network, teacher, training, dataset)
        for _, network, training, _, _ in trainings
    )
    memory = _peak_memory(dataset, teacher, student) + step_bytes / 1e6
    lines.append(f"expected peak memory: about {memory:.0f} MB")
    lines.append(f"expected time: about {_duration(total)}, at the machine's speed of this moment")
    return "\n".join(lines)


def _images_of_its_classes(student: Student, dataset: Dataset) -> int:
    seen = student.only_classes or range(dataset.num_classes)
    wanted = np.isin(dataset.train.labels, list(set(seen) - set(student.without_classes)))
    return int(wanted.sum())


def _seconds_per_step(
    recipe: Recipe, network: Layer, teacher: Layer, settings: Training, dataset: Dataset
) -> float:
    stage, split, frozen = _steps(recipe, network, teacher, settings, dataset, _TIMED_STEPS)
    progress = begin([stage], 0, frozen_params=frozen[0], frozen_state=frozen[1])
    clock = _Clock()
    with contextlib.suppress(_EnoughSteps):
        train(
            [stage],
            progress,
            split,
            normalization=dataset.normalization,
            augment=recipe.images.transforms(),
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


def _steps(
    recipe: Recipe, network: Layer, teacher: Layer, settings: Training, dataset: Dataset, steps: int
) -> tuple[Stage, Split, tuple[Arrays, Arrays]]:
    """Return a training of some steps and one more, and its teacher's parameters and state."""
    split = dataset.train.take(np.arange(min(len(dataset.train), settings.batch_size * steps)))
    kd = settings.spec() if isinstance(settings, Student) else None
    objective: Objective = Supervised(network, head_weights=getattr(settings, "head_weights", ()))
    frozen: tuple[Arrays, Arrays] = ({}, {})
    if kd is not None and isinstance(settings, Student):
        objective = distillation(recipe, settings, kd, network, teacher)
        if objective.exact:
            # With stored logits, as a run has them: their values do not change the time.
            logits = np.zeros((len(split), dataset.num_classes), np.float32)
            split = dataclasses.replace(split, teacher_logits=logits)
            objective = dataclasses.replace(objective, teacher=None)
        else:
            params, state = teacher.init(np.random.default_rng(0))
            frozen = add_prefix("teacher", params), add_prefix("teacher", state)
    epochs = math.ceil((steps + 1) * settings.batch_size / len(split))
    few = dataclasses.replace(settings, epochs=epochs, keep="last")
    return build_stage(objective, few), split, frozen


def _step_bytes(
    recipe: Recipe, network: Layer, teacher: Layer, settings: Training, dataset: Dataset
) -> int:
    """Return the memory of what a step keeps for its backward, gradients included."""
    stage, split, frozen = _steps(recipe, network, teacher, settings, dataset, 1)
    progress = begin([stage], 0, frozen_params=frozen[0], frozen_state=frozen[1])
    images = to_batch(split.images[: settings.batch_size], dataset.normalization, np.float32)
    batch = Batch(images, split.labels, split.teacher_logits, settings.batch_size)
    tracemalloc.start()
    try:
        stage.objective.value_and_grad(progress.params, progress.state, batch, progress.rng)
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


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
