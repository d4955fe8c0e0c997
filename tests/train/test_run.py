"""Run folders: made, opened, written, read back; and networks that predict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refkd
from refkd.data.dataset import Normalization
from refkd.errors import CheckpointError, RefkdError, ShapeError
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.run import NetworkSpec, RunFolder, TrainedNetwork, load, read_network

SPEC = NetworkSpec(
    "mlp",
    {"in_features": 12, "hidden": [5], "num_classes": 3},
    (3, 4),
    Normalization(1 / 255, (0.5,), (0.25,)),
    ("cat", "dog", "bird"),
)
HISTORY = [{"stage": 1, "epoch": 1, "loss": 0.1 + 0.2}]


def trained(seed: int = 0) -> TrainedNetwork:
    network = SPEC.build()
    params, state = network.init(np.random.default_rng(seed))
    return TrainedNetwork(SPEC, network, params, state, HISTORY)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", 'title = "x"\n')


def keep(folder: RunFolder, name: str, seed: int) -> TrainedNetwork:
    network = trained(seed)
    folder.save_network(folder.network(name, seed), network, metrics_bytes=7)
    return network


@pytest.mark.parametrize("name", ["run", "deep/er/run", "a run with spaces"])
def test_a_new_folder_holds_its_configuration(tmp_path: Path, name: str) -> None:
    folder = RunFolder.create(tmp_path / name, 'title = "Ümläut"\n')
    assert (tmp_path / name / "config.toml").read_text(encoding="utf-8") == 'title = "Ümläut"\n'
    assert RunFolder.open(folder.path) == folder


def test_an_empty_folder_may_be_used_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "")
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty; continue it with --resume"):
        RunFolder.create(tmp_path, "")
    assert (tmp_path / "config.toml").read_text() == "mine"


def test_a_path_that_cannot_be_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)):
        with pytest.raises(CheckpointError, match="cannot be written"):
            RunFolder.create(path, "")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        RunFolder.create(tmp_path / "run", "")


def test_opening_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match=r"it has no config\.toml; give the folder"):
            RunFolder.open(path)


def test_a_network_comes_back_as_it_was_kept(folder: RunFolder) -> None:
    kept = keep(folder, "teacher", 0)
    loaded, metrics_bytes = read_network(folder.network("teacher", 0))
    assert metrics_bytes == 7
    assert (loaded.spec, loaded.network, loaded.history) == (kept.spec, kept.network, HISTORY)
    assert loaded.spec.image_shape == (3, 4)
    np.testing.assert_equal((loaded.params, loaded.state), (kept.params, kept.state))


def test_a_kept_network_is_a_plain_state_dict_for_other_programs(folder: RunFolder) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    kept = keep(folder, "teacher", 0)
    arrays = safetensors.load_file(folder.network("teacher", 0))
    np.testing.assert_equal(arrays, kept.params)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("student_distilled", 2)),
        ({"seed": 10}, ("student_distilled", 10)),
        ({"network": "student_alone"}, ("student_alone", 3)),
        ({"network": "teacher"}, ("teacher", 0)),
    ],
)
def test_load_picks_the_network_and_the_first_seed(
    folder: RunFolder, asked: Any, expected: tuple[str, int]
) -> None:
    kept = {
        (name, seed): keep(folder, name, seed)
        for name, seed in [
            ("student_distilled", 10),
            ("student_distilled", 2),
            ("student_alone", 3),
            ("teacher", 0),
        ]
    }
    for run in (folder.path, str(folder.path)):
        loaded = load(run, **asked)
        np.testing.assert_equal(loaded.params, kept[expected].params)


def test_load_is_the_package_s_own(folder: RunFolder) -> None:
    keep(folder, "student_distilled", 0)
    assert refkd.load(folder.path).spec == SPEC


def test_files_that_a_person_put_beside_the_networks_are_passed_over(folder: RunFolder) -> None:
    kept = keep(folder, "student_distilled", 4)
    networks = folder.path / "networks"
    for name in ("student_distilled-seed1 (copy)", "student_distilled-seed", "mine"):
        (networks / f"{name}.safetensors").write_bytes(b"")
    np.testing.assert_equal(load(folder.path).params, kept.params)


@pytest.mark.parametrize(
    "asked", [{"network": "student_destilled"}, {"seed": 5}, {"network": "student"}]
)
def test_a_network_that_is_not_there_is_an_error_that_lists_what_is(
    folder: RunFolder, asked: Any
) -> None:
    keep(folder, "teacher", 0)
    keep(folder, "student_distilled", 1)
    with pytest.raises(CheckpointError, match=r"it has: student_distilled-seed1, teacher-seed0$"):
        load(folder.path, **asked)


def test_a_run_that_has_trained_nothing_says_so(folder: RunFolder) -> None:
    with pytest.raises(CheckpointError, match="it has: none yet"):
        load(folder.path)


def test_a_damaged_network_is_an_error(folder: RunFolder) -> None:
    keep(folder, "student_distilled", 0)
    path = folder.network("student_distilled", 0)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load(folder.path)


def assert_not_loaded(folder: RunFolder, arrays: Any, metadata: dict[str, str]) -> None:
    save_checkpoint(folder.network("student_distilled", 0), arrays, metadata)
    with pytest.raises(CheckpointError):
        load(folder.path)


@pytest.mark.parametrize("key", ["network", "history", "metrics_bytes"])
@pytest.mark.parametrize("value", [None, "", "{", "[]x", "nonsense"])
def test_a_checkpoint_without_a_network_s_metadata_is_an_error(
    folder: RunFolder, key: str, value: str | None
) -> None:
    keep(folder, "student_distilled", 0)
    arrays, metadata = load_checkpoint(folder.network("student_distilled", 0))
    changed = {k: v for k, v in metadata.items() if k != key}
    assert_not_loaded(folder, arrays, changed | ({} if value is None else {key: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "transformer"},
        {"model": 3},
        {"hyperparameters": {"width": 3}},
        {"hyperparameters": {}},
        {"hyperparameters": {"in_features": 12, "hidden": 5, "num_classes": 3}},
        {"hyperparameters": {"in_features": 12, "hidden": [6], "num_classes": 3}},
        {"hyperparameters": []},
        {"image_shape": None},
        {"normalization": {"scale": "large", "mean": [0], "std": [1]}},
        {"normalization": {"scale": 1.0}},
        {"normalization": {"scale": 0.0, "mean": [0], "std": [1]}},
        {"normalization": 1.0},
        {"class_names": 3},
    ],
)
def test_a_network_that_cannot_be_built_again_is_an_error(
    folder: RunFolder, changes: dict[str, Any]
) -> None:
    keep(folder, "student_distilled", 0)
    arrays, metadata = load_checkpoint(folder.network("student_distilled", 0))
    spec = {**json.loads(metadata["network"]), **changes}
    assert_not_loaded(folder, arrays, {**metadata, "network": json.dumps(spec)})


def test_predict_returns_probabilities_of_images_as_they_are_stored() -> None:
    network = trained()
    images = np.random.default_rng(0).integers(256, size=(6, 3, 4)).astype(np.uint8)
    p = network.predict(images)
    logits, _ = network.network.forward(
        network.params, {}, ((images / 255 - 0.5) / 0.25).astype(np.float32), train=False
    )
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p, expected, rtol=2e-5)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)


def test_predict_of_no_image_and_of_one() -> None:
    network = trained()
    assert network.predict(np.zeros((0, 3, 4), np.uint8)).shape == (0, 3)
    assert network.predict(np.zeros((1, 3, 4), np.uint8)).shape == (1, 3)


@pytest.mark.parametrize("shape", [(3, 4), (2, 12), (2, 4, 3), (2, 1, 3, 4), (), (12,)])
def test_predict_on_images_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected images of shape \(N, 3, 4\), got"):
        trained().predict(np.zeros(shape, np.uint8))


def test_predict_on_nan_is_an_error() -> None:
    with np.errstate(invalid="ignore"), pytest.raises(RefkdError, match="NaN"):
        trained().predict(np.full((2, 3, 4), np.nan, np.float32))


def test_the_log_is_a_line_of_json_for_each_record(folder: RunFolder) -> None:
    assert folder.metrics_bytes() == 0
    for record in ({"epoch": 1}, {"epoch": 2, "loss": 0.1 + 0.2}):
        folder.log(record)
    lines = folder.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2, "loss": 0.1 + 0.2}]
    assert folder.metrics_bytes() == folder.metrics.stat().st_size


def test_truncating_the_log_drops_what_follows_and_nothing_else(folder: RunFolder) -> None:
    folder.truncate_metrics(100)  # there is no log yet
    folder.log({"epoch": 1})
    size = folder.metrics_bytes()
    folder.log({"epoch": 2})
    with folder.metrics.open("a") as file:
        file.write('{"epo')  # killed in the middle of a line
    folder.truncate_metrics(size)
    assert folder.metrics.read_text() == '{"epoch": 1}\n'
    folder.truncate_metrics(size + 50)
    assert folder.metrics_bytes() == size


def test_a_log_that_cannot_be_written_is_an_error(folder: RunFolder) -> None:
    folder.metrics.mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written"):
        folder.log({"epoch": 1})


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_run_that_another_process_trains_is_left_alone(folder: RunFolder) -> None:
    program = """
import sys
from pathlib import Path
from refkd.errors import CheckpointError
from refkd.train.run import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).lock():
        print("locked")
except CheckpointError as error:
    print(error)
"""

    def other() -> str:
        command = [sys.executable, "-c", program, str(folder.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with folder.lock():
        assert other().startswith(f"another process is at work on the run in {folder.path}; wait")
    assert other() == "locked\n"
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    assert other() == "locked\n"
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.toml", "networks"]
