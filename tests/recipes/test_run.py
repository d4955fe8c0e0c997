"""A recipe run whole, stopped at any step, killed at any moment: the same files in the end."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Split
from refkd.errors import CheckpointError, DataError, NonFiniteError
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.run import load
from tests.recipes.miniature import (
    SEEDS,
    STEPS,
    TEXT,
    after_steps,
    dataset,
    files,
    new_run,
    recipe,
    train,
)

NETWORKS = {
    "networks/teacher-seed5.safetensors",
    *(f"networks/student_{s}-seed{k}.safetensors" for s in ("alone", "distilled") for k in SEEDS),
}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("run") / "whole"
    train(path)
    return files(path)


def stop_after(path: Path, steps: int, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_requested=after_steps(steps), **settings)


def test_a_run_leaves_its_networks_and_its_log_and_nothing_else(whole: dict[str, bytes]) -> None:
    assert set(whole) == {*NETWORKS, "config.toml", "metrics.jsonl"}
    records = [json.loads(line) for line in whole["metrics.jsonl"].splitlines()]
    assert [(r["training"], r["seed"], r["epoch"]) for r in records] == [
        (name, seed, epoch)
        for name, seed in [
            ("teacher", 5),
            *((name, seed) for seed in SEEDS for name in ("student_alone", "student_distilled")),
        ]
        for epoch in (1, 2)
    ]
    for record in records:
        assert 0 <= record["test_accuracy"] <= 1
        assert 0 <= record["validation_accuracy"] <= 1


def test_what_a_run_returns_is_what_it_kept(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    trained = run.train_all()
    assert list(trained.students) == ["alone", "distilled"]
    for name, networks in trained.students.items():
        for seed, network in zip(SEEDS, networks, strict=True):
            kept = load(tmp_path / "run", f"student_{name}", seed=seed)
            np.testing.assert_equal(kept.params, network.params)
            assert kept.history == network.history
    assert len(run.display.steps) == STEPS
    assert len(run.display.epochs) == 10


def test_students_of_one_seed_differ_by_their_loss_and_those_of_two_by_more(
    tmp_path: Path,
) -> None:
    short = TEXT.replace("lr = 1e-2", "lr = 1e-30").replace("train_images = 20", "")
    trained = train(tmp_path / "run", text=short)
    start = {
        (name, i): network.params["fc1.weight"]
        for name, networks in trained.students.items()
        for i, network in enumerate(networks)
    }
    np.testing.assert_array_equal(start["alone", 0], start["distilled", 0])
    assert np.any(start["alone", 0] != start["alone", 1])


def test_a_finished_run_trains_nothing_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    train(tmp_path / "run")
    again = new_run(tmp_path / "run")
    again.train_all()
    assert again.display.steps == []
    assert files(tmp_path / "run") == whole


@pytest.mark.parametrize("cache_teacher", [True, False])
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_run_stopped_after_any_step_ends_as_one_never_stopped(
    stop: int, cache_teacher: bool, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    stop_after(path, stop, cache_teacher=cache_teacher)
    assert "in-progress.safetensors" in files(path)
    train(path, cache_teacher=cache_teacher)
    assert files(path) == whole


def test_a_run_stopped_after_every_step_ends_as_one_never_stopped(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    for _ in range(STEPS):
        stop_after(path, 1)
    train(path)
    assert files(path) == whole


def test_saving_often_changes_nothing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    train(tmp_path / "run", save_every=-1.0)
    assert files(tmp_path / "run") == whole


def test_a_run_killed_between_two_checkpoints_drops_what_it_logged_since(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    stop_after(path, 4)
    # As if the run had gone on and been killed: lines, the last one torn, and no checkpoint.
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"training": "teacher", "seed": 5, "epoch": 2}\n{"trai')
    train(path)
    assert files(path) == whole


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run = new_run(tmp_path / "run")
    run.folder.metrics.write_text('{"training": "teacher", "seed": 5, "epoch": 1}\n')
    run.train_all()
    assert files(tmp_path / "run") == whole


def test_a_checkpoint_left_by_a_training_that_finished_is_ignored(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    stop_after(path, 6)  # the teacher's last step
    left = (path / "in-progress.safetensors").read_bytes()
    stop_after(path, 2)
    # Killed after the teacher was kept, before its checkpoint went.
    (path / "in-progress.safetensors").write_bytes(left)
    train(path)
    assert files(path) == whole


def test_a_checkpoint_left_by_the_last_training_goes(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    stop_after(path, STEPS)
    left = (path / "in-progress.safetensors").read_bytes()
    train(path)
    # Killed after the last network was kept, before its checkpoint went.
    (path / "in-progress.safetensors").write_bytes(left)
    train(path)
    assert files(path) == whole


def test_a_checkpoint_of_another_training_is_ignored(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    stop_after(path, 2)
    arrays, metadata = load_checkpoint(path / "in-progress.safetensors")
    metadata["training"] = "teacher-seed50"
    save_checkpoint(path / "in-progress.safetensors", arrays, metadata)
    train(path)
    assert files(path) == whole


@pytest.mark.parametrize("name", ["in-progress.safetensors", "networks/teacher-seed5.safetensors"])
def test_a_damaged_checkpoint_stops_the_run_and_is_left_for_a_person_to_see(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "run"
    stop_after(path, 8)
    damaged = bytearray((path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (path / name).write_bytes(damaged)
    before = files(path)
    with pytest.raises(CheckpointError, match="damaged"):
        train(path)
    assert files(path) == before


def test_storing_the_teacher_s_logits_changes_no_byte(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    train(tmp_path / "run", cache_teacher=False)
    assert files(tmp_path / "run") == whole


def test_stored_logits_stand_in_for_the_teacher(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    data = dataset(stored_logits=True)
    stop_after(path, 9, data=data)
    trained = train(path, data=data)
    assert trained.teacher is None
    left = files(path)
    assert not any("teacher" in name for name in left)
    alone, distilled = (f"networks/student_{s}-seed5.safetensors" for s in ("alone", "distilled"))
    np.testing.assert_equal(
        load(path, "student_alone", seed=5).params, trained.students["alone"][0].params
    )
    assert left[distilled] != whole[distilled]
    train(tmp_path / "again", data=data)
    again = files(tmp_path / "again")
    assert (again[alone], again[distilled]) == (left[alone], left[distilled])


def test_a_training_that_diverges_leaves_what_was_trained_before_it(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    text = TEXT.replace('"adam", parameters = { lr = 1e-2 }', '"sgd", parameters = { lr = 1e30 }')
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="epoch"):
        train(path, text=text)
    teacher = "networks/teacher-seed5.safetensors"
    left = files(path)
    assert left[teacher] == whole[teacher]
    assert set(left) < set(whole)


def student(**settings: Any) -> Any:
    distilled = recipe().protocols["fair"].students["distilled"]
    return dataclasses.replace(distilled, train_images=None, **settings)


def rows(split: Split) -> list[bytes]:
    return [
        image.tobytes() + bytes([label])
        for image, label in zip(split.images, split.labels, strict=True)
    ]


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({}, {0, 1, 2, 3}),
        ({"only_classes": (1, 3)}, {1, 3}),
        ({"without_classes": (0,)}, {1, 2, 3}),
        ({"only_classes": (0, 1), "without_classes": (1,)}, {0}),
    ],
)
def test_a_student_sees_all_images_of_its_classes_in_their_order(
    tmp_path: Path, settings: Any, classes: set[int]
) -> None:
    run = new_run(tmp_path / "run")
    train_split = run.dataset.train
    split = train_split.take(run.training_rows(student(**settings), 0))
    expected = train_split.take(np.isin(train_split.labels, list(classes)))
    assert set(split.labels.tolist()) == classes
    assert rows(split) == rows(expected)


def test_a_student_of_few_images_draws_them_by_its_seed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", data=dataset(stored_logits=True))
    few = dataclasses.replace(student(without_classes=(2,)), train_images=7)
    train_split = run.dataset.train
    first, again, other = (train_split.take(run.training_rows(few, seed)) for seed in (5, 5, 6))
    assert len(first) == len(set(rows(first))) == 7
    assert 2 not in first.labels
    assert rows(first) == rows(again) != rows(other)
    everything = rows(run.dataset.train)
    places = [everything.index(row) for row in rows(first)]
    assert places == sorted(places)
    np.testing.assert_array_equal(first.teacher_logits, run.dataset.train.teacher_logits[places])


@pytest.mark.parametrize(
    "settings",
    [
        {"train_images": 41},
        {"train_images": 11, "only_classes": (1,)},
        {"only_classes": (9,)},
        {"without_classes": (0, 1, 2, 3)},
        {"only_classes": (1,), "without_classes": (1,)},
    ],
)
def test_asking_for_images_that_are_not_there_is_an_error(tmp_path: Path, settings: Any) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"recipe 'miniature': .* needs .* training images"):
        run.training_rows(dataclasses.replace(student(), label="a distilled", **settings), 0)


def kill_and_resume(path: Path, seconds: float) -> tuple[bool, dict[str, bytes]]:
    """Kill a run after ``seconds`` of training, resume it; return whether it was under way."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.recipes.miniature", str(path)]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    deadline = time.monotonic() + 60
    while not (path / "config.toml").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    under_way = child.wait() == -signal.SIGKILL
    train(path)
    return under_way, files(path)


def assert_kills_change_nothing(path: Path, whole: dict[str, bytes], kills: int) -> None:
    chance, under_way = random.Random(kills), 0
    for i in range(kills):
        killed, left = kill_and_resume(path / str(i), chance.uniform(0, 0.15))
        under_way += killed
        # A file that was being written when the process died may remain, under its own name.
        assert {k: v for k, v in left.items() if not k.endswith(".tmp")} == whole
    assert under_way > 0


def test_a_run_killed_at_any_moment_ends_as_one_never_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    assert_kills_change_nothing(tmp_path, whole, 3)


@pytest.mark.slow
def test_a_run_killed_at_many_moments_ends_as_one_never_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    assert_kills_change_nothing(tmp_path, whole, 60)
