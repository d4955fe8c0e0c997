from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Dataset, Split
from refkd.ops.softmax import softmax_forward
from refkd.recipes.load import parse_recipe
from refkd.recipes.result import summarise
from refkd.recipes.run import RecipeRun, Trained
from refkd.recipes.statistics import confidence_interval
from refkd.train.run import RunFolder

TEXT = """
title = "A miniature"
data = "drawn"
teacher = { model = "mlp", hyperparameters = { hidden = [12] } }
student = { model = "mlp", hyperparameters = { hidden = [5] } }
[protocols.p]
description = "d"
seeds = 3
explanation = '''
Teacher {teacher.figure}, alone {alone.figure}, unseen {no_2.figure}; {distilled_gain.figure}.
'''
teacher = { epochs = 3, batch_size = 8, optimizer = { name = "adam", parameters = { lr = 0.02 } } }
student = { epochs = 2, batch_size = 8, optimizer = { name = "adam", parameters = { lr = 0.02 } } }
students.alone = { published = 0.75 }
[protocols.p.students.distilled]
label = "taught"
distill = { name = "hinton", parameters = { temperature = 3, alpha = 0.2 } }
[protocols.p.students.no_2]
without_classes = [2]
compared_with = "distilled"
[protocols.p.students.only]
only_classes = [0, 1]
train_images = 10
"""


class Silent:
    def step(self, *arguments: Any) -> None: ...
    def epoch(self, *arguments: Any) -> None: ...


def split(rows: int, *, logits: bool = False) -> Split:
    rng = np.random.default_rng(rows)
    labels = np.arange(rows) % 3
    images = (70 * labels[:, None] + rng.integers(0, 90, (rows, 6))).astype(np.uint8)
    stored = 4 * np.eye(3, dtype=np.float32)[labels] if logits else None
    return Split(images, labels, stored)


def drawn(*, logits: bool = False) -> Dataset:
    test = split(31, logits=logits)
    return Dataset("drawn", split(60, logits=logits), test, split(10), 3, ("a", "b", "c"), 1 / 255)


def trained_run(path: Path, text: str, dataset: Dataset) -> tuple[RecipeRun, Trained]:
    recipe = parse_recipe(text, "mini")
    protocol = recipe.protocol(None)[1]
    folder = RunFolder.create(path, text)
    run = RecipeRun(recipe, protocol, dataset, folder, range(protocol.seeds), Silent())
    return run, run.train_all()


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecipeRun, Trained, dict[str, Any]]:
    run, trained = trained_run(tmp_path_factory.mktemp("run"), TEXT, drawn())
    return run, trained, summarise(run, trained, "p", 1.5)


STUDENTS = ("alone", "distilled", "no_2", "only")


def test_the_result_is_strict_json_with_every_network(summary: Any) -> None:
    _, _, result = summary
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for key in ("teacher", *(f"student_{name}" for name in STUDENTS)):
        assert set(result[key]) == {
            "label", "accuracy", "accuracies", "interval", "epochs", "parameters", "bytes",
            "train_images", "history", "calibration", "explain", "published",
        }  # fmt: skip
    assert (result["recipe"], result["protocol"], result["seconds"]) == ("mini", "p", 1.5)
    assert result["data"] == {
        "name": "drawn",
        "train": 60,
        "validation": 10,
        "test": 31,
        "image_shape": [6],
        "class_names": ["a", "b", "c"],
    }


def test_accuracies_are_those_of_the_networks_on_the_test_images(summary: Any) -> None:
    run, trained, result = summary
    test = run.dataset.test
    for name in STUDENTS:
        right = [
            float((network.predict(test.images).argmax(axis=1) == test.labels).mean())
            for network in trained.students[name]
        ]
        side = result[f"student_{name}"]
        assert side["accuracies"] == right
        assert side["accuracy"] == math.fsum(right) / 3
        assert side["interval"] == confidence_interval(right)
        assert side["history"] == [network.history for network in trained.students[name]]


def test_what_each_network_is_and_saw_is_told(summary: Any) -> None:
    result = summary[2]
    assert result["teacher"]["parameters"] == 6 * 12 + 12 + 12 * 3 + 3
    assert result["teacher"]["bytes"] == 4 * result["teacher"]["parameters"]
    sizes = [result[f"student_{name}"]["train_images"] for name in STUDENTS]
    assert sizes == [60, 60, 40, 10]
    labels = [result[f"student_{name}"]["label"] for name in STUDENTS]
    assert labels == ["alone", "taught", "no_2", "only"]
    assert result["student_alone"]["published"] == 0.75
    assert result["student_alone"]["explain"] is None
    assert "T = 3" in result["student_distilled"]["explain"]


def test_differences_are_paired_by_seed(summary: Any) -> None:
    result = summary[2]
    pairs = [(row["a"], row["b"]) for row in result["differences"]]
    assert pairs == [
        ("student_distilled", "student_alone"),
        ("student_no_2", "student_distilled"),
        ("student_only", "student_alone"),
    ]
    for row in result["differences"]:
        a, b = result[row["a"]]["accuracies"], result[row["b"]]["accuracies"]
        assert row["per_seed"] == [x - y for x, y in zip(a, b, strict=True)]
        assert row["mean"] == math.fsum(row["per_seed"]) / 3
        assert row["interval"] == confidence_interval(row["per_seed"])


def test_the_explanation_has_the_figures_filled_in(summary: Any) -> None:
    result = summary[2]
    text = result["explanation"]
    assert text.startswith(f"Teacher {100 * result['teacher']['accuracy']:.2f}%, alone ")
    low, high = result["student_alone"]["interval"]
    mean = 100 * result["student_alone"]["accuracy"]
    assert f"{mean:.2f} ± {50 * (high - low):.2f}%" in text
    assert text.endswith(f"± {50 * np.ptp(result['differences'][0]['interval']):.2f} points.")


def test_soft_targets_are_the_teacher_s_mean_opinion_of_each_class(summary: Any) -> None:
    run, trained, result = summary
    test, teacher = run.dataset.test, trained.teacher
    probabilities = teacher.predict(test.images)
    soft = softmax_forward(np.log(probabilities.astype(np.float64)), temperature=3.0)
    expected = [soft[test.labels == c].mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(result["soft_targets"]["matrix"], expected, rtol=1e-4)
    assert result["soft_targets"]["temperature"] == 3


def test_the_transfer_table_is_of_the_students_that_miss_a_class(summary: Any) -> None:
    run, trained, result = summary
    rows = {row["arm"]: row for row in result["transfer"]}
    assert list(rows) == ["student_no_2", "student_only"]
    test = run.dataset.test
    for name in ("no_2", "only"):
        row = rows[f"student_{name}"]
        assert row["classes"] == "without c"
        wrong = [
            n.predict(test.images).argmax(axis=1) != test.labels for n in trained.students[name]
        ]
        assert row["errors"] == np.mean([w.sum() for w in wrong])
        assert row["errors_on_omitted"] == np.mean([w[test.labels == 2].sum() for w in wrong])
        assert row["errors_on_omitted_corrected"] <= row["errors_on_omitted"]


def test_with_stored_logits_there_is_no_teacher_and_its_opinion_is_theirs(tmp_path: Path) -> None:
    text = TEXT.replace("Teacher {teacher.figure}, ", "").replace("seeds = 3", "seeds = 1")
    run, trained = trained_run(tmp_path / "run", text, drawn(logits=True))
    result = summarise(run, trained, "p", 1.0)
    assert result["teacher"] is None
    soft = softmax_forward(np.array([4.0, 0.0, 0.0]), temperature=3.0)
    np.testing.assert_allclose(result["soft_targets"]["matrix"][0], soft, rtol=1e-6)
    assert result["student_alone"]["interval"] is None
    assert result["differences"][0]["interval"] is None


def test_without_soft_targets_for_the_test_images_there_is_no_matrix(tmp_path: Path) -> None:
    base = drawn()
    dataset = Dataset("drawn", split(60, logits=True), base.test, None, 3, ("a", "b", "c"), 1 / 255)
    text = TEXT.replace("Teacher {teacher.figure}, ", "").replace("seeds = 3", "seeds = 1")
    run, trained = trained_run(tmp_path / "run", text, dataset)
    result = summarise(run, trained, "p", 1.0)
    assert result["soft_targets"] is None
    assert result["data"]["validation"] is None


def test_an_explanation_may_name_a_teacher_that_only_left_logits(tmp_path: Path) -> None:
    run, trained = trained_run(tmp_path / "run", TEXT, drawn(logits=True))
    assert "Teacher " in summarise(run, trained, "p", 1.0)["explanation"]
