"""Random generators: a function of seed, purpose and index, independent of each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refkd.distill import LogitDistillation, Stage, Supervised, select
from refkd.losses import KDSpec
from refkd.models import create
from refkd.train.loop import begin, initialise
from refkd.train.optim import SGD, AdamW
from refkd.train.schedule import Constant
from refkd.train.seeds import Purpose, generator

STUDENT = create("mlp", in_features=6, hidden=(5,), num_classes=3)
TEACHER = create("mlp", in_features=6, hidden=(8,), num_classes=3)
SPEC = KDSpec.preset("hinton", temperature=4.0, alpha=0.5)


def stage(objective, optimizer=None) -> Stage:
    return Stage(objective, optimizer or SGD(0.1), Constant(), epochs=1, batch_size=4)


def test_the_same_seed_and_purpose_give_the_same_numbers() -> None:
    for purpose in Purpose:
        first, second = (generator(7, purpose, 1, 2).random(50) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_seeds_purposes_and_indices_all_give_other_numbers() -> None:
    streams = [
        generator(seed, purpose, *indices).random(200)
        for seed in (0, 1, 2**40)
        for purpose in Purpose
        for indices in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))
    ]
    for a, b in itertools.combinations(streams, 2):
        assert not np.any(a == b)
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.35


def test_streams_are_those_of_a_seed_sequence_and_will_not_drift() -> None:
    expected = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1, 0, 5))).random(4)
    np.testing.assert_array_equal(generator(3, Purpose.ORDER, 0, 5).random(4), expected)


@pytest.mark.parametrize(
    "other",
    [
        Supervised(STUDENT, label_smoothing=0.1),
        LogitDistillation(STUDENT, None, SPEC),
        LogitDistillation(STUDENT, TEACHER, SPEC),
    ],
)
def test_a_student_starts_from_the_same_weights_whatever_it_is_taught_by(other) -> None:
    alone, _ = initialise([stage(Supervised(STUDENT))], 5)
    taught, _ = initialise([stage(other, AdamW())], 5)
    assert set(alone) == set(taught)
    for name, array in alone.items():
        np.testing.assert_array_equal(array, taught[name])


def test_another_seed_gives_other_weights() -> None:
    first, second = (initialise([stage(Supervised(STUDENT))], seed)[0] for seed in (0, 1))
    for name, array in first.items():
        assert not np.any(array == second[name])


def test_networks_of_one_training_start_from_different_weights() -> None:
    stages = [stage(Supervised(STUDENT, "teacher")), stage(Supervised(STUDENT))]
    params, _ = initialise(stages, 0)
    for name, array in select(params, "teacher").items():
        assert not np.any(array == params[f"student.{name}"])


def test_a_further_network_changes_no_weight_of_the_ones_before_it() -> None:
    one, _ = initialise([stage(Supervised(STUDENT))], 0)
    two, _ = initialise([stage(Supervised(STUDENT)), stage(Supervised(TEACHER, "teacher"))], 0)
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    assert select(two, "teacher")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_weights_have_the_dtype_asked_for(dtype) -> None:
    params, _ = initialise([stage(Supervised(STUDENT))], 0, dtype=dtype)
    assert {p.dtype for p in params.values()} == {np.dtype(dtype)}


def test_a_teacher_and_a_student_of_one_seed_share_no_weights() -> None:
    teacher = create("mlp", in_features=8, hidden=(20,), num_classes=3)
    student = create("mlp", in_features=8, hidden=(6,), num_classes=3)
    taught = begin([stage(Supervised(teacher, "teacher"))], 0)
    learned = begin([stage(Supervised(student, "student"))], 0)
    pairs = zip(taught.params.values(), learned.params.values(), strict=True)
    assert not any(np.isin(b, a).any() for a, b in pairs)
    assert not np.any(taught.rng.random(100) == learned.rng.random(100))
