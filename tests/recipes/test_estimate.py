from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd import dispatch
from refkd.data.dataset import Dataset, Normalization, Split
from refkd.dispatch import Backend
from refkd.distill import Supervised
from refkd.recipes import estimate
from refkd.recipes.config import Recipe
from refkd.recipes.load import parse_recipe
from refkd.recipes.run import RecipeRun
from refkd.train.run import RunFolder
from tests.recipes.miniature import Silent

TEXT = """
title = "A miniature"
data = "drawn"
teacher = { model = "mlp", hyperparameters = { hidden = [30, 20] } }
student = { model = "mlp", hyperparameters = { hidden = [5] } }
[protocols.p]
description = "d"
seeds = 1
teacher = { epochs = 4, batch_size = 16, optimizer = { name = "adam" } }
student = { epochs = 3, batch_size = 8, optimizer = { name = "adam" } }
students.alone = { train_images = 20 }
[protocols.p.students.distilled]
distill = { name = "hinton", parameters = { temperature = 4, alpha = 0.1 } }
"""


def split(rows: int) -> Split:
    rng = np.random.default_rng(rows)
    return Split(rng.integers(0, 256, (rows, 3, 4)).astype(np.uint8), np.arange(rows) % 3)


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(TEXT, "m")


@pytest.fixture
def dataset() -> Dataset:
    return Dataset(
        "drawn", split(1000), split(50), split(70), 3, ("a", "b", "c"), Normalization(1 / 255)
    )


def run_of(recipe: Recipe, dataset: Dataset, seeds: int) -> RecipeRun:
    folder = RunFolder(Path("never-written"))
    return RecipeRun(recipe, recipe.protocols["p"], dataset, folder, range(seeds), Silent())


def test_the_estimate_names_every_shape_and_training(recipe: Recipe, dataset: Dataset) -> None:
    lines = estimate.describe(run_of(recipe, dataset, 2)).splitlines()
    assert lines[:2] == ["A miniature", "data: drawn, 1,000 training images"]
    assert "teacher: 1,073 parameters" in lines  # 12·30 + 30 + 30·20 + 20 + 20·3 + 3
    assert "student: 83 parameters" in lines
    for shape in ("fc1.weight (30, 12)", "fc3.bias (3,)", "fc2.weight (3, 5)"):
        assert f"    {shape}" in lines
    starts = [line.rpartition(", about")[0] for line in lines if line.startswith("train ")]
    assert starts == [
        "train teacher: 1 x 4 epochs of 1,000 images, 252 steps each",
        "train alone: 2 x 3 epochs of 20 images, 9 steps each",
        "train distilled: 2 x 3 epochs of 1,000 images, 375 steps each",
    ]
    assert lines[-2].startswith("expected peak memory: about ")
    assert lines[-1].startswith("expected time: about ")


def test_stored_logits_need_no_teacher(recipe: Recipe, dataset: Dataset) -> None:
    logits = np.zeros((1000, 3), np.float32)
    train = dataclasses.replace(dataset.train, teacher_logits=logits)
    stored = dataclasses.replace(dataset, train=train)
    text = estimate.describe(run_of(recipe, stored, 1))
    assert "teacher: stored logits" in text
    assert "train teacher" not in text
    assert "fc3" not in text


def test_the_time_is_steps_and_evaluations_times_what_they_take(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_seconds_per_step", lambda *arguments: 0.01)
    monkeypatch.setattr(estimate, "_seconds_per_evaluation", lambda *arguments: 0.5)
    text = estimate.describe(run_of(recipe, dataset, 3))
    teacher, alone, distilled = (4.52, 3 * (0.09 + 1.5), 3 * (3.75 + 1.5))
    found = [float(s) for s in re.findall(r"about ([\d.]+) s", text)]
    expected = [teacher, alone, distilled, teacher + alone + distilled]
    assert found == pytest.approx(expected, rel=0.05)


def test_what_a_backend_compiles_in_the_first_step_is_no_part_of_the_others(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def linear_forward(x: Any, weight: Any, bias: Any) -> Any:
        calls.append(time.perf_counter())
        if len(calls) <= 2:
            time.sleep(0.3)
        return NotImplemented

    slow = Backend(
        "slow", np.ndarray, np.asarray, np.asarray, lambda: None, {"linear_forward": linear_forward}
    )
    monkeypatch.setitem(dispatch._loaded, "slow", slow)
    with dispatch.use_backend("slow"):
        seconds = estimate._seconds_per_step(run_of(recipe, dataset, 1), "teacher")
    assert seconds < 0.05
    assert len(calls) > 2 * 3


def test_an_evaluation_counts_all_images_that_are_evaluated(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    network = run_of(recipe, dataset, 1).spec("student_alone").build()
    # By this clock 8 images take a second, which is enough of timing.
    assert estimate._seconds_per_evaluation(network, dataset) == pytest.approx(120 / 8)
    monkeypatch.setattr(estimate, "_ENOUGH_SECONDS", 1e9)
    assert estimate._seconds_per_evaluation(network, dataset) == pytest.approx(120 / 50)


def test_the_memory_grows_with_images_and_parameters(recipe: Recipe, dataset: Dataset) -> None:
    student = run_of(recipe, dataset, 1).spec("student_alone").build()
    base = estimate._peak_memory(dataset, student)
    assert 60 < base < 150  # megabytes, of an interpreter with NumPy
    larger = dataclasses.replace(dataset, test=split(1_000_000))
    assert estimate._peak_memory(larger, student) - base == pytest.approx(12, rel=0.01)


def test_what_is_timed_is_what_the_run_would_train(dataset: Dataset) -> None:
    text = TEXT.replace("train_images = 20", "label_smoothing = 0.1")
    run = run_of(parse_recipe(text, "m"), dataset, 1)
    objective = estimate._training(run, "student_alone", 1)[0].objective
    assert isinstance(objective, Supervised)
    assert objective.label_smoothing == 0.1
    stage, images = estimate._training(run, "student_distilled", 1)
    assert set(stage.objective.networks) == {"student"}  # the teacher's logits are stored
    assert images.teacher_logits is not None
    run.cache_teacher = False
    stage, images = estimate._training(run, "student_distilled", 1)
    assert set(stage.objective.networks) == {"student", "teacher"}
    assert images.teacher_logits is None
