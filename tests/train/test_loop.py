"""The training loop: what a step is, in which order, what is recorded, what is left alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Split, to_batch
from refkd.distill import Batch, LogitDistillation, StepResult, Supervised, select
from refkd.errors import ConfigError
from refkd.nn.layer import add_prefix
from refkd.train.loop import begin, initialise, train
from refkd.train.optim import SGD, clip_by_global_norm
from refkd.train.progress import Progress
from refkd.train.schedule import Constant
from refkd.train.seeds import Purpose, generator
from tests.train.trainings import (
    EXAMPLES,
    NORMALIZATION,
    PLAIN,
    SPEC,
    STATEFUL,
    assert_same_bits,
    one_stage,
    snapshot,
    split,
    two_stages,
)


@dataclasses.dataclass
class Diary:
    """A monitor that keeps what it was told."""

    steps: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)
    records: list[Mapping[str, float]] = dataclasses.field(default_factory=list)

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        self.steps.append((progress.stage, progress.epoch, progress.step, steps_per_epoch))

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        assert progress.history[-1] is record
        assert (progress.step, progress.sums) == (0, {})
        self.records.append(record)


@dataclasses.dataclass(frozen=True)
class Recording:
    """An objective that keeps its batches and returns constant gradients."""

    batches: list[Batch]
    inner: Supervised = dataclasses.field(default_factory=lambda: Supervised(PLAIN))

    @property
    def networks(self) -> Any:
        return self.inner.networks

    @property
    def learns(self) -> tuple[str, ...]:
        return self.inner.learns

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        return ()

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        self.batches.append(batch)
        grads = {name: np.ones_like(p) for name, p in params.items()}
        return StepResult({"loss": np.float32(len(self.batches))}, grads, dict(state))


def test_training_by_hand_gives_the_same_bits() -> None:
    stage = one_stage(clip_norm=0.3)
    trained = train([stage], begin([stage], 4), split(), normalization=NORMALIZATION)

    params, state = initialise([stage], 4)
    moments = stage.optimizer.init(params)
    for epoch in range(2):
        order = generator(4, Purpose.ORDER, *stage.objective.learns, 0, epoch).permutation(EXAMPLES)
        for step, start in enumerate((0, 8, 16)):
            rows = order[start : start + 8]
            images = to_batch(split().images[rows], NORMALIZATION, np.float32)
            batch = Batch(images, split().labels[rows], None, 8)
            result = stage.objective.value_and_grad(params, state, batch, np.random.default_rng())
            grads, _ = clip_by_global_norm(result.grads, 0.3)
            lr = stage.optimizer.lr * stage.schedule.factor(3 * epoch + step, 6)
            stage.optimizer.update(params, grads, moments, lr=lr)
    for name, array in params.items():
        np.testing.assert_array_equal(trained.params[name], array)
    for name, array in moments.items():
        np.testing.assert_array_equal(trained.optimizer[name], array)


def test_an_epoch_shows_every_example_once_with_its_own_label_and_logits() -> None:
    data = split()
    logits = np.arange(EXAMPLES * 3.0).reshape(EXAMPLES, 3)
    with_logits = Split(data.images, data.labels, logits)
    recording = Recording([])
    stage = one_stage(objective=recording)
    train([stage], begin([stage], 0), with_logits, normalization=NORMALIZATION)
    sizes = [len(batch.labels) for batch in recording.batches]
    assert sizes == [8, 8, 6] * 2
    assert all(batch.nominal_size == 8 for batch in recording.batches)
    orders = []
    for epoch in (recording.batches[:3], recording.batches[3:]):
        rows = np.concatenate([b.teacher_logits[:, 0] for b in epoch]).astype(int) // 3
        np.testing.assert_array_equal(np.sort(rows), np.arange(EXAMPLES))
        np.testing.assert_array_equal(np.concatenate([b.labels for b in epoch]), data.labels[rows])
        images = np.concatenate([b.images for b in epoch])
        np.testing.assert_array_equal(
            images, to_batch(data.images[rows], NORMALIZATION, np.float32)
        )
        orders.append(rows.tolist())
    assert orders[0] != orders[1]
    assert recording.batches[0].teacher_logits.dtype == np.float32


def test_two_trainings_of_one_seed_see_the_same_batches_whatever_they_learn() -> None:
    data = split()
    first, second = Recording([]), Recording([], Supervised(STATEFUL))
    for recording in (first, second):
        stage = one_stage(objective=recording, optimizer=SGD(1e-3))
        train([stage], begin([stage], 9), data, normalization=NORMALIZATION)
    for a, b in zip(first.batches, second.batches, strict=True):
        np.testing.assert_array_equal(a.images, b.images)


def test_the_record_holds_the_mean_over_examples_and_not_over_batches() -> None:
    stage = one_stage(objective=Recording([]))
    history = train([stage], begin([stage], 0), split(), normalization=NORMALIZATION).history
    assert history == [
        {"stage": 1, "epoch": 1, "loss": (8 * 1 + 8 * 2 + 6 * 3) / 22},
        {"stage": 1, "epoch": 2, "loss": (8 * 4 + 8 * 5 + 6 * 6) / 22},
    ]


def test_a_monitor_is_told_of_every_step_and_epoch() -> None:
    diary = Diary()
    stages = two_stages()
    progress = train(stages, begin(stages, 0), split(), normalization=NORMALIZATION, monitor=diary)
    first = [(0, epoch, step, 3) for epoch in (0, 1) for step in (1, 2, 3)]
    second = [(1, epoch, step, 4) for epoch in (0, 1) for step in (1, 2, 3, 4)]
    assert diary.steps == first + second
    assert [(r["stage"], r["epoch"]) for r in diary.records] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert diary.records == progress.history
    assert set(progress.history[0]) == {"stage", "epoch", "loss"}
    assert set(progress.history[2]) == {"stage", "epoch", "loss", "hard", "soft"}


def test_evaluation_sees_the_average_and_its_figures_join_the_record() -> None:
    seen: list[Any] = []

    def evaluate(params: Any, state: Any) -> dict[str, float]:
        seen.append(copy.deepcopy(params))
        return {"accuracy": len(seen) / 10}

    stage = one_stage(ema_decay=0.5)
    progress = train(
        [stage], begin([stage], 0), split(), normalization=NORMALIZATION, evaluate=evaluate
    )
    assert [record["accuracy"] for record in progress.history] == [0.1, 0.2]
    np.testing.assert_equal(seen[-1], progress.params)
    without = train([one_stage()], begin([one_stage()], 0), split(), normalization=NORMALIZATION)
    assert np.any(seen[-1]["student.fc1.weight"] != without.params["student.fc1.weight"])


def test_the_average_ends_as_the_parameters_and_does_not_disturb_the_training() -> None:
    stage = one_stage(ema_decay=0.9)
    states: list[Any] = []

    class Watch(Diary):
        def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
            states.append(snapshot(progress))

    trained = train(
        [stage], begin([stage], 0), split(), normalization=NORMALIZATION, monitor=Watch()
    )
    expected = initialise([stage], 0)[0]
    for state in states:
        for name in expected:
            average = np.float32(0.9) * expected[name]
            expected[name] = average + np.float32(1 - 0.9) * state["params"][name]
            np.testing.assert_allclose(state["average"][name], expected[name], rtol=1e-5)
    assert trained.average == {}
    np.testing.assert_equal(trained.params, states[-1]["average"])
    plain = train([one_stage()], begin([one_stage()], 0), split(), normalization=NORMALIZATION)
    np.testing.assert_equal(states[-1]["params"], plain.params)


def test_a_stage_may_start_from_a_network_of_the_stage_before() -> None:
    stages = two_stages()
    seen: list[Any] = []

    class Watch(Diary):
        def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
            seen.append(snapshot(progress))

    frozen = dataclasses.replace(stages[1].optimizer, lr=1e-30)
    stages[1] = dataclasses.replace(stages[1], optimizer=frozen)
    progress = train(
        stages, begin(stages, 0), split(), normalization=NORMALIZATION, monitor=Watch()
    )
    teacher, student = (select(progress.params, name) for name in ("teacher", "student"))
    np.testing.assert_equal(student, teacher)
    np.testing.assert_equal(teacher, select(seen[1]["average"], "teacher"))
    assert not np.shares_memory(student["fc1.weight"], teacher["fc1.weight"])
    batches = "norm.num_batches_tracked"
    assert progress.state[f"teacher.{batches}"] == 6
    assert progress.state[f"student.{batches}"] == 6 + 8


def test_a_frozen_teacher_keeps_its_parameters_and_its_statistics() -> None:
    params, state = STATEFUL.init(np.random.default_rng(1))
    frozen_params, frozen_state = add_prefix("teacher", params), add_prefix("teacher", state)
    before = copy.deepcopy((frozen_params, frozen_state))
    stage = one_stage(objective=LogitDistillation(STATEFUL, STATEFUL, SPEC))
    progress = begin([stage], 0, frozen_params=frozen_params, frozen_state=frozen_state)
    train([stage], progress, split(), normalization=NORMALIZATION)
    np.testing.assert_equal((frozen_params, frozen_state), before)
    np.testing.assert_equal(select(progress.params, "teacher"), params)
    np.testing.assert_equal(select(progress.state, "teacher"), state)


def test_arrays_of_the_caller_are_never_written() -> None:
    stages = two_stages()
    params, state = initialise(stages, 0)
    data = split()
    mine = (params, state, data.images, data.labels)
    before = copy.deepcopy(mine)
    train(
        stages,
        Progress(0, np.random.default_rng(0), params, state),
        data,
        normalization=NORMALIZATION,
    )
    np.testing.assert_equal(mine, before)


def test_training_in_float64_stays_in_float64() -> None:
    stage = one_stage()
    progress = begin([stage], 0, dtype=np.float64)
    train([stage], progress, split(), normalization=NORMALIZATION)
    assert {p.dtype for p in progress.params.values()} == {np.dtype(np.float64)}
    in_float32 = train([stage], begin([stage], 0), split(), normalization=NORMALIZATION)
    assert progress.history[-1]["loss"] == pytest.approx(in_float32.history[-1]["loss"], rel=1e-4)


def test_the_same_seed_trains_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (
        snapshot(train(two_stages(), begin(two_stages(), s), split(), normalization=NORMALIZATION))
        for s in (0, 0, 1)
    )
    assert_same_bits(again, first)
    assert np.any(other["params"]["student.fc1.weight"] != first["params"]["student.fc1.weight"])


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    recording = Recording([])
    stage = one_stage(objective=recording, batch_size=1000, schedule=Constant())
    train([stage], begin([stage], 0), split(), normalization=NORMALIZATION)
    assert [len(batch.labels) for batch in recording.batches] == [EXAMPLES, EXAMPLES]


def test_training_lowers_the_loss() -> None:
    stage = one_stage(epochs=30)
    history = train([stage], begin([stage], 0), split(), normalization=NORMALIZATION).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_starting_from_a_network_that_does_not_exist_is_an_error() -> None:
    stage = one_stage(start_from={"student": "techer"})
    with pytest.raises(ConfigError, match="no network 'techer' to start from"):
        train([stage], begin([stage], 0), split(), normalization=NORMALIZATION)


def test_training_a_network_that_does_not_exist_is_an_error() -> None:
    progress = begin([one_stage()], 0)
    stage = one_stage(objective=Supervised(PLAIN, "peer"))
    with pytest.raises(ConfigError, match="no network 'peer' to train"):
        train([stage], progress, split(), normalization=NORMALIZATION)
