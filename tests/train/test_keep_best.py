"""A stage that keeps its best epoch: which one that is, and what is kept of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.loop import begin, train
from refkd.train.optim import SGD
from refkd.train.progress import Progress
from tests.train.trainings import (
    NORMALIZATION,
    assert_same_bits,
    one_stage,
    snapshot,
    split,
    two_stages,
)

SCORES = [0.2, 0.7, 0.5, 0.7, 0.1]


def scored(scores: list[float], seen: list[Any]) -> Callable[..., dict[str, float]]:
    """Return an evaluation that gives these scores in turn and keeps what it is shown."""

    def evaluate(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        seen.append(copy.deepcopy((dict(params), dict(state))))
        return {"validation_accuracy": scores[len(seen) - 1]}

    return evaluate


def stage(**changes: Any) -> Any:
    return one_stage(epochs=len(SCORES), keep="best", **changes)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_first_epoch_with_the_highest_score_is_kept_with_its_statistics(
    ema_decay: float | None,
) -> None:
    seen: list[Any] = []
    stateful = two_stages()[0].objective
    keeping = stage(objective=stateful, ema_decay=ema_decay)
    trained = train(
        [keeping],
        begin([keeping], 0),
        split(),
        normalization=NORMALIZATION,
        evaluate=scored(SCORES, seen),
    )
    np.testing.assert_equal(trained.params, seen[1][0])
    np.testing.assert_equal(trained.state, seen[1][1])
    assert trained.state["teacher.norm.num_batches_tracked"] == 2 * 3
    assert [r["validation_accuracy"] for r in trained.history] == SCORES
    assert (trained.best, trained.best_score) == ({}, None)


def test_keeping_the_best_epoch_does_not_disturb_the_training() -> None:
    seen: list[Any] = []
    keeping, plain = stage(), one_stage(epochs=len(SCORES))
    train(
        [keeping],
        begin([keeping], 0),
        split(),
        normalization=NORMALIZATION,
        evaluate=scored(SCORES, seen),
    )
    last = train([plain], begin([plain], 0), split(), normalization=NORMALIZATION)
    np.testing.assert_equal(seen[-1][0], last.params)


def test_the_next_stage_starts_from_the_best_epoch_of_this_one() -> None:
    seen: list[Any] = []
    stages = [one_stage(epochs=2, keep="best"), one_stage(epochs=1, optimizer=SGD(1e-30))]
    train(
        stages,
        begin(stages, 0),
        split(),
        normalization=NORMALIZATION,
        evaluate=scored([0.9, 0.1, 0.0], seen),
    )
    first_epoch, second_epoch, after = (params["student.fc1.weight"] for params, _ in seen)
    assert np.any(first_epoch != second_epoch)
    np.testing.assert_array_equal(after, first_epoch)


@pytest.mark.parametrize("stop", range(1, 15))
def test_a_resumed_training_keeps_what_an_uninterrupted_one_does(stop: int, tmp_path: Any) -> None:
    class Stop:
        def __init__(self) -> None:
            self.left = stop

        def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
            self.left -= 1
            if not self.left:
                arrays, metadata = progress.to_checkpoint(("student",))
                save_checkpoint(tmp_path / "c.safetensors", arrays, metadata)
                raise KeyboardInterrupt

        def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
            pass

    def score(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        # Of the parameters alone, so that it does not matter which run asks.
        return {"validation_accuracy": float(np.sin(1e3 * params["student.fc1.weight"]).sum())}

    keeping = stage()
    whole = train(
        [keeping], begin([keeping], 0), split(), normalization=NORMALIZATION, evaluate=score
    )
    with pytest.raises(KeyboardInterrupt):
        train(
            [keeping],
            begin([keeping], 0),
            split(),
            normalization=NORMALIZATION,
            evaluate=score,
            monitor=Stop(),
        )
    arrays, metadata = load_checkpoint(tmp_path / "c.safetensors")
    progress = Progress.from_checkpoint(arrays, metadata, frozen_params={}, frozen_state={})
    resumed = train([keeping], progress, split(), normalization=NORMALIZATION, evaluate=score)
    assert_same_bits(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("evaluate", [None, lambda params, state: {"test_accuracy": 0.5}])
def test_without_a_validation_accuracy_there_is_no_best_epoch(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match="'best' needs a validation_accuracy"):
        train(
            [stage()],
            begin([stage()], 0),
            split(),
            normalization=NORMALIZATION,
            evaluate=evaluate,
        )


def test_there_is_nothing_to_keep_but_the_last_and_the_best() -> None:
    with pytest.raises(ConfigError, match="did you mean 'best'"):
        one_stage(keep="bset")
