"""Train and eval mode of teacher and student: the sound defaults, and two published mistakes.

A teacher left in train mode answers otherwise in every step and in every company; a
student never put back in train mode after an evaluation goes on without its dropout and
with the running statistics of that moment. Both are reproduced here beside the right form.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest

from refkd.distill import LogitDistillation, select
from refkd.errors import ConfigError
from refkd.losses import KDSpec, distillation_loss
from refkd.nn import Dropout, Linear, Sequential
from refkd.ops import softmax_forward
from tests.distill.networks import (
    CLASSES,
    DROPPING_HEADS,
    DROPPING_STUDENT,
    NORMALISED_HEADS,
    NORMALISED_STUDENT,
    ROWS,
    STUDENT,
    assert_gradient_is_exact,
    drawn,
    hidden,
    step,
)

GOOGLENET = (1.0, 0.3, 0.3)
PUBLISHED = LogitDistillation(
    DROPPING_STUDENT,
    DROPPING_HEADS,
    KDSpec.preset("googlenet-published"),
    head_weights=GOOGLENET,
    teacher_mode="train",
    student_eval_from=1,
    exact=False,
)
HINTON = KDSpec.preset("hinton", temperature=3.0, alpha=0.3)
DROPPING_TEACHER = hidden(9, ("dropout", Dropout(0.5)), ("fc2", Linear(9, CLASSES)))


def with_modes(student: Any, teacher: Any, **modes: Any) -> LogitDistillation:
    return LogitDistillation(student, teacher, HINTON, **modes)


def soft_terms(objective: LogitDistillation, places: Any, *, seed: int = 0) -> list[float]:
    """Return the soft term at each (epoch, step), with one generator that goes along."""
    params, state, batch = drawn(objective)
    rng = np.random.default_rng(seed)
    return [
        float(
            objective.value_and_grad(
                params, state, batch._replace(epoch=epoch, step=at), rng
            ).terms["soft"]
        )
        for epoch, at in places
    ]


# The teacher


def test_by_default_the_teacher_is_evaluated_and_the_student_trained() -> None:
    objective = LogitDistillation(STUDENT, None, HINTON)
    assert (objective.teacher_mode, objective.student_eval_from, objective.exact) == (
        "eval",
        None,
        True,
    )


@pytest.mark.parametrize("exact", [True, False])
def test_a_teacher_left_in_train_mode_answers_otherwise_in_every_step(exact: bool) -> None:
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    left = with_modes(STUDENT, DROPPING_TEACHER, teacher_mode="train", exact=exact)
    # This student draws nothing, so nothing but the place distinguishes the steps.
    assert len(set(soft_terms(left, places))) == len(places)
    right = with_modes(STUDENT, DROPPING_TEACHER, exact=exact)
    assert len(set(soft_terms(right, places))) == 1


def test_the_targets_of_a_teacher_left_in_train_mode_scatter_around_something_else() -> None:
    params, _, batch = drawn(with_modes(STUDENT, DROPPING_TEACHER))
    own = select(params, "teacher")

    def targets(*, train: bool, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        logits, _ = DROPPING_TEACHER.forward(own, {}, batch.images, train=train, rng=rng)
        return softmax_forward(logits, temperature=HINTON.temperature)

    evaluated = targets(train=False)
    drawn_anew = np.stack([targets(train=True, seed=seed) for seed in range(2000)])
    assert np.abs(drawn_anew - evaluated).max(axis=(1, 2)).min() > 0.02
    # Nor do they average to what it answers in evaluation: a softmax is not linear.
    standard_error = drawn_anew.std(axis=0) / np.sqrt(2000)
    assert (np.abs(drawn_anew.mean(axis=0) - evaluated) / standard_error).max() > 6


def test_a_teacher_left_in_train_mode_looks_at_the_rest_of_the_batch() -> None:
    spec = KDSpec(3.0, 0.0, 1.0, reduction="sum")
    right = LogitDistillation(STUDENT, NORMALISED_HEADS, spec, GOOGLENET)
    params, state, batch = drawn(right)
    parts = [
        batch._replace(images=batch.images[rows], labels=batch.labels[rows])
        for rows in (slice(None, 2), slice(2, None))
    ]

    def excess(objective: LogitDistillation) -> float:
        """How much a summed loss exceeds the sum over two halves of the batch."""
        whole, *halves = (
            float(step(objective, params, state, rows).terms["soft"]) for rows in (batch, *parts)
        )
        return abs(whole - sum(halves)) / whole

    assert excess(right) < 1e-14
    assert excess(dataclasses.replace(right, teacher_mode="train")) > 1e-2


def test_a_teacher_in_train_mode_keeps_its_running_statistics() -> None:
    objective = LogitDistillation(NORMALISED_STUDENT, NORMALISED_HEADS, HINTON, GOOGLENET, "train")
    params, state, batch = drawn(objective)
    after = step(objective, params, state, batch).state
    assert list(after) == list(state)
    for name, array in after.items():
        moved = not np.array_equal(array, state[name])
        assert moved == name.startswith("student."), name


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (DROPPING_STUDENT, DROPPING_HEADS),
        (NORMALISED_STUDENT, NORMALISED_HEADS),
    ],
)
def test_gradient_against_a_teacher_in_train_mode_is_exact(student: Any, teacher: Any) -> None:
    objective = dataclasses.replace(PUBLISHED, student=student, teacher=teacher)
    assert_gradient_is_exact(objective)


def test_a_teacher_in_train_mode_is_a_constant_to_the_loss() -> None:
    params, state, batch = drawn(PUBLISHED)
    grads = step(PUBLISHED, params, state, batch).grads
    assert set(grads) == {k for k in params if k.startswith("student.")}
    assert PUBLISHED.stop_gradient == ("teacher",)


# Whose random numbers


@pytest.mark.parametrize("student", [STUDENT, DROPPING_STUDENT])
def test_a_student_drops_the_same_whatever_the_mode_of_its_teacher(student: Any) -> None:
    ends, hard_terms = [], []
    for mode in ("eval", "train"):
        objective = with_modes(student, DROPPING_TEACHER, teacher_mode=mode)
        params, state, batch = drawn(objective)
        rng = np.random.default_rng(7)
        results = [
            objective.value_and_grad(params, state, batch._replace(step=at), rng) for at in range(4)
        ]
        hard_terms.append([float(result.terms["hard"]) for result in results])
        ends.append(rng.bit_generator.state)
    assert hard_terms[0] == hard_terms[1]
    assert ends[0] == ends[1]
    assert len(set(hard_terms[0])) == (4 if student is DROPPING_STUDENT else 1)


def test_the_masks_of_the_teacher_are_not_those_of_the_student() -> None:
    # One network, one set of weights: with one stream their logits would be the same.
    dropping = hidden(9, ("dropout", Dropout(0.5)), ("fc2", Linear(9, CLASSES)))
    objective = with_modes(dropping, dropping, teacher_mode="train")
    params, state, batch = drawn(objective)
    params |= {f"teacher.{k}": v for k, v in select(params, "student").items()}
    assert step(objective, params, state, batch).terms["soft"] > 1e-3
    nothing_dropped = dataclasses.replace(objective, teacher_mode="eval", student_eval_from=0)
    assert abs(step(nothing_dropped, params, state, batch).terms["soft"]) < 1e-15


def test_masks_of_neighbouring_steps_and_seeds_share_no_more_than_chance() -> None:
    width = 4000
    wide = Sequential((("dropout", Dropout(0.5)),))
    objective = with_modes(wide, wide, teacher_mode="train")
    kept: list[np.ndarray] = []

    @dataclasses.dataclass(frozen=True)
    class Recording(type(wide)):  # type: ignore[misc]
        def forward(self, params, state, x, *, train, rng=None):
            y, cache = super().forward(params, state, x, train=train, rng=rng)
            kept.append(np.asarray(y[0] != 0))
            return y, cache

    recording = Recording(wide.layers)
    objective = dataclasses.replace(objective, student=recording, teacher=recording)
    batch = drawn(with_modes(STUDENT, None))[2]._replace(
        images=np.ones((1, width)), labels=np.zeros(1, int)
    )
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        for epoch, at in ((0, 0), (0, 1), (1, 0)):
            objective.value_and_grad({}, {}, batch._replace(epoch=epoch, step=at), rng)
    assert len(kept) == 12
    for i, a in enumerate(kept):
        for b in kept[:i]:
            assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(width)


def test_a_resumed_training_draws_the_same_masks() -> None:
    """What is saved of a generator is its position; what it was spawned from is lost."""
    params, state, batch = drawn(PUBLISHED)
    rng = np.random.default_rng(5)
    PUBLISHED.value_and_grad(params, state, batch, rng)
    resumed = np.random.default_rng()
    resumed.bit_generator.state = copy.deepcopy(rng.bit_generator.state)
    for epoch, at in ((0, 1), (0, 2), (1, 0), (1, 1)):
        here = batch._replace(epoch=epoch, step=at)
        expected = PUBLISHED.value_and_grad(params, state, here, rng)
        actual = PUBLISHED.value_and_grad(params, state, here, resumed)
        np.testing.assert_equal(actual, expected)
    assert resumed.bit_generator.state == rng.bit_generator.state


# The student


@pytest.mark.parametrize("student", [DROPPING_STUDENT, NORMALISED_STUDENT])
@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_a_student_is_left_in_eval_mode_from_the_given_epoch_on(student: Any, epoch: int) -> None:
    left = with_modes(student, DROPPING_TEACHER, student_eval_from=2)
    params, state, batch = drawn(left)
    batch = batch._replace(epoch=epoch)
    own, own_state = select(params, "student"), select(state, "student")
    z, _ = student.forward(
        own, own_state, batch.images, train=epoch < 2, rng=np.random.default_rng(0)
    )
    v, _ = DROPPING_TEACHER.forward(select(params, "teacher"), {}, batch.images, train=False)
    expected, _ = distillation_loss(z, v, batch.labels, HINTON)
    result = step(left, params, state, batch)
    assert float(result.terms["loss"]) == pytest.approx(expected, rel=1e-13)
    if epoch < 2:
        np.testing.assert_equal(
            result, step(with_modes(student, DROPPING_TEACHER), params, state, batch)
        )


def test_a_student_left_in_eval_mode_keeps_its_running_statistics_and_draws_nothing() -> None:
    both = Sequential((*NORMALISED_STUDENT.layers[:-1], *DROPPING_STUDENT.layers[2:]))
    left = with_modes(both, DROPPING_TEACHER, student_eval_from=0)
    params, state, batch = drawn(left)
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    after = left.value_and_grad(params, state, batch, rng).state
    np.testing.assert_equal(after, state)
    assert rng.bit_generator.state == before
    right = dataclasses.replace(left, student_eval_from=None)
    after = right.value_and_grad(params, state, batch, rng).state
    assert after["student.norm.num_batches_tracked"] == 1
    assert rng.bit_generator.state != before


@pytest.mark.parametrize("student", [DROPPING_STUDENT, NORMALISED_STUDENT])
def test_gradient_of_a_student_left_in_eval_mode_is_exact(student: Any) -> None:
    objective = dataclasses.replace(PUBLISHED, student=student)
    assert_gradient_is_exact(objective, epoch=1)


def test_in_eval_mode_the_mean_of_a_feature_receives_the_gradient_that_batch_norm_removes() -> None:
    # A shift before batch norm cancels in training; against fixed statistics it does not.
    objective = with_modes(NORMALISED_STUDENT, DROPPING_TEACHER)
    args = drawn(objective)
    trained = step(objective, *args).grads
    left = step(dataclasses.replace(objective, student_eval_from=0), *args).grads
    size = np.abs(trained["student.fc1.weight"]).max()
    assert np.abs(trained["student.fc1.bias"]).max() < 1e-14 * size
    assert np.abs(left["student.fc1.bias"]).max() > 1e-2 * size


def test_an_evaluation_between_two_steps_leaves_no_network_in_eval_mode() -> None:
    # The mode is an argument of every forward, and nothing remembers it.
    objective = with_modes(DROPPING_STUDENT, DROPPING_TEACHER)
    params, state, batch = drawn(objective)
    expected = step(objective, params, state, batch)
    DROPPING_STUDENT.forward(select(params, "student"), {}, batch.images, train=False)
    np.testing.assert_equal(step(objective, params, state, batch), expected)


# What does not fit


def test_stored_logits_cannot_stand_in_for_a_teacher_in_train_mode() -> None:
    objective = with_modes(STUDENT, DROPPING_TEACHER, teacher_mode="train")
    params, state, batch = drawn(objective)
    stored = batch._replace(teacher_logits=np.zeros((ROWS, CLASSES)))
    with pytest.raises(ConfigError, match=r"draws its targets anew.*has stored teacher_logits"):
        step(objective, params, state, stored)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LogitDistillation: teacher_mode.*mean 'train'"):
        with_modes(STUDENT, STUDENT, teacher_mode="training")


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, np.float64(2)])
def test_an_epoch_is_an_integer_from_zero_up(value: Any) -> None:
    with pytest.raises(ConfigError, match="student_eval_from must be an integer >= 0 or None"):
        with_modes(STUDENT, STUDENT, student_eval_from=value)
