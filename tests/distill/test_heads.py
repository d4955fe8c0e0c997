"""Networks with several heads: each learns, or teaches, by its weight, and none in silence."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from refkd.distill import Batch, LogitDistillation, Objective, Supervised, frozen_logits, select
from refkd.errors import ConfigError
from refkd.losses import KDSpec, kd_heads_forward, softmax_cross_entropy_forward
from refkd.nn import Layer
from refkd.testing.tolerances import tolerance
from tests.distill.networks import (
    CLASSES,
    DROPPING_HEADS,
    DROPPING_STUDENT,
    FEATURES,
    NORMALISED_HEADS,
    NORMALISED_STUDENT,
    ROWS,
    STUDENT,
    THREE_HEADS,
    HeadsInTrainingOnly,
    assert_gradient_is_exact,
    drawn,
    step,
    three,
)

GOOGLENET = (1.0, 0.3, 0.3)
SPECS = {
    "intended": KDSpec.preset("googlenet-intended"),
    "intended, times T²": KDSpec.preset("hinton", temperature=5.0, alpha=0.55),
    "published": KDSpec.preset("googlenet-published"),
    "soft targets alone": KDSpec.preset("hinton", temperature=20.0, alpha=0.0),
    "reverse KL, summed": KDSpec(2.0, 0.5, 0.5, reduction="sum", divergence="reverse_kl"),
    "kd_lib": KDSpec.preset("kd_lib", temperature=2.0, alpha=0.5),
}
INTENDED = SPECS["intended"]


def distillation(**changes: Any) -> LogitDistillation:
    objective = LogitDistillation(STUDENT, THREE_HEADS, INTENDED, GOOGLENET)
    return dataclasses.replace(objective, **changes)


def outputs(objective: Objective, name: str, args: Any, *, train: bool = False) -> Any:
    params, state, batch = args
    network = objective.networks[name]
    return network.forward(select(params, name), select(state, name), batch.images, train=train)[0]


# A network with several heads that learns from labels


@pytest.mark.parametrize(
    ("network", "smoothing"), [(THREE_HEADS, 0.2), (DROPPING_HEADS, 0.0), (NORMALISED_HEADS, 0.0)]
)
def test_supervised_gradient_is_exact(network: Any, smoothing: float) -> None:
    assert_gradient_is_exact(Supervised(network, "teacher", smoothing, GOOGLENET))


def test_the_loss_is_the_weighted_sum_of_the_cross_entropies_of_the_heads() -> None:
    objective = Supervised(THREE_HEADS, "teacher", 0.1, GOOGLENET)
    args = drawn(objective)
    terms = step(objective, *args).terms
    assert list(terms) == ["loss", "head1", "head2", "head3"]
    logits, labels = outputs(objective, "teacher", args, train=True), args[2].labels
    for number, head in enumerate(logits, 1):
        expected, _ = softmax_cross_entropy_forward(head, labels, label_smoothing=0.1)
        assert terms[f"head{number}"] == expected
    weighted = terms["head1"] + 0.3 * terms["head2"] + 0.3 * terms["head3"]
    assert float(terms["loss"]) == pytest.approx(float(weighted), rel=1e-15)


def test_the_trunk_receives_the_weighted_sum_of_what_the_heads_alone_would_send() -> None:
    args = drawn(Supervised(THREE_HEADS, "teacher"))

    def grads(*weights: float) -> dict[str, np.ndarray]:
        return step(Supervised(THREE_HEADS, "teacher", head_weights=weights), *args).grads

    alone = grads(1, 0, 0), grads(0, 1, 0), grads(0, 0, 1)
    for name, grad in grads(*GOOGLENET).items():
        expected = sum(w * g[name] for w, g in zip(GOOGLENET, alone, strict=True))
        bound = tolerance("float64", "reduction") * np.abs(expected).max()
        assert np.abs(grad - expected).max() <= bound, name


def test_a_head_of_weight_zero_learns_nothing() -> None:
    objective = Supervised(THREE_HEADS, "teacher", head_weights=(1, 0, 0.3))
    grads = step(objective, *drawn(objective)).grads
    for name, grad in grads.items():
        assert grad.any() == (not name.startswith("teacher.aux2.")), name


def test_one_head_has_one_term() -> None:
    objective = Supervised(STUDENT)
    assert list(step(objective, *drawn(objective)).terms) == ["loss"]


# A teacher with several heads


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_distillation_gradient_is_exact(spec: KDSpec) -> None:
    assert_gradient_is_exact(distillation(spec=spec, exact=False))


@pytest.mark.parametrize("student", [DROPPING_STUDENT, NORMALISED_STUDENT])
def test_distillation_gradient_is_exact_with_masks_and_batch_statistics(student: Any) -> None:
    assert_gradient_is_exact(distillation(student=student, spec=SPECS["published"], exact=False))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_terms_are_those_of_the_loss_against_every_head(spec: KDSpec) -> None:
    objective = distillation(spec=spec, exact=False)
    args = drawn(objective)
    terms = step(objective, *args).terms
    z, heads = outputs(objective, "student", args, train=True), outputs(objective, "teacher", args)
    expected, _ = kd_heads_forward(z, heads, args[2].labels, spec, GOOGLENET)
    assert terms == expected._asdict()


def test_the_teacher_is_a_constant_to_the_loss() -> None:
    objective = distillation()
    params, state, batch = drawn(objective)
    result = step(objective, params, state, batch)
    assert set(result.grads) == {k for k in params if k.startswith("student.")}
    assert objective.stop_gradient == ("teacher",)


@pytest.mark.parametrize("head", ["fc.bias", "aux2.fc2.bias", "aux1.bias"])
def test_every_head_of_the_teacher_moves_the_soft_term_alone(head: str) -> None:
    objective = distillation()
    params, state, batch = drawn(objective)
    before = step(objective, params, state, batch).terms
    params[f"teacher.{head}"] = params[f"teacher.{head}"] + np.arange(CLASSES)
    after = step(objective, params, state, batch).terms
    assert after["soft"] != before["soft"]
    assert after["hard"] == before["hard"]


def test_three_copies_of_one_head_teach_what_it_teaches_with_the_sum_of_their_weights() -> None:
    objective = distillation()
    params, state, batch = drawn(objective)
    for part in ("weight", "bias"):
        params[f"teacher.aux1.{part}"] = params[f"teacher.fc.{part}"]
    unequal = dataclasses.replace(objective, head_weights=(1.0, 0.0, 0.5))
    alone = dataclasses.replace(objective, head_weights=(1.5, 0.0, 0.0))
    grads = step(unequal, params, state, batch).grads
    for name, expected in step(alone, params, state, batch).grads.items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-12, atol=1e-15)


def test_the_state_of_a_teacher_with_heads_stays_what_it_is() -> None:
    objective = distillation(student=NORMALISED_STUDENT, teacher=NORMALISED_HEADS, exact=False)
    params, state, batch = drawn(objective)
    after = step(objective, params, state, batch).state
    for name, array in after.items():
        moved = not np.array_equal(array, state[name])
        assert moved == name.startswith("student."), name


# The logits of a frozen network with several heads


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_head_depends_on_the_neighbours_of_a_row(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    params, state = THREE_HEADS.init(rng, dtype=dtype)
    images = rng.standard_normal((70, FEATURES)).astype(dtype)
    stored = frozen_logits(THREE_HEADS, params, state, images, block=32)
    plain, _ = THREE_HEADS.forward(params, state, images, train=False)
    some = rng.permutation(70)[:41]
    live = frozen_logits(THREE_HEADS, params, state, images[some], block=32)
    assert isinstance(live, tuple)
    for stored_head, live_head, plain_head in zip(stored, live, plain, strict=True):
        np.testing.assert_array_equal(live_head, stored_head[some])
        bound = tolerance(dtype, "product") * np.abs(plain_head).max()
        assert np.abs(stored_head - plain_head).max() <= bound


@dataclasses.dataclass(frozen=True)
class OddRowsDiffer(Layer):
    """x → (x, x), but every second row of the second output is off by a little."""

    def forward(self, params, state, x, *, train, rng=None):
        off = np.arange(len(x)) % 2 * 1e-3
        return (x, x * (1 + off)[:, None]), None


def test_images_stand_in_rows_where_every_head_sums_alike() -> None:
    images = np.random.default_rng(0).standard_normal((40, 3))
    for head in frozen_logits(OddRowsDiffer(), {}, {}, images, block=32):
        np.testing.assert_array_equal(head, images)


def test_exact_and_plain_evaluation_teach_the_same_to_rounding() -> None:
    args = drawn(distillation())
    exact = step(distillation(), *args).terms
    plain = step(distillation(exact=False), *args).terms
    for name, term in exact.items():
        assert float(term) == pytest.approx(float(plain[name]), rel=tolerance("float64", "product"))


@dataclasses.dataclass(frozen=True)
class WithoutRunningStatistics(type(NORMALISED_HEADS)):  # type: ignore[misc]
    """Normalises by the batch in evaluation too."""

    def forward(self, params, state, x, *, train, rng=None):
        return super().forward(params, state, x, train=True, rng=rng)


def test_a_network_that_looks_at_its_batch_in_evaluation_cannot_be_evaluated_by_rows() -> None:
    teacher = WithoutRunningStatistics(NORMALISED_HEADS.trunk, NORMALISED_HEADS.heads)
    args = drawn(distillation(teacher=teacher))
    with pytest.raises(ConfigError, match=r"depend on the rest of the batch.*give exact=False"):
        step(distillation(teacher=teacher), *args)
    step(distillation(teacher=teacher, exact=False), *args)


# What does not fit


def test_the_heads_of_a_network_are_never_dropped_in_silence() -> None:
    for objective in (Supervised(THREE_HEADS), distillation(head_weights=())):
        with pytest.raises(ConfigError, match=r"returns 3 outputs, and head_weights has 0"):
            step(objective, *drawn(objective))
    objective = distillation(head_weights=(1.0, 0.3))
    with pytest.raises(ConfigError, match=r"the teacher returns 3 outputs, and head_weights has 2"):
        step(objective, *drawn(objective))


@pytest.mark.parametrize("exact", [True, False])
def test_auxiliary_heads_that_vanish_in_evaluation_are_missed(exact: bool) -> None:
    """In circulation the student then learns from one head, or the teacher stays in training."""
    teacher = three(THREE_HEADS.trunk, 5, HeadsInTrainingOnly)
    objective = distillation(teacher=teacher, exact=exact)
    with pytest.raises(ConfigError, match=r"the teacher returns 1 output, and head_weights has 3"):
        step(objective, *drawn(objective))
    # Such a teacher learns with its heads and then teaches with one, said aloud.
    learning = Supervised(teacher, "teacher", head_weights=GOOGLENET)
    assert list(step(learning, *drawn(learning)).terms)[1:] == ["head1", "head2", "head3"]
    alone = dataclasses.replace(objective, head_weights=(1.0,))
    assert step(alone, *drawn(alone)).terms["soft"] > 0


def test_weights_for_heads_that_do_not_exist_are_refused() -> None:
    for objective in (Supervised(STUDENT, head_weights=GOOGLENET), distillation(teacher=STUDENT)):
        with pytest.raises(ConfigError, match="returns 1 output, and head_weights has 3"):
            step(objective, *drawn(objective))


def test_stored_logits_are_those_of_one_head() -> None:
    objective = distillation()
    params, state, batch = drawn(objective)
    stored = batch._replace(teacher_logits=np.zeros((ROWS, CLASSES)))
    with pytest.raises(ConfigError, match=r"stored .* returns 1 output, and head_weights has 3"):
        step(objective, params, state, stored)
    one = dataclasses.replace(objective, head_weights=(0.5,))
    assert step(one, params, state, stored).terms["soft"] > 0


def test_a_student_learns_with_one_head() -> None:
    objective = distillation(student=THREE_HEADS)
    with pytest.raises(ConfigError, match="student must return one array of logits, got 3"):
        step(objective, *drawn(objective))


@pytest.mark.parametrize("value", [-0.3, float("nan"), float("inf"), "1", None, True])
def test_a_weight_must_be_a_number_from_zero_up(value: Any) -> None:
    for kind in ({"network": THREE_HEADS}, {"student": STUDENT, "teacher": None, "spec": INTENDED}):
        make = Supervised if "network" in kind else LogitDistillation
        with pytest.raises(ConfigError, match=rf"{make.__name__}: head_weights, number 2, must be"):
            make(**kind, head_weights=(1.0, value))


@pytest.mark.parametrize("weights", [None, 0.3, 1])
def test_weights_are_a_sequence_even_of_one(weights: Any) -> None:
    words = "head_weights must be a tuple of numbers, one for each output, .* got"
    with pytest.raises(ConfigError, match=f"Supervised: {words} {weights}"):
        Supervised(THREE_HEADS, head_weights=weights)
    with pytest.raises(ConfigError, match=f"LogitDistillation: {words} {weights}"):
        distillation(head_weights=weights)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_weights are all 0"):
        Supervised(THREE_HEADS, head_weights=(0.0, 0, 0))


@pytest.mark.parametrize(
    "make",
    [lambda w: Supervised(THREE_HEADS, head_weights=w), lambda w: distillation(head_weights=w)],
)
def test_numpy_weights_keep_float32_networks_in_float32(make: Any) -> None:
    objective = make(np.array(GOOGLENET))
    assert objective.head_weights == GOOGLENET
    assert hash(objective) == hash(make(list(GOOGLENET)))
    result = step(objective, *drawn(objective, dtype=np.float32))
    arrays = [*result.terms.values(), *result.grads.values()]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


def test_a_batch_begins_at_the_first_step_of_the_first_epoch() -> None:
    batch = Batch(np.zeros((1, 2)), np.zeros(1, int), None, 1)
    assert (batch.epoch, batch.step) == (0, 0)
