"""What a run would cost: shapes, sizes, peak memory and time, from a few timed steps."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np

from refkd.data.dataset import Dataset, Split, to_batch
from refkd.distill.objective import Batch, Objective, Supervised
from refkd.distill.stage import Stage
from refkd.models import parameter_count
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.recipes.build import build_stage, distillation, network_spec
from refkd.recipes.config import Protocol, Recipe, Student, Training
from refkd.train.evaluate import evaluate_logits
from refkd.train.loop import begin, train

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
    def seconds(steps: int) -> float:
        stage, split, frozen = _steps(recipe, network, teacher, settings, dataset, steps)
        progress = begin([stage], 0, frozen_params=frozen[0], frozen_state=frozen[1])
        started = time.perf_counter()
        train(
            [stage],
            progress,
            split,
            normalization=dataset.normalization,
            augment=recipe.images.transforms(),
        )
        return (time.perf_counter() - started) / math.ceil(len(split) / settings.batch_size)

    once = seconds(1)
    if once > _ENOUGH_SECONDS:
        return once
    return min(seconds(min(_TIMED_STEPS, math.ceil(_ENOUGH_SECONDS / once))) for _ in range(3))


def _steps(
    recipe: Recipe, network: Layer, teacher: Layer, settings: Training, dataset: Dataset, steps: int
) -> tuple[Stage, Split, tuple[Arrays, Arrays]]:
    """Return a training of a few steps, and the parameters and state of its teacher."""
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
    one_epoch = dataclasses.replace(settings, epochs=1, keep="last")
    return build_stage(objective, one_epoch), split, frozen


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
