"""Objectives: exact gradients through the networks, and who is a constant to the loss."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from refkd.distill import Batch, LogitDistillation, Objective, Supervised, select
from refkd.errors import ConfigError, ShapeError
from refkd.losses import KDSpec, distillation_loss
from refkd.models import create
from refkd.nn import Linear, Sequential, Tanh
from refkd.nn.layer import add_prefix
from refkd.testing import check_grad
from tests.nn.contract_layers import BatchStatistics

FEATURES, CLASSES, ROWS = 5, 4, 6
HINTON = KDSpec.preset("hinton", temperature=3.0, alpha=0.3)
SPECS = {
    "hinton": HINTON,
    "soft targets alone": KDSpec.preset("hinton", temperature=20.0, alpha=0.0),
    "labels alone": KDSpec.preset("hinton", temperature=2.0, alpha=1.0),
    "deit": KDSpec.preset("deit", temperature=3.0, alpha=0.5),
    "textbrewer": KDSpec.preset("textbrewer", temperature=8.0, hard_weight=0.5, soft_weight=2.0),
    "kd_lib": KDSpec.preset("kd_lib", temperature=2.0, alpha=0.5),
    "reverse KL, summed": KDSpec(2.0, 0.5, 0.5, reduction="sum", divergence="reverse_kl"),
}
DROPOUT_STUDENT = create(
    "mlp", in_features=FEATURES, hidden=(7, 6), num_classes=CLASSES, dropout=0.4
)
STUDENT = create("mlp", in_features=FEATURES, hidden=(7,), num_classes=CLASSES)
TEACHER = create("mlp", in_features=FEATURES, hidden=(9,), num_classes=CLASSES, dropout=0.5)
NORMALISED = Sequential(
    (
        ("fc1", Linear(FEATURES, 6)),
        ("norm", BatchStatistics(6)),
        ("tanh", Tanh()),
        ("fc2", Linear(6, CLASSES)),
    )
)


def drawn(objective: Objective, *, dtype: Any = np.float64) -> tuple[Any, Any, Batch]:
    """Return parameters and state of all networks, and a batch."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name, network in objective.networks.items():
        own, own_state = network.init(rng, dtype=dtype)
        params |= add_prefix(name, {k: 3 * v for k, v in own.items()})
        state |= add_prefix(name, own_state)
    images = rng.standard_normal((ROWS, FEATURES)).astype(dtype)
    return params, state, Batch(images, rng.integers(CLASSES, size=ROWS), None, ROWS)


def step(objective: Objective, params: Any, state: Any, batch: Batch, seed: int = 0) -> Any:
    return objective.value_and_grad(params, state, batch, np.random.default_rng(seed))


def assert_gradient_is_exact(objective: Objective) -> None:
    """Check every parameter that learns by the complex step, at one dropout seed."""
    params, state, batch = drawn(objective)
    learning = {k: v for k, v in params.items() if k.partition(".")[0] in objective.learns}
    constant = {k: v for k, v in params.items() if k not in learning}

    def run(moved: Any) -> Any:
        dtype = next(iter(moved.values())).dtype
        single = dtype == np.float32
        in_dtype = batch._replace(images=batch.images.astype(dtype)) if single else batch
        frozen = {k: v.astype(dtype) if single else v for k, v in constant.items()}
        return step(objective, {**frozen, **moved}, state, in_dtype)

    check_grad(
        lambda **moved: run(moved).terms["loss"],
        learning,
        lambda **moved: run(moved).grads,
        method="complex",
        mode="full",
    ).raise_if_failed()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("network", [STUDENT, DROPOUT_STUDENT, NORMALISED])
def test_supervised_gradient_is_exact(network: Any, smoothing: float) -> None:
    assert_gradient_is_exact(Supervised(network, label_smoothing=smoothing))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("student", [STUDENT, DROPOUT_STUDENT, NORMALISED])
def test_distillation_gradient_is_exact(student: Any, spec: KDSpec) -> None:
    assert_gradient_is_exact(LogitDistillation(student, TEACHER, spec))


def test_the_gradient_with_dropout_belongs_to_the_mask_of_its_seed() -> None:
    objective = LogitDistillation(DROPOUT_STUDENT, TEACHER, HINTON)
    args = drawn(objective)
    first, again, other = (step(objective, *args, seed=s) for s in (0, 0, 1))
    np.testing.assert_equal(again, first)
    assert first.terms["loss"] != other.terms["loss"]


def test_the_teacher_is_a_constant_to_the_loss() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    params, state, batch = drawn(objective)
    live = step(objective, params, state, batch)
    logits, _ = TEACHER.forward(select(params, "teacher"), {}, batch.images, train=False)
    stored = step(objective, params, state, batch._replace(teacher_logits=logits))
    assert set(live.grads) == {k for k in params if k.startswith("student.")}
    for name, grad in live.grads.items():
        np.testing.assert_allclose(grad, stored.grads[name], rtol=1e-13, atol=1e-16)
    assert objective.stop_gradient == ("teacher",)
    assert objective.learns == ("student",)


def test_moving_the_teacher_moves_the_loss() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    params, state, batch = drawn(objective)
    before = step(objective, params, state, batch).terms
    params["teacher.fc2.bias"] = params["teacher.fc2.bias"] + np.arange(CLASSES)
    after = step(objective, params, state, batch).terms
    assert after["soft"] != before["soft"]
    assert after["hard"] == before["hard"]


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it() -> None:
    objective = LogitDistillation(STUDENT, STUDENT, KDSpec.preset("hinton", temperature=4, alpha=0))
    params, state, batch = drawn(objective)
    params |= add_prefix("teacher", select(params, "student"))
    result = step(objective, params, state, batch)
    assert abs(result.terms["soft"]) < 1e-15
    assert max(np.abs(g).max() for g in result.grads.values()) < 1e-15


def test_the_teacher_is_in_evaluation_mode_and_draws_nothing() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    args = drawn(objective)
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    losses = {float(objective.value_and_grad(*args, rng).terms["loss"]) for _ in range(3)}
    assert len(losses) == 1
    assert rng.bit_generator.state == before


def test_the_terms_are_those_of_the_distillation_loss() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    params, state, batch = drawn(objective)
    terms = step(objective, params, state, batch).terms
    z, _ = STUDENT.forward(select(params, "student"), {}, batch.images, train=True)
    v, _ = TEACHER.forward(select(params, "teacher"), {}, batch.images, train=False)
    expected, _ = distillation_loss(z, v, batch.labels, HINTON)
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-13)
    assert float(terms["loss"]) == pytest.approx(
        float(0.3 * terms["hard"] + 0.7 * 9 * terms["soft"]), rel=1e-13
    )


def test_stored_logits_stand_in_for_a_teacher() -> None:
    objective = LogitDistillation(STUDENT, None, HINTON)
    params, state, batch = drawn(objective)
    assert list(objective.networks) == ["student"]
    logits = np.random.default_rng(1).standard_normal((ROWS, CLASSES))
    result = step(objective, params, state, batch._replace(teacher_logits=logits))
    z, _ = STUDENT.forward(select(params, "student"), {}, batch.images, train=True)
    expected, _ = distillation_loss(z, logits, batch.labels, HINTON)
    assert float(result.terms["loss"]) == pytest.approx(expected, rel=1e-14)


def test_stored_logits_go_before_a_teacher_network() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    params, state, batch = drawn(objective)
    logits = np.zeros((ROWS, CLASSES))
    with_stored = step(objective, params, state, batch._replace(teacher_logits=logits))
    assert with_stored.terms["soft"] != step(objective, params, state, batch).terms["soft"]


def test_neither_teacher_nor_stored_logits_is_an_error() -> None:
    objective = LogitDistillation(STUDENT, None, HINTON)
    with pytest.raises(ConfigError, match="no teacher network and the batch has no teacher_logits"):
        step(objective, *drawn(objective))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogitDistillation("mlp", TEACHER, HINTON), "student must be a layer, got 'mlp'"),
        (lambda: LogitDistillation(STUDENT, Linear, HINTON), "teacher must be a layer"),
        (lambda: LogitDistillation(STUDENT, None, "hinton"), "spec must be a KDSpec, got 'hinton'"),
        (lambda: Supervised(None), "network must be a layer, got None"),
        (lambda: Supervised(STUDENT, label_smoothing=7), r"label_smoothing must be .* \[0, 1\]"),
    ],
)
def test_what_makes_no_objective_is_refused_on_construction(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_soft_targets_alone_need_no_labels() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, SPECS["soft targets alone"])
    params, state, batch = drawn(objective)
    without = step(objective, params, state, batch._replace(labels=None))
    np.testing.assert_equal(without.grads, step(objective, params, state, batch).grads)


def test_a_hard_term_without_labels_is_an_error() -> None:
    objective = LogitDistillation(STUDENT, TEACHER, HINTON)
    params, state, batch = drawn(objective)
    with pytest.raises(ShapeError, match=r"hard_weight=0\.3 needs labels"):
        step(objective, params, state, batch._replace(labels=None))


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1])
def test_stored_logits_of_another_number_of_classes_are_an_error(classes: int) -> None:
    objective = LogitDistillation(STUDENT, None, HINTON)
    params, state, batch = drawn(objective)
    with pytest.raises(ShapeError):
        step(objective, params, state, batch._replace(teacher_logits=np.zeros((ROWS, classes))))


def test_the_student_moves_its_running_statistics_and_the_teacher_keeps_its_own() -> None:
    objective = LogitDistillation(NORMALISED, NORMALISED, HINTON)
    params, state, batch = drawn(objective)
    after = step(objective, params, state, batch).state
    assert list(after) == list(state)
    for name, array in after.items():
        moved = not np.array_equal(array, state[name])
        assert moved == name.startswith("student."), name


def test_training_one_network_keeps_the_state_of_the_others() -> None:
    objective = Supervised(NORMALISED, "teacher")
    params, state, batch = drawn(objective)
    others = {"student.norm.running_mean": np.arange(6.0)}
    after = step(objective, params, {**state, **others}, batch).state
    assert set(after) == {*state, *others}
    np.testing.assert_array_equal(after["student.norm.running_mean"], np.arange(6.0))
    assert after["teacher.norm.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    "objective", [Supervised(NORMALISED), LogitDistillation(NORMALISED, NORMALISED, HINTON)]
)
def test_nothing_that_is_passed_in_changes(objective: Objective) -> None:
    args = drawn(objective)
    before = copy.deepcopy(args)
    step(objective, *args)
    np.testing.assert_equal(args, before)


@pytest.mark.parametrize(
    "objective",
    [Supervised(DROPOUT_STUDENT), LogitDistillation(DROPOUT_STUDENT, TEACHER, HINTON)],
)
def test_float32_networks_have_float32_terms_and_gradients(objective: Objective) -> None:
    result = step(objective, *drawn(objective, dtype=np.float32))
    arrays = [*result.terms.values(), *result.grads.values()]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


def test_select_takes_the_entries_of_one_network() -> None:
    params = {"student.fc.weight": 1, "student2.fc.weight": 2, "teacher.student.weight": 3}
    assert select(params, "student") == {"fc.weight": 1}
