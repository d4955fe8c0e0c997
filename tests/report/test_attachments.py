"""What a report takes from a run folder, and that a damaged file costs its part only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Normalization
from refkd.report import html_report
from refkd.report.attachments import Attachments, read_attachments
from refkd.report.examples import save_examples
from refkd.train.run import NetworkSpec, RunFolder, TrainedNetwork

Result = dict[str, Any]
SMALL_CNN = {"num_classes": 10, "image_size": 32, "in_channels": 3}
MLP = {"in_features": 3072, "num_classes": 10, "hidden": [4]}


def keep(folder: RunFolder, name: str, seed: int, model: str = "small_cnn") -> TrainedNetwork:
    hyperparameters = SMALL_CNN if model == "small_cnn" else MLP
    names = tuple(map(str, range(10)))
    spec = NetworkSpec(model, hyperparameters, (3, 32, 32), Normalization(1 / 255), names)
    network = spec.build()
    params, state = network.init(np.random.default_rng([seed, len(name)]))
    trained = TrainedNetwork(spec, network, params, state, [])
    folder.save_network(folder.network(name, seed), trained, metrics_bytes=0)
    return trained


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with two seeds of a convolutional student and its teacher."""
    folder = RunFolder.create(tmp_path / "run", "")
    for name, seed in (("teacher", 3), ("student_distilled", 3), ("student_distilled", 12)):
        keep(folder, name, seed)
    return folder


@pytest.fixture
def run(
    folder: RunFolder, result: Result, with_images: Callable[..., tuple[Result, Attachments]]
) -> tuple[RunFolder, Result]:
    """The folder with its examples, and the run's result."""
    result, attachments = with_images(result)
    assert attachments.examples is not None
    save_examples(folder.examples, attachments.examples)
    return folder, result


def test_a_run_folder_holds_the_examples_and_the_first_filters(
    run: tuple[RunFolder, Result],
) -> None:
    folder, result = run
    found = read_attachments(folder, result)
    assert found.complaints == ()
    assert found.examples is not None
    assert len(found.examples) == 24
    assert [(f.network, f.parameter) for f in found.filters] == [
        ("teacher", "conv1.weight"),
        ("student_distilled", "conv1.weight"),
    ]
    expected = keep(folder, "student_distilled", 3).params["conv1.weight"]  # the first seed
    np.testing.assert_array_equal(found.filters[1].weight, expected)
    page = html_report(result, found)
    assert "First-layer filters" in page
    assert "Mistakes of the distilled student" in page
    assert "Not drawn" not in page


def test_a_network_without_convolutions_has_no_filters(run: tuple[RunFolder, Result]) -> None:
    folder, result = run
    keep(folder, "teacher", 3, "mlp")
    found = read_attachments(folder, result)
    assert [f.network for f in found.filters] == ["student_distilled"]
    assert found.complaints == ()


def test_a_teacher_that_only_left_logits_is_not_missed(run: tuple[RunFolder, Result]) -> None:
    folder, result = run
    folder.network("teacher", 3).unlink()
    found = read_attachments(folder, result | {"teacher": None})
    assert [f.network for f in found.filters] == ["student_distilled"]
    assert found.complaints == ()


@pytest.mark.parametrize("shape", [[768], [2, 16, 16]])
def test_a_run_that_is_not_on_images_has_no_attachments(folder: RunFolder, shape: Any) -> None:
    result = {"confusion": {}, "data": {"image_shape": shape}}
    found = read_attachments(folder, result)
    assert (found.examples, found.filters, found.complaints) == (None, (), ())


def test_a_run_of_an_earlier_version_is_drawn_without_complaint(
    folder: RunFolder, result: Result
) -> None:
    found = read_attachments(folder, result)
    assert (found.examples, found.filters, found.complaints) == (None, (), ())
    assert html_report(result, found) == html_report(result)


@pytest.mark.parametrize("damage", ["missing", "cut", "other run"])
def test_without_its_examples_a_report_says_so_and_draws_the_rest(
    run: tuple[RunFolder, Result], damage: str
) -> None:
    folder, result = run
    path = folder.examples
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        result["data"]["class_names"] = result["data"]["class_names"][:9]
    found = read_attachments(folder, result)
    assert found.examples is None
    assert len(found.filters) == 2
    [complaint] = found.complaints
    assert str(path) in complaint
    assert "\n" not in complaint
    assert f"delete result.json and run: refkd distill --resume {folder.path}" in complaint
    if damage != "other run":
        page = html_report(result, found)
        assert "Mistakes of" not in page
        assert page.count("Not drawn: ") == 1
        assert "examples.safetensors" in page
        assert "First-layer filters" in page


def test_a_damaged_network_costs_its_filters_only(run: tuple[RunFolder, Result]) -> None:
    folder, result = run
    path = folder.network("teacher", 3)
    path.write_bytes(path.read_bytes()[:-1])
    found = read_attachments(folder, result)
    assert found.examples is not None
    assert [f.network for f in found.filters] == ["student_distilled"]
    [complaint] = found.complaints
    assert "teacher-seed3" in complaint
    assert "result.json" not in complaint


def test_complaints_are_escaped(result: Result) -> None:
    page = html_report(result, Attachments(complaints=("<script>\x1b[2J",)))
    assert "Not drawn: &lt;script&gt;[2J</p>" in page
