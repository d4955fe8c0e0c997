from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Dataset, Normalization, Split
from refkd.data.image_folder import load_image_folder
from refkd.ops.softmax import softmax_forward
from refkd.recipes import result as result_module
from refkd.recipes.load import parse_recipe
from refkd.recipes.result import summarise
from refkd.recipes.run import RecipeRun, Trained
from refkd.recipes.statistics import confidence_interval
from refkd.report import html_report, text_report
from refkd.report.attachments import read_attachments
from refkd.report.examples import load_examples
from refkd.report.pixels import png
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
    return Dataset(
        "drawn",
        split(60, logits=logits),
        test,
        split(10),
        3,
        ("a", "b", "c"),
        Normalization(1 / 255),
    )


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
            "label", "accuracy", "accuracies", "interval", "epochs", "keep", "parameters", "bytes",
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
    dataset = Dataset(
        "drawn", split(60, logits=True), base.test, None, 3, ("a", "b", "c"), Normalization(1 / 255)
    )
    text = TEXT.replace("Teacher {teacher.figure}, ", "").replace("seeds = 3", "seeds = 1")
    run, trained = trained_run(tmp_path / "run", text, dataset)
    result = summarise(run, trained, "p", 1.0)
    assert result["soft_targets"] is None
    assert result["data"]["validation"] is None


def test_an_explanation_may_name_a_teacher_that_only_left_logits(tmp_path: Path) -> None:
    run, trained = trained_run(tmp_path / "run", TEXT, drawn(logits=True))
    assert "Teacher " in summarise(run, trained, "p", 1.0)["explanation"]


def on_images(images: np.ndarray[Any, Any], scale: float, *, logits: bool = False) -> Dataset:
    """90 images in three classes that overlap, as far as their labels go."""
    labels = np.random.default_rng(1).integers(0, 3, len(images))
    stored = 4 * np.eye(3, dtype=np.float32)[labels] if logits else None
    split = Split(images, labels, stored)
    names = ("a", "b", "c")
    return Dataset(
        "drawn", split.take(slice(0, 40)), split.take(slice(40, None)), None, 3, names,
        Normalization(scale),
    )  # fmt: skip


def summarised(path: Path, dataset: Dataset) -> tuple[RecipeRun, Trained, dict[str, Any]]:
    text = TEXT.replace("seeds = 3", "seeds = 2")
    run, trained = trained_run(path, text, dataset)
    return run, trained, summarise(run, trained, "p", 1.0)


def test_confusions_are_counted_for_the_first_seed(summary: Any) -> None:
    run, trained, result = summary
    test = run.dataset.test
    networks = {
        "teacher": trained.teacher,
        "student_alone": trained.students["alone"][0],
        "student_distilled": trained.students["distilled"][0],
    }
    assert list(result["confusion"]) == list(networks)
    for key, network in networks.items():
        said = network.predict(test.images).argmax(axis=1)
        expected = [
            [int(((test.labels == a) & (said == b)).sum()) for b in range(3)] for a in range(3)
        ]
        assert result["confusion"][key] == expected


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 4, 4), (4, 5)])
def test_the_surest_mistakes_on_images_are_kept_for_the_report(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, *shape), dtype=np.uint8)
    run, trained, result = summarised(tmp_path / "run", on_images(images, 1 / 255))
    test, student = run.dataset.test, trained.students["distilled"][0]
    kept = load_examples(tmp_path / "run" / "examples.safetensors", num_classes=3)
    counts = np.array(result["confusion"]["student_distilled"])
    assert len(kept) == min(24, counts.sum() - counts.trace()) > 1
    np.testing.assert_array_equal(kept.images, test.images[kept.rows])
    np.testing.assert_array_equal(kept.labels, test.labels[kept.rows])
    assert not kept.stretched
    assert kept.temperature == 3.0
    for network, logits in ((student, kept.student), (trained.teacher, kept.teacher)):
        expected = network.predict(test.images)[kept.rows]
        np.testing.assert_allclose(softmax_forward(logits), expected, rtol=1e-6)
    confidence = softmax_forward(kept.student.astype(np.float64)).max(axis=1)
    assert (np.diff(confidence) <= 0).all()
    assert (kept.student.argmax(axis=1) != kept.labels).all()
    attachments = read_attachments(run.folder, json.loads(json.dumps(result)))
    assert attachments.examples is not None
    assert attachments.complaints == ()


def test_floating_images_are_kept_as_they_can_be_shown(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((90, 4, 4)).astype(np.float32)
    run, _, _ = summarised(tmp_path / "run", on_images(images, 1.0))
    kept = load_examples(tmp_path / "run" / "examples.safetensors", num_classes=3)
    assert kept.stretched
    assert kept.images.min(axis=(1, 2)).tolist() == [0] * len(kept)
    assert kept.images.max(axis=(1, 2)).tolist() == [255] * len(kept)
    shown = run.dataset.test.images[kept.rows]
    brightest = shown.reshape(len(kept), -1).argmax(axis=1)
    assert (kept.images.reshape(len(kept), -1)[np.arange(len(kept)), brightest] == 255).all()


def test_stored_logits_are_the_teacher_s_in_the_examples(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 3, 4, 4), dtype=np.uint8)
    run, _, result = summarised(tmp_path / "run", on_images(images, 1 / 255, logits=True))
    kept = load_examples(tmp_path / "run" / "examples.safetensors", num_classes=3)
    np.testing.assert_array_equal(kept.teacher, run.dataset.test.teacher_logits[kept.rows])
    assert result["confusion"]["teacher"] == np.diag(np.bincount(run.dataset.test.labels)).tolist()


def test_a_run_that_is_not_on_images_keeps_none(summary: Any) -> None:
    run, _, _ = summary
    assert not (run.folder.path / "examples.safetensors").exists()


def test_images_that_stay_in_their_files_are_read_for_the_report_only_where_kept(
    tmp_path: Path,
) -> None:
    pytest.importorskip("PIL")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 8)):
        for name in "abc":
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (3, 9, 11), dtype=np.uint8)
                (folder / f"{i}.png").write_bytes(png(pixels))
    dataset = load_image_folder(tmp_path / "images", size=6)
    run, _, _ = summarised(tmp_path / "run", dataset)
    kept = load_examples(tmp_path / "run" / "examples.safetensors", num_classes=3)
    assert len(kept) > 1
    np.testing.assert_array_equal(kept.images, run.dataset.test.images[kept.rows])
    assert kept.images.shape[1:] == (3, 6, 6)
    assert run.dataset.test.images[kept.rows[:0]].shape == (0, 3, 6, 6)  # no mistakes, no images


def test_of_very_many_classes_there_is_no_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trained = trained_run(tmp_path / "run", TEXT.replace("seeds = 3", "seeds = 1"), drawn())
    whole = summarise(run, trained, "p", 1.0)
    monkeypatch.setattr(result_module, "_MOST_CLASSES", 2)
    result = summarise(run, trained, "p", 1.0)
    assert {*whole} - {*result} == {"confusion", "soft_targets"}
    page = html_report(result, read_attachments(run.folder, result))
    assert "<svg" in page
    assert "says" in text_report(whole)
    assert "says" not in text_report(result)
