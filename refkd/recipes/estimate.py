"""What a run would cost: shapes, sizes, peak memory and time, from a few timed steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from refkd.data.dataset import Dataset
from refkd.distill.logit import LogitDistillation
from refkd.distill.objective import Objective, Supervised
from refkd.models import parameter_count
from refkd.nn.layer import Layer
from refkd.recipes.config import Protocol, Recipe, Student, Training
from refkd.recipes.run import build_stage, network_spec
from refkd.threads import limit_blas_threads
from refkd.train.evaluate import evaluate_logits
from refkd.train.loop import begin, train

__all__ = ["describe"]

_TIMED_STEPS = 20
_TIMED_IMAGES = 512
_COPIES = 4  # parameters, gradients and Adam's two moments
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
    teacher = network_spec(recipe.teacher, dataset).build()
    student = network_spec(recipe.student, dataset).build()
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
        size = settings.train_images or len(dataset.train)
        trainings.append((name, student, settings, size, len(seeds)))
    total = 0.0
    for name, network, training, images, repeats in trainings:
        steps = training.epochs * math.ceil(images / training.batch_size)
        seconds = repeats * (
            steps * _seconds_per_step(network, training, dataset)
            + training.epochs * _seconds_per_evaluation(network, dataset)
        )
        total += seconds
        lines.append(
            f"train {name}: {repeats} x {training.epochs} epochs of {images:,} images, "
            f"{steps:,} steps each, about {_duration(seconds)}"
        )
    lines.append(f"expected peak memory: about {_peak_memory(dataset, teacher, student):.0f} MB")
    lines.append(f"expected time: about {_duration(total)}, at the machine's speed of this moment")
    return "\n".join(lines)


def _seconds_per_step(network: Layer, settings: Training, dataset: Dataset) -> float:
    rows = np.arange(min(len(dataset.train), settings.batch_size * _TIMED_STEPS))
    split = dataset.train.take(rows)
    kd = settings.spec() if isinstance(settings, Student) else None
    objective: Objective = Supervised(network)
    if kd is not None:
        # With stored logits, as a run has them: their values do not change the time.
        logits = np.zeros((len(split), dataset.num_classes), np.float32)
        split = dataclasses.replace(split, teacher_logits=logits)
        objective = LogitDistillation(network, None, kd)
    stage = build_stage(objective, dataclasses.replace(settings, epochs=1))
    seconds = []
    for _ in range(3):
        progress = begin([stage], 0)
        started = time.perf_counter()
        train([stage], progress, split, scale=dataset.scale)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / math.ceil(len(split) / settings.batch_size)


def _seconds_per_evaluation(network: Layer, dataset: Dataset) -> float:
    images = dataset.test.images[:_TIMED_IMAGES]
    params, state = network.init(np.random.default_rng(0))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with limit_blas_threads(1):  # as small networks are trained; a bound for large ones
            evaluate_logits(network, params, state, images, scale=dataset.scale)
        seconds.append(time.perf_counter() - started)
    evaluated = sum(len(s) for s in (dataset.test, dataset.validation) if s is not None)
    return min(seconds) * evaluated / len(images)


def _peak_memory(dataset: Dataset, *networks: Layer) -> float:
    splits = (dataset.train, dataset.train, dataset.validation, dataset.test)  # a student's copy
    images = sum(split.images.nbytes for split in splits if split is not None)
    largest = max(parameter_count(network) for network in networks)
    return _BASE_MEGABYTES + (images + 4 * _COPIES * largest) / 1e6


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
