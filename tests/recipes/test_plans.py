"""What a recipe says is what is trained: objectives, stages, augmentation; and the rehearsal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data import Dataset, Normalization, Split
from refkd.distill import LogitDistillation, Supervised
from refkd.errors import ConfigError, DataError, ShapeError
from refkd.models import create
from refkd.recipes import run as run_module
from refkd.recipes.build import build_stage, distillation
from refkd.recipes.load import parse_recipe
from refkd.recipes.rehearsal import rehearse
from refkd.recipes.run import RecipeRun
from refkd.train.run import RunFolder
from tests.recipes.miniature import Silent

TEXT = """
title = "Of images"
data = "drawn"
teacher = { model = "cifar_resnet", hyperparameters = { depth = 8 } }
student = { model = "cifar_resnet", hyperparameters = { depth = 8 } }
[images]
AUGMENT
[protocols.p]
description = "d"
seeds = 1
[protocols.p.teacher]
epochs = 1
batch_size = 6
optimizer = { name = "sgd", parameters = { lr = 0.1 } }
TEACHER
[protocols.p.student]
epochs = 1
batch_size = 6
optimizer = { name = "sgd", parameters = { lr = 0.1 } }
[protocols.p.students.alone]
ALONE
[protocols.p.students.distilled]
distill = { name = "hinton", parameters = { temperature = 2.0, alpha = 0.5 } }
DISTILLED
"""
FLIP = 'augment = [{ name = "horizontal_flip" }]'
CROP = 'augment = [{ name = "center_crop", parameters = { size = 8 } }]'


def text(
    augment: str = "", teacher: str = "", alone: str = "", distilled: str = "", **models: str
) -> str:
    filled = TEXT.replace("AUGMENT", augment).replace("TEACHER", teacher)
    filled = filled.replace("ALONE", alone).replace("DISTILLED", distilled)
    for role, network in models.items():
        filled = filled.replace(
            f'{role.rstrip("_")} = {{ model = "cifar_resnet", hyperparameters = {{ depth = 8 }} }}',
            f"{role.rstrip('_')} = {network}",
        )
    return filled


def drawn(rows: int = 12, *, validation: bool = True, stored: bool = False) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(256, size=(count, 3, 8, 8)).astype(np.uint8)
        logits = rng.standard_normal((count, 2)).astype(np.float32) if stored else None
        return Split(images, np.arange(count) % 2, logits)

    held_out = split(4) if validation else None
    return Dataset("drawn", split(rows), split(4), held_out, 2, ("a", "b"), Normalization(1 / 255))


def new_run(path: Path, source: str, dataset: Dataset | None = None, **settings: Any) -> RecipeRun:
    recipe = parse_recipe(source, "m")
    folder = RunFolder.create(path / "run", source)
    data = drawn() if dataset is None else dataset
    return RecipeRun(recipe, recipe.protocols["p"], data, folder, [0], Silent(), **settings)


@pytest.mark.parametrize(
    ("augment", "distilled", "exact"),
    [
        ("", "", True),
        (CROP, "", True),
        (FLIP, "", False),
        (f"{CROP[:-1]}, {FLIP[11:]}", "", False),
        ("", 'teacher_mode = "train"', False),
        ("", "head_weights = [1.0]", False),
    ],
)
def test_logits_are_stored_where_they_would_stay_the_same(
    augment: str, distilled: str, exact: bool, tmp_path: Path
) -> None:
    run = new_run(tmp_path, text(augment, distilled=distilled))
    student = run.protocol.students["distilled"]
    kd = student.spec()
    assert kd is not None
    network = run.spec("student_distilled").build()
    assert distillation(run.recipe, student, kd, network, network).exact is exact


def plan_of(run: RecipeRun, name: str) -> Any:
    teacher = None
    if name != "teacher":
        network = run.spec("teacher").build()
        params, state = network.init(np.random.default_rng(0))
        teacher = run_module.TrainedNetwork(run.spec("teacher"), network, params, state, [])
    return run._plan(name, 0, run.spec(name).build(), teacher)


def test_the_settings_of_a_student_reach_its_objective_and_stage(tmp_path: Path) -> None:
    settings = 'head_weights = [0.25]\nteacher_mode = "train"\nstudent_eval_from = 3\nkeep = "best"'
    plan = plan_of(new_run(tmp_path, text(distilled=settings)), "student_distilled")
    objective = plan.stage.objective
    assert isinstance(objective, LogitDistillation)
    assert objective.head_weights == (0.25,)
    assert objective.teacher_mode == "train"
    assert objective.student_eval_from == 3
    assert plan.stage.keep == "best"
    assert plan.split.teacher_logits is None
    assert any(name.startswith("teacher.") for name in plan.frozen_params)


def test_the_settings_of_the_teacher_and_of_a_student_alone_reach_theirs(tmp_path: Path) -> None:
    source = text(
        teacher='head_weights = [1.0, 0.5]\nkeep = "best"\nlabel_smoothing = 0.1',
        alone="label_smoothing = 0.2",
    )
    run = new_run(tmp_path, source)
    teacher, alone = (plan_of(run, name).stage for name in ("teacher", "student_alone"))
    assert isinstance(teacher.objective, Supervised)
    assert isinstance(alone.objective, Supervised)
    assert (teacher.objective.head_weights, teacher.keep) == ((1.0, 0.5), "best")
    assert (alone.objective.head_weights, alone.keep) == ((), "last")
    assert (teacher.objective.label_smoothing, alone.objective.label_smoothing) == (0.1, 0.2)


@pytest.mark.parametrize(("augment", "stored"), [("", True), (CROP, True), (FLIP, False)])
@pytest.mark.parametrize("cache_teacher", [True, False])
def test_a_plan_stores_logits_where_it_may(
    augment: str, stored: bool, cache_teacher: bool, tmp_path: Path
) -> None:
    run = new_run(tmp_path, text(augment), cache_teacher=cache_teacher)
    plan = plan_of(run, "student_distilled")
    assert (plan.split.teacher_logits is not None) is (stored and cache_teacher)
    assert bool(plan.frozen_params) is not (stored and cache_teacher)


def test_logits_in_the_data_keep_the_settings_that_are_not_the_teacher_s(tmp_path: Path) -> None:
    run = new_run(tmp_path, text(distilled="student_eval_from = 1"), drawn(stored=True))
    objective = run._plan(
        "student_distilled", 0, run.spec("student_distilled").build(), None
    ).stage.objective
    assert objective.student_eval_from == 1
    assert objective.teacher is None


def test_every_training_is_given_the_augmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    real = run_module.train

    def spy(*args: Any, **options: Any) -> Any:
        given.append(options["augment"])
        return real(*args, **options)

    monkeypatch.setattr(run_module, "train", spy)
    run = new_run(tmp_path, text(FLIP))
    run.train_all()
    assert given == [run.recipe.images.transforms()] * 3
    assert len(given[0]) == 1


def test_stored_logits_are_the_same_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan_of(new_run(tmp_path, text()), "student_distilled").split.teacher_logits
    monkeypatch.setattr(run_module, "_VALUES", 1)
    parts = plan_of(new_run(tmp_path / "again", text()), "student_distilled").split.teacher_logits
    np.testing.assert_array_equal(parts, whole)


def test_a_sound_recipe_is_rehearsed_and_leaves_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path, text(FLIP))
    rehearse(run)
    assert sorted(p.name for p in run.folder.path.iterdir()) == ["config.toml", "networks"]
    stored = drawn(stored=True)
    rehearse(new_run(tmp_path / "stored", text(), stored))
    wide = dataclasses.replace(
        stored.train, teacher_logits=stored.train.teacher_logits.astype(np.float64)
    )
    rehearse(new_run(tmp_path / "wide", text(), dataclasses.replace(stored, train=wide)))


WIDE = '{ model = "vgg", hyperparameters = { blocks = [[4]], track_running_stats = false } }'
HEADED = '{ model = "googlenet" }'


@pytest.mark.parametrize(
    ("source", "dataset", "error", "words"),
    [
        (text(distilled="head_weights = [1.0, 0.3]"), {}, ConfigError, "distilled: .*returns 1"),
        (text(distilled="head_weights = [-1.0]"), {}, ConfigError, "head_weights, number 1"),
        (text(teacher="head_weights = [1.0, 0.3]"), {}, ConfigError, "'m': teacher: .*returns 1"),
        (text(teacher_=WIDE), {}, ConfigError, "depend on the rest of the batch"),
        (text(student_=HEADED), {}, ConfigError, "image_size"),
        (text(), {"rows": 13}, ShapeError, "teacher: batch_norm_forward.* at least 2 values"),
        (text(teacher='keep = "best"'), {"validation": False}, DataError, "set `validation`"),
        (text(alone="only_classes = [7]"), {}, DataError, "names class 7"),
        (text(alone="train_images = 99"), {}, DataError, "needs 99 training images"),
        (
            text(distilled="head_weights = [1.0, 0.3]"),
            {"stored": True},
            ConfigError,
            "what is stored of the teacher",
        ),
        (
            text(distilled='teacher_mode = "train"'),
            {"stored": True},
            ConfigError,
            "the batch has stored teacher_logits",
        ),
    ],
)
def test_what_a_late_training_would_stumble_over_is_found_first(
    source: str, dataset: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    if "rows" in dataset:  # with maps of one pixel a single image has one value per channel
        source = source.replace("cifar_resnet", "resnet").replace("depth = 8", "depth = 18")
    with pytest.raises(error, match=words):
        rehearse(new_run(tmp_path, source, drawn(**dataset)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alone": "head_weights = [1.0]"}, "belong to a student that distils"),
        ({"alone": 'teacher_mode = "train"'}, "belong to a student that distils"),
        ({"alone": "student_eval_from = 1"}, "belong to a student that distils"),
        ({"distilled": "student_eval_from = -1"}, "student_eval_from must be at least 0"),
        ({"distilled": 'teacher_mode = "both"'}, "teacher_mode must be one of"),
        ({"teacher": "hyperparameters = { num_classes = 3 }"}, "num_classes comes from the data"),
        ({"alone": "hyperparameters = { image_size = 3 }"}, "image_size comes from the data"),
        ({"teacher": 'keep = "first"'}, "keep must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_recipe(text(**changes), "m")


def test_a_stage_keeps_what_its_training_says() -> None:
    settings = parse_recipe(text(teacher='keep = "best"'), "m").protocols["p"].teacher
    network = create("cifar_resnet", num_classes=2, depth=8)
    assert build_stage(Supervised(network), settings).keep == "best"
