"""A training stopped after any step, saved, loaded and continued equals one never stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.errors import CheckpointError
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.loop import begin, train
from refkd.train.progress import Progress
from tests.train.trainings import NORMALIZATION, assert_same_bits, snapshot, split, two_stages

STEPS = 2 * 3 + 2 * 4
LEARNS = ("teacher", "student")
SEED = 11


class Stopped(Exception):
    pass


@dataclasses.dataclass
class StopAfter:
    """Stops after a number of steps, or of epochs."""

    steps: int = -1
    epochs: int = -1

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise Stopped

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise Stopped


def evaluate(params: Any, state: Any) -> dict[str, float]:
    return {"sum": float(sum(p.sum(dtype=np.float64) for p in params.values()))}


def run(progress: Progress, monitor: Any = None) -> Progress:
    return train(
        two_stages(),
        progress,
        split(),
        normalization=NORMALIZATION,
        evaluate=evaluate,
        monitor=monitor,
    )


def saved_and_loaded(progress: Progress, path: Path) -> Progress:
    save_checkpoint(path, *progress.to_checkpoint(LEARNS))
    arrays, metadata = load_checkpoint(path)
    return Progress.from_checkpoint(arrays, metadata, frozen_params={}, frozen_state={})


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return snapshot(run(begin(two_stages(), SEED)))


def test_saving_and_loading_changes_no_bit(tmp_path: Path) -> None:
    progress = begin(two_stages(), SEED)
    with pytest.raises(Stopped):
        run(progress, StopAfter(steps=8))
    before = snapshot(progress)
    assert (before["stage"], before["epoch"], before["step"]) == (1, 0, 2)
    assert all(before[group] for group in ("optimizer", "average", "sums", "history"))
    assert_same_bits(snapshot(saved_and_loaded(progress, tmp_path / "c")), before)


@pytest.mark.parametrize("stop", [*range(1, STEPS + 1)])
def test_resuming_after_any_step_is_as_if_never_stopped(
    stop: int, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    progress = begin(two_stages(), SEED)
    with pytest.raises(Stopped):
        run(progress, StopAfter(steps=stop))
    resumed = run(saved_and_loaded(progress, tmp_path / "c"))
    assert_same_bits(snapshot(resumed), uninterrupted)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_resuming_after_any_epoch_is_as_if_never_stopped(
    stop: int, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    progress = begin(two_stages(), SEED)
    with pytest.raises(Stopped):
        run(progress, StopAfter(epochs=stop))
    resumed = run(saved_and_loaded(progress, tmp_path / "c"))
    assert_same_bits(snapshot(resumed), uninterrupted)


def test_resuming_before_the_first_step_and_after_the_last_changes_nothing(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    fresh = saved_and_loaded(begin(two_stages(), SEED), tmp_path / "c")
    finished = run(fresh)
    assert_same_bits(snapshot(finished), uninterrupted)
    assert_same_bits(snapshot(run(saved_and_loaded(finished, tmp_path / "c"))), uninterrupted)


def test_stopping_after_every_single_step_changes_nothing(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    progress, stops = begin(two_stages(), SEED), 0
    while progress.stage < len(two_stages()):
        try:
            run(progress, StopAfter(steps=1))
        except Stopped:
            stops += 1
        progress = saved_and_loaded(progress, tmp_path / "c")
    assert stops == STEPS
    assert_same_bits(snapshot(progress), uninterrupted)


def test_a_frozen_network_is_not_stored_but_handed_back(tmp_path: Path) -> None:
    progress = begin(two_stages(), SEED)
    with pytest.raises(Stopped):
        run(progress, StopAfter(steps=8))
    arrays, metadata = progress.to_checkpoint(("student",))
    assert {name.partition(".")[0] for name in arrays if name.startswith("params")} == {
        "params/student"
    }
    frozen_params = {k: v for k, v in progress.params.items() if k.startswith("teacher.")}
    frozen_state = {k: v for k, v in progress.state.items() if k.startswith("teacher.")}
    rebuilt = Progress.from_checkpoint(
        arrays, metadata, frozen_params=frozen_params, frozen_state=frozen_state
    )
    assert_same_bits(snapshot(rebuilt), snapshot(progress))


def checkpoint() -> tuple[dict[str, Any], dict[str, str]]:
    return begin(two_stages(), SEED).to_checkpoint(LEARNS)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', "{}", '{"rng": {}}', '{"rng": {"bit_generator": "X"}}'],
)
def test_metadata_that_is_no_progress_is_a_checkpoint_error(text: str) -> None:
    arrays, _ = checkpoint()
    with pytest.raises(CheckpointError, match="no training progress"):
        Progress.from_checkpoint(arrays, {"progress": text}, frozen_params={}, frozen_state={})


@pytest.mark.parametrize("name", ["fc1.weight", "weights/fc1.weight", ""])
def test_arrays_of_no_known_group_are_a_checkpoint_error(name: str) -> None:
    arrays, metadata = checkpoint()
    with pytest.raises(CheckpointError, match="no training progress"):
        Progress.from_checkpoint(
            {**arrays, name: np.zeros(1)}, metadata, frozen_params={}, frozen_state={}
        )


def test_a_checkpoint_of_a_network_is_no_training_progress() -> None:
    with pytest.raises(CheckpointError, match="start the run anew"):
        Progress.from_checkpoint({}, {"network": "{}"}, frozen_params={}, frozen_state={})
